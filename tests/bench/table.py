"""The tables of the benchmark and of the capacity page, and where they stand in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.bench import comparing
from tests.bench.comparing import HOPS_PER_SECOND, TARGETS, median

PARTS = {
    "ingress": "ingress",
    "session-consumer": "session",
    "conversation-consumer": "conversation",
    "outbound-consumer": "outbound",
    "rabbitmq": "RabbitMQ",
    "postgres": "PostgreSQL",
}
NAMES = {"postgres": "PostgreSQL", "sqlite": "SQLite"}
_LEAST_MS = 0.005
_CPU = tuple(f"{name} ms" for name in PARTS.values())


def part(name: str, found: Mapping[str, Any]) -> str:
    """Return what a part of the benchmark has found, as Markdown."""
    return f"\n### {name}\n\n{_SHOWN[name](found[name])}\n"


def everything(found: Mapping[str, Any]) -> str:
    """Return all that was measured, as Markdown."""
    where = found["machine"]
    head = f"{where['day']}; {where['processor']}, {where['cores']} cores for everything, Python {where['python']}"
    return "\n\n".join((head, *(show(found[name]) for name, show in _SHOWN.items() if name in found)))


def rows(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table; all but its first column, and what is to be done, are numbers."""
    titles = list(head)
    marks = ["---" if title in {titles[0], "what to do"} else "--:" for title in titles]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, marks, *lines))


def three_digits(value: float) -> str:
    """Return a number with as many digits as mean something."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _table(found: Mapping[str, Any]) -> str:
    return "\n\n".join(_of_kind(kind, found[kind]) for kind in NAMES if kind in found)


def _of_kind(kind: str, of: Mapping[str, Any]) -> str:
    hop, name = of["hop"], NAMES[kind]
    head = (
        "path",
        "hops min / median / max",
        "per s min / median / max",
        f"per s at {HOPS_PER_SECOND} hops/s",
        "target",
    )
    lines = []
    for path, one in of["paths"].items():
        hops, rate = median(one["hops"]), median(one["rate"]) * HOPS_PER_SECOND
        target = _against(path, hops, rate) if kind == "postgres" else ""
        lines.append((f"{name}: {path}", _spread(one["hops"]), _spread(one["per_second"]), f"{rate:.0f}", target))
    cpu = ((f"{name}: {path}", *cost_cells(one["cost"])) for path, one in of["paths"].items())
    slow = ((f"{name}: send, gateway 200 ms, 210 sessions", *cost_cells(of["slow gateway"])),)
    mixed = ((f"{name}: message, send and receipt at once", *cost_cells(of["mixed"])),)
    unit = f"One raw hop: {median(hop['cpu_ms']):.3f} ms of CPU, {median(hop['per_second']):.0f} per s."
    return "\n\n".join((unit, rows(head, lines), rows(("path", *COST_HEAD), (*cpu, *slow, *mixed)), _latency(name, of)))


def _against(path: str, hops: float, rate: float) -> str:
    if path not in TARGETS:
        return ""
    most, least = TARGETS[path]
    return f"{most} hops, {least}/s: {'met' if hops <= most and rate >= least else '**not met**'}"


def _latency(name: str, of: Mapping[str, Any]) -> str:
    latency = of["latency"]
    confirm = latency["confirm"]
    lines = []
    for rate in ("1 per s", "50 per s"):
        for path, one in latency[rate].items():
            times, limit = one.get("confirms"), comparing.MOST_CONFIRMS[path]
            judged = (f"{times:.1f}", f"{limit}{_judged(times <= limit)}") if times else ("", "")
            lines.append((f"{name}: {path}, {rate}", f"{one['p50']:.1f}", f"{one['p99']:.1f}", *judged))
    head = ("waiting", "p50 ms", "p99 ms", "p99 in confirms", "target")
    return f"One confirmed publish, alone, 50 a second: {confirm:.2f} ms.\n\n" + rows(head, lines)


COST_HEAD = ("per s", *_CPU, "reads", "writes", "publishes")


def cost_cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of what one item costs."""
    counts = (f"{one[count]:.2g}" if one[count] else "" for count in ("reads", "writes", "publishes"))
    return (three_digits(one["per_second"]), *(_ms(one["cpu_ms"].get(name, 0.0)) for name in PARTS), *counts)


def _ms(value: float) -> str:
    return f"{value:.2g}" if value >= _LEAST_MS else ""


def _spread(values: list[float]) -> str:
    return " / ".join(three_digits(value) for value in (min(values), median(values), max(values)))


def _costs(found: Mapping[str, Any]) -> str:
    costs = found.get("costs", found)
    return rows(("item", *COST_HEAD), ((name, *cost_cells(one)) for name, one in costs.items()))


def _replicas(found: Mapping[str, Any]) -> str:
    lines = []
    for name, one in found.items():
        cpu, of = sum(one["cpu_ms"].values()), name.rpartition("x ")[2]
        alone = next(other for known, other in found.items() if known.endswith(f"1 x {of}"))
        times = cpu / sum(alone["cpu_ms"].values())
        judged = _judged(times <= comparing.MOST_BY_TWO_REPLICAS) if " 2 x " in name else ""
        lines.append((name, *cost_cells(one), f"{times:.2f}{judged}"))
    return rows(("path and replicas", *COST_HEAD, "CPU, times that of one"), lines)


def _judged(met: bool) -> str:  # noqa: FBT001
    return ": met" if met else ": **not met**"


def _growth(found: Mapping[str, Any]) -> str:
    lines = []
    for path, before in found["little"]["paths"].items():
        after = found["much"]["paths"][path]
        waits = [found[state]["latency"][path]["p50"] for state in ("little", "much")]
        rates = [median(one["rate"]) for one in (before, after)]
        costs = [median(one["hops"]) for one in (before, after)]
        changes = [rates[0] / rates[1], costs[1] / costs[0], waits[1] / waits[0]]
        kept = "kept" if max(changes) <= comparing.MOST_GROWTH else "**not kept**"
        lines.append((path, *(f"{one:.2f}" for one in (*costs, *rates, *waits)), f"{max(changes):.2f}: {kept}"))
    head = (
        "path",
        "hops",
        "much stored",
        "rate in hops",
        "much stored",
        "p50 ms at 50/s",
        "much stored",
        "times, at most",
    )
    return rows(head, lines)


def _memory(found: Mapping[str, Any]) -> str:
    lines = []
    for name in found["idle"]:
        values = [found[state].get(name) for state in ("idle", "sent", "busy")]
        after = values[-1] or 0
        judged = _judged(after < comparing.MOST_MEGABYTES) if name.endswith("consumer") else ""
        lines.append(
            (name, *("" if value is None else f"{value:.0f}" for value in values[:-1]), f"{after:.0f}{judged}")
        )
    drained = found["drain"]
    tenths = (
        (f"tenth {number}", f"{rate:.0f}", f"{size:.0f}")
        for number, (rate, size) in enumerate(zip(drained["per_second"], drained["outbound MB"], strict=True), 1)
    )
    head = ("MB (RSS)", "idle", "after 100 000 sends stored", "after 100 000 sent and 100 000 QR codes")
    return rows(head, lines) + "\n\n" + rows(("backlog of 100 000 jobs", "per s", "outbound MB"), tenths)


_SHOWN = {
    "table": _table,
    "loads": _costs,
    "shapes": _costs,
    "replicas": _replicas,
    "growth": _growth,
    "memory": _memory,
}


def publish(page: Path, **tables: str) -> None:
    """Put tables between their marks in a page."""
    text = page.read_text()
    for mark, content in tables.items():
        before, begin, rest = text.partition(f"<!-- {mark} -->")
        _, end, after = rest.partition(f"<!-- /{mark} -->")
        if not begin or not end:
            raise ValueError(f"{page.name} has no place for {mark}")
        text = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    page.write_text(text)

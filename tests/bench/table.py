"""The tables of the capacity page, and where they stand in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_PARTS = {
    "ingress": "ingress",
    "session-consumer": "session",
    "conversation-consumer": "conversation",
    "outbound-consumer": "outbound",
    "rabbitmq": "RabbitMQ",
    "postgres": "PostgreSQL",
}
_NAMES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
_LEAST_MS = 0.05


def measured(found: Mapping[str, Any]) -> str:
    """Return everything that was measured as Markdown."""
    kinds = [kind for kind in _NAMES if kind in found]
    parts = []
    for kind in kinds:
        parts += [f"**{_NAMES[kind]}: what an item costs** ({_where(found[kind])})", _costs(found[kind]["costs"])]
    parts += ["**How long callers wait, in ms (p50 / p99)**", _waits(found, kinds)]
    parts += ["**Memory, MB (RSS)**", _memory(found, kinds)]
    return "\n\n".join(parts)


def _where(one: Mapping[str, Any]) -> str:
    machine, size = one["machine"], one["size"]
    what = f"{size['sessions']} sessions, {size['messages']} messages per case"
    where = f"{machine['processor']}, {machine['cores']} cores for everything, Python {machine['python']}"
    return f"{machine['day']}; {where}; {what}"


def rows(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table; all but its first column, and what is to be done, are numbers."""
    titles = list(head)
    marks = ["---" if title in {titles[0], "what to do"} else "--:" for title in titles]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, marks, *lines))


def _costs(costs: Mapping[str, Any]) -> str:
    head = ("item", "per s", *(f"{name} ms" for name in _PARTS.values()), "reads", "writes", "publishes")
    return rows(
        (*head, "WAL kB", "RabbitMQ kB written", "load"),
        (
            (
                name,
                three_digits(one["per_second"]),
                *(_ms(one["cpu_ms"].get(part, 0.0)) for part in _PARTS),
                *(f"{one[count]:.2g}" if one[count] else "" for count in ("reads", "writes", "publishes")),
                *(f"{one[size] / 1000:.2g}" if one[size] else "" for size in ("wal_bytes", "broker_bytes")),
                f"{one['load']:.1f}",
            )
            for name, one in costs.items()
        ),
    )


def three_digits(value: float) -> str:
    """Return a number as people write it, with as many digits as mean something."""
    return f"{float(f'{value:.3g}'):g}"


def _ms(value: float) -> str:
    return f"{value:.2g}" if value >= _LEAST_MS else ""


def _waits(found: Mapping[str, Any], kinds: list[str]) -> str:
    lines = [
        (f"{_NAMES[kind]}: {case}", *_pair(both["service"]), *_pair(both["plain"]), f"{both['plain']['cpu']:.2g}")
        for kind in kinds
        for case, both in found[kind]["compared"].items()
    ]
    head = ("call", "this service, alone", "32 at once", "plain handler, alone", "32 at once", "its CPU")
    return rows(head, lines)


def _pair(latency: Mapping[str, float]) -> tuple[str, str]:
    alone, many = (
        " / ".join(three_digits(latency[f"{share} {label}"]) for share in ("p50", "p99"))
        for label in ("alone", "of 32 at once")
    )
    return alone, many


def _memory(found: Mapping[str, Any], kinds: list[str]) -> str:
    columns = [(kind, state) for kind in kinds for state in ("idle", "busy")]
    head = ("process", *(f"{_NAMES[kind]}, {state}" for kind, state in columns))
    names = found[kinds[0]]["memory"]
    return rows(head, ((name, *(str(found[kind]["memory"][name][state]) for kind, state in columns)) for name in names))


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

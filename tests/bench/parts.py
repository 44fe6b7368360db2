"""The parts of the benchmark. Each runs the service anew, and returns what it found as JSON takes it."""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench import whole
from tests.bench.calling import post_all
from tests.bench.measuring import Cost, Hop, cost, hop, memory_of
from tests.bench.safety import check_durable
from tests.bench.stage import AT_ONCE, SESSIONS, Stage, staged
from whatsapp_qr_contracts.events import MessageSent

Found = dict[str, Any]

_REPETITIONS = 3
_HOPS = 10_000
_COUNTS = {"inbound": 4000, "send": 3000, "webhook": 4000, "receipt": 3000}
_WARM = 1000
_BACKLOG = 100_000
_SLOW_GATEWAY = 0.2
_SESSIONS = 1000
_MANY = 10_000
_MUCH = 1_000_000
_IDLE_SECONDS = 10
_DUTY_RUNS = 20


def say(what: str, one: Cost) -> None:
    """Tell what was measured, as it comes."""
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in one.cpu_ms.items())
    print(f"{what}: {one.per_second:.0f} per s, ms: {parts}", file=sys.stderr, flush=True)


async def _warm(stage: Stage) -> Mapping[str, whole.Path]:
    await stage.link(SESSIONS)
    await stage.show(SESSIONS)
    await check_durable(stage)
    paths = {
        "inbound": whole.inbound(stage),
        "send": whole.send(stage),
        "webhook": whole.webhook(stage),
        "receipt": whole.receipt(stage),
    }
    for path in paths.values():
        await whole.run(stage, path, _WARM)
    await stage.analyze()
    return paths


async def _hop(stage: Stage) -> Hop:
    return await hop(stage.meter, stage.system.amqp_url, _HOPS)


async def table(folder: Path) -> Found:
    """Every path, three times, each time between two raw hops; with a quick and a slow gateway; how long one takes."""
    found: Found = {}
    for kind in ("postgres", "sqlite"):
        (folder / kind).mkdir()
        async with staged(kind, folder / kind) as stage:
            paths = await _warm(stage)
            found[kind] = await _repeated(stage, paths)
            stage.gateway.latency = _SLOW_GATEWAY
            await stage.link(20 * SESSIONS)
            slow = await whole.run(stage, whole.send(stage, stage.chatbots), _COUNTS["send"])
            found[kind]["slow gateway"] = slow.as_json()
            stage.gateway.latency = 0.0
            found[kind]["latency"] = await _latency(stage)
            found[kind]["mixed"] = (await whole.mixed(stage, _COUNTS["send"])).as_json()
    return found


async def _repeated(stage: Stage, paths: Mapping[str, whole.Path]) -> Found:
    hops, costs = [await _hop(stage)], {name: list[Cost]() for name in paths}
    for _ in range(_REPETITIONS):
        for name, path in paths.items():
            costs[name].append(await whole.run(stage, path, _COUNTS[name]))
            say(name, costs[name][-1])
        hops.append(await _hop(stage))
    units = [_between(*pair) for pair in itertools.pairwise(hops)]
    return {
        "hop": {"cpu_ms": [one.cpu_ms for one in units], "per_second": [one.per_second for one in units]},
        "paths": {
            name: {
                "hops": [sum(one.cpu_ms.values()) / unit.cpu_ms for one, unit in zip(of, units, strict=True)],
                "rate": [one.per_second / unit.per_second for one, unit in zip(of, units, strict=True)],
                "per_second": [one.per_second for one in of],
                "cost": _median(of).as_json(),
            }
            for name, of in costs.items()
        },
    }


def _between(one: Hop, other: Hop) -> Hop:
    return Hop(
        (one.cpu_ms + other.cpu_ms) / 2,
        (one.per_second + other.per_second) / 2,
        (one.confirm_ms + other.confirm_ms) / 2,
    )


def _median(costs: Sequence[Cost]) -> Cost:
    """Return the one in the middle, by its CPU."""
    return sorted(costs, key=lambda one: sum(one.cpu_ms.values()))[len(costs) // 2]


async def _latency(stage: Stage) -> Found:
    confirm = statistics.median([(await _hop(stage)).confirm_ms for _ in range(2)])
    return {
        "confirm": confirm,
        "1 per s": await whole.latencies(stage, whole.inbound(stage), whole.send(stage), 1, 30),
        "50 per s": await whole.latencies(stage, whole.inbound(stage), whole.send(stage), 50, 1500),
    }


async def loads(folder: Path) -> Found:
    """What happens seldom: an idle second, pairings, lost connections, singleton jobs; and the size of rows."""
    async with staged("postgres", folder) as stage:
        found = {"idle, one second": await _idle(stage)}
        first, begun = await stage.meter.read(), await stage.transactions()
        await stage.link(_SESSIONS)
        last, ended = await stage.meter.read(), await stage.transactions()
        counts = {name: (value - begun.get(name, 0)) / _SESSIONS for name, value in ended.items()}
        found["pairing"] = cost(first, last, _SESSIONS, **counts)
        found["dropped"] = await whole.run(stage, whole.dropped(stage), _SESSIONS)
        found["found again"] = await whole.run(stage, whole.found_again(stage), _SESSIONS)
        for job, setting in (("reconciler", "RECONCILE_PERIOD"), ("sweeper", "SWEEP_PERIOD")):
            await stage.stop("session-consumer")
            process = await stage.start("session-consumer", **{setting: "0.1", "RECONCILE_PAUSE": "0.1"})
            labels = {"singleton_job": job, "outcome": "done"}
            found[job] = await stage.meter.counted(
                process, _DUTY_RUNS, "whatsapp_qr_singleton_job_runs_total", **labels
            )
        await whole.run(stage, whole.inbound(stage, stage.sessions), 2 * _SESSIONS)
        rows = await stage.row_bytes("messages", "conversations", "sessions")
    return {
        "sessions": _SESSIONS,
        "costs": {name: one.as_json() for name, one in found.items()},
        "rows": rows,
    }


async def _idle(stage: Stage) -> Cost:
    first = await stage.meter.read()
    await asyncio.sleep(_IDLE_SECONDS)
    return cost(first, await stage.meter.read(), _IDLE_SECONDS)


async def shapes(folder: Path) -> Found:
    """Other shapes of load: very many sessions with a message each, and one session with all of them."""
    found: Found = {}
    async with staged("postgres", folder) as stage:
        paths = await _warm(stage)
        for name in ("inbound", "send"):
            found[f"{SESSIONS} sessions", name] = await whole.run(stage, paths[name], _COUNTS[name])
        one = stage.sessions[:1], stage.chatbots[:1]
        found["one session", "inbound"] = await whole.run(stage, whole.inbound(stage, one[0]), _COUNTS["inbound"])
        found["one session", "send"] = await whole.run(stage, whole.send(stage, one[1]), 1000)
        await stage.fill(_MANY, _MANY)
        for name, path in (
            ("inbound", whole.inbound(stage, stage.filled_sessions)),
            ("send", whole.send(stage, stage.filled_chatbots)),
        ):
            found[f"{_MANY} sessions", name] = await whole.run(stage, path, _MANY)
    return {f"{shape}: {name}": one.as_json() for (shape, name), one in found.items()}


async def growth(folder: Path) -> Found:
    """Rate, cost and waiting with little stored, and with a million messages and 10 000 sessions, 1 % active."""
    found: Found = {}
    async with staged("postgres", folder) as stage:
        await _warm(stage)
        found["little"] = await _as_it_is(stage, whole.inbound(stage), whole.send(stage))
        await stage.fill(_MUCH, _MANY)
        active = _MANY // 100
        paths = whole.inbound(stage, stage.filled_sessions[:active]), whole.send(stage, stage.filled_chatbots[:active])
        found["much"] = await _as_it_is(stage, *paths)
    return found


async def _as_it_is(stage: Stage, inbound: whole.Path, send: whole.Path) -> Found:
    paths = {"inbound": inbound, "send": send}
    for path in paths.values():
        await whole.run(stage, path, _WARM)
    await stage.analyze()
    return await _repeated(stage, paths) | {"latency": await whole.latencies(stage, inbound, send, 50, 1000)}


async def replicas(folder: Path) -> Found:
    """One, two and four replicas of a consumer, each pinned to a core."""
    found: Found = {}
    async with staged("postgres", folder) as stage:
        paths = await _warm(stage)
        for consumer, name in (
            ("conversation-consumer", "inbound"),
            ("outbound-consumer", "send"),
            ("session-consumer", "webhook"),
        ):
            for count in (1, 2, 4):
                await stage.stop(consumer)
                for core in range(count):
                    await stage.start(consumer, core=core, HEARTBEAT_PERIOD="3")
                await stage.shared(consumer, count)
                await whole.run(stage, paths[name], _WARM)
                found[f"{name}, {count} x {consumer}"] = (await whole.run(stage, paths[name], _COUNTS[name])).as_json()
            await stage.stop(consumer)
            await stage.start(consumer)
    return found


async def memory(folder: Path) -> Found:
    """Megabytes of each consumer after 100 000 messages, and how a backlog of 100 000 jobs drains."""
    async with staged("postgres", folder) as stage:
        paths = await _warm(stage)
        found: Found = {"idle": _memories(stage)}
        await stage.stop("outbound-consumer")
        await post_all(stage.system.api, paths["send"].make, _BACKLOG, AT_ONCE)
        await stage.handled("conversation-consumer", _BACKLOG, type="message.send")
        found["sent"] = _memories(stage)
        await stage.analyze()
        sent = stage.reader.counts[MessageSent.name]
        await stage.start("outbound-consumer")
        found["drain"] = await _drain(stage, sent)
        await post_all(stage.system.api, paths["webhook"].make, _BACKLOG, AT_ONCE)
        # Not the events: under such a load an event is left out if a newer QR code has replaced its own.
        await stage.handled("session-consumer", _WARM + _BACKLOG, type="gateway.qr")
        found["busy"] = _memories(stage)
    return found


async def _drain(stage: Stage, begun: int) -> Found:
    """Return rate and memory of each tenth of the backlog."""
    found: Found = {"per_second": [], "outbound MB": []}
    for part in range(1, 11):
        at = time.monotonic()
        await stage.reader.until({MessageSent.name: begun + _BACKLOG * part // 10})
        found["per_second"].append(_BACKLOG / 10 / (time.monotonic() - at))
        found["outbound MB"].append(memory_of(stage.running("outbound-consumer")))
    return found


def _memories(stage: Stage) -> dict[str, float]:
    return {process.name: memory_of(process) for process in stage.system.processes if process.alive}


PARTS: Mapping[str, Callable[[Path], Awaitable[Found]]] = {
    "table": table,
    "loads": loads,
    "shapes": shapes,
    "replicas": replicas,
    "growth": growth,
    "memory": memory,
}
"""By the name under which they are asked for."""

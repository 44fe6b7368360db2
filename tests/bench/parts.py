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
from tests.bench.deployment import AT_ONCE, SESSIONS, Deployment, deployed
from tests.bench.measuring import Cost, Hop, cost, hop, memory_of
from tests.bench.safety import check_durable
from tests.system import eventually
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
_JOB_RUNS = 20
_PATIENCE = 600.0


def say(what: str, one: Cost) -> None:
    """Tell what was measured, as it comes."""
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in one.cpu_ms.items())
    print(f"{what}: {one.per_second:.0f} per s, ms: {parts}", file=sys.stderr, flush=True)


async def _warm(deployment: Deployment) -> Mapping[str, whole.Path]:
    await deployment.link(SESSIONS)
    await deployment.show(SESSIONS)
    await check_durable(deployment)
    paths = {
        "inbound": whole.inbound(deployment),
        "send": whole.send(deployment),
        "webhook": whole.webhook(deployment),
        "receipt": whole.receipt(deployment),
    }
    for path in paths.values():
        await whole.run(deployment, path, _WARM)
    await deployment.analyze()
    return paths


async def _hop(deployment: Deployment) -> Hop:
    return await hop(deployment.meter, deployment.system.amqp_url, _HOPS)


async def table(folder: Path) -> Found:
    """Every path, three times, each time between two raw hops; with a quick and a slow gateway; how long one takes."""
    found: Found = {}
    for kind in ("postgres", "sqlite"):
        (folder / kind).mkdir()
        async with deployed(kind, folder / kind) as deployment:
            paths = await _warm(deployment)
            found[kind] = await _repeated(deployment, paths)
            deployment.gateway.latency = _SLOW_GATEWAY
            await deployment.link(20 * SESSIONS)
            slow = await whole.run(deployment, whole.send(deployment, deployment.chatbots), _COUNTS["send"])
            found[kind]["slow gateway"] = slow.as_json()
            deployment.gateway.latency = 0.0
            found[kind]["latency"] = await _latency(deployment)
            found[kind]["mixed"] = (await whole.mixed(deployment, _COUNTS["send"])).as_json()
    return found


async def _repeated(deployment: Deployment, paths: Mapping[str, whole.Path]) -> Found:
    hops, costs = [await _hop(deployment)], {name: list[Cost]() for name in paths}
    for _ in range(_REPETITIONS):
        for name, path in paths.items():
            costs[name].append(await whole.run(deployment, path, _COUNTS[name]))
            say(name, costs[name][-1])
        hops.append(await _hop(deployment))
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


async def _latency(deployment: Deployment) -> Found:
    paths = whole.inbound(deployment), whole.send(deployment)
    confirms, found = list[float](), list[Found]()
    for _ in range(_REPETITIONS):
        confirms.append((await _hop(deployment)).confirm_ms)
        waits = await whole.latencies(deployment, *paths, 50, 1500)
        found.append({name: one | {"confirms": one["p99"] / confirms[-1]} for name, one in waits.items()})
    middle = {
        name: sorted((one[name] for one in found), key=lambda one: float(one["confirms"]))[_REPETITIONS // 2]
        for name in found[0]
    }
    slow = await whole.latencies(deployment, *paths, 1, 30)
    return {"confirm": statistics.median(confirms), "1 per s": slow, "50 per s": middle}


async def loads(folder: Path) -> Found:
    """What happens seldom: an idle second, pairings, lost connections, singleton jobs; and the size of rows."""
    async with deployed("postgres", folder) as deployment:
        found = {"idle, one second": await _idle(deployment)}
        first, begun = await deployment.meter.read(), await deployment.transactions()
        await deployment.link(_SESSIONS)
        last, ended = await deployment.meter.read(), await deployment.transactions()
        counts = {name: (value - begun.get(name, 0)) / _SESSIONS for name, value in ended.items()}
        found["pairing"] = cost(first, last, _SESSIONS, **counts)
        found["dropped"] = await whole.run(deployment, whole.dropped(deployment), _SESSIONS)
        found["found again"] = await whole.run(deployment, whole.found_again(deployment), _SESSIONS)
        for job, setting in (("reconciler", "RECONCILE_PERIOD"), ("sweeper", "SWEEP_PERIOD")):
            await deployment.stop("session-consumer")
            process = await deployment.start("session-consumer", **{setting: "0.1", "RECONCILE_PAUSE": "0.1"})
            labels = {"singleton_job": job, "outcome": "done"}
            found[job] = await deployment.meter.counted(
                process, _JOB_RUNS, "whatsapp_qr_singleton_job_runs_total", **labels
            )
        await whole.run(deployment, whole.inbound(deployment, deployment.sessions), 2 * _SESSIONS)
        rows = await deployment.row_bytes("messages", "conversations", "sessions")
    return {
        "sessions": _SESSIONS,
        "costs": {name: one.as_json() for name, one in found.items()},
        "rows": rows,
    }


async def _idle(deployment: Deployment) -> Cost:
    first = await deployment.meter.read()
    await asyncio.sleep(_IDLE_SECONDS)
    return cost(first, await deployment.meter.read(), _IDLE_SECONDS)


async def shapes(folder: Path) -> Found:
    """Other shapes of load: very many sessions with a message each, and one session with all of them."""
    found: Found = {}
    async with deployed("postgres", folder) as deployment:
        paths = await _warm(deployment)
        for name in ("inbound", "send"):
            found[f"{SESSIONS} sessions", name] = await whole.run(deployment, paths[name], _COUNTS[name])
        one = deployment.sessions[:1], deployment.chatbots[:1]
        found["one session", "inbound"] = await whole.run(
            deployment, whole.inbound(deployment, one[0]), _COUNTS["inbound"]
        )
        found["one session", "send"] = await whole.run(deployment, whole.send(deployment, one[1]), 1000)
        await deployment.fill(_MANY, _MANY)
        for name, path in (
            ("inbound", whole.inbound(deployment, deployment.filled_sessions)),
            ("send", whole.send(deployment, deployment.filled_chatbots)),
        ):
            found[f"{_MANY} sessions", name] = await whole.run(deployment, path, _MANY)
    return {f"{shape}: {name}": one.as_json() for (shape, name), one in found.items()}


async def growth(folder: Path) -> Found:
    """Rate, cost and waiting with little stored, and with a million messages and 10 000 sessions, 1 % active."""
    found: Found = {}
    async with deployed("postgres", folder) as deployment:
        await _warm(deployment)
        found["little"] = await _as_it_is(deployment, whole.inbound(deployment), whole.send(deployment))
        await deployment.fill(_MUCH, _MANY)
        active = _MANY // 100
        paths = (
            whole.inbound(deployment, deployment.filled_sessions[:active]),
            whole.send(deployment, deployment.filled_chatbots[:active]),
        )
        found["much"] = await _as_it_is(deployment, *paths)
    return found


async def _as_it_is(deployment: Deployment, inbound: whole.Path, send: whole.Path) -> Found:
    paths = {"inbound": inbound, "send": send}
    for path in paths.values():
        await whole.run(deployment, path, _WARM)
    await deployment.analyze()
    return await _repeated(deployment, paths) | {"latency": await whole.latencies(deployment, inbound, send, 50, 1000)}


async def replicas(folder: Path) -> Found:
    """One, two and four replicas of a consumer, each pinned to a core."""
    found: Found = {}
    async with deployed("postgres", folder) as deployment:
        paths = await _warm(deployment)
        for consumer, name in (
            ("conversation-consumer", "inbound"),
            ("outbound-consumer", "send"),
        ):
            for count in (1, 2, 4):
                await deployment.stop(consumer)
                for core in range(count):
                    await deployment.start(consumer, core=core, HEARTBEAT_PERIOD="3")
                await deployment.shared(consumer, count)
                await whole.run(deployment, paths[name], _WARM)
                found[f"{name}, {count} x {consumer}"] = (
                    await whole.run(deployment, paths[name], _COUNTS[name])
                ).as_json()
            await deployment.stop(consumer)
            await deployment.start(consumer)
    return found


async def memory(folder: Path) -> Found:
    """Megabytes of each consumer after 100 000 messages, and how a backlog of 100 000 jobs drains."""
    async with deployed("postgres", folder) as deployment:
        paths = await _warm(deployment)
        found: Found = {"idle": _memories(deployment)}
        await deployment.stop("outbound-consumer")
        await post_all(deployment.system.api, paths["send"].make, _BACKLOG, AT_ONCE)
        await eventually(lambda: deployment.handled("message.send"), lambda done: done >= _BACKLOG, seconds=_PATIENCE)
        found["sent"] = _memories(deployment)
        await deployment.analyze()
        sent = deployment.reader.counts[MessageSent.name]
        await deployment.start("outbound-consumer")
        found["drain"] = await _drain(deployment, sent)
        await whole.run(deployment, whole.webhook_flood(deployment), _BACKLOG)
        found["busy"] = _memories(deployment)
    return found


async def _drain(deployment: Deployment, begun: int) -> Found:
    """Return rate and memory of each tenth of the backlog."""
    found: Found = {"per_second": [], "outbound MB": []}
    for part in range(1, 11):
        at = time.monotonic()
        await deployment.reader.until({MessageSent.name: begun + _BACKLOG * part // 10})
        found["per_second"].append(_BACKLOG / 10 / (time.monotonic() - at))
        found["outbound MB"].append(memory_of(deployment.running("outbound-consumer")))
    return found


def _memories(deployment: Deployment) -> dict[str, float]:
    return {process.name: memory_of(process) for process in deployment.system.processes if process.alive}


PARTS: Mapping[str, Callable[[Path], Awaitable[Found]]] = {
    "table": table,
    "loads": loads,
    "shapes": shapes,
    "replicas": replicas,
    "growth": growth,
    "memory": memory,
}
"""By the name under which they are asked for."""

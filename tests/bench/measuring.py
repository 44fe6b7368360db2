"""Reads what processes and servers use: CPU seconds, memory, transactions, publishes, bytes; and that per item."""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import Broker, Postgres
from tests.system import Process, System

LOOK_SECONDS = 0.5
"""Between two looks at a process: each look is work for it."""


@dataclass(frozen=True)
class Reading:
    """Everything that only rises, at one moment."""

    at: float
    cpu: Mapping[str, float]
    """CPU seconds by part."""
    counts: Mapping[str, float]
    """Reads, writes and publishes of the processes; bytes of the servers."""


@dataclass(frozen=True)
class Cost:
    """What one item costs: the CPU of each part, and what it makes of the database and the broker."""

    items: int
    per_second: float
    cpu_ms: dict[str, float]
    """Milliseconds of one core, by part."""
    load: float
    """Runnable processes of the machine in the last minute: above its cores, seconds say little and CPU still much."""
    reads: float = 0
    writes: float = 0
    publishes: float = 0
    wal_bytes: float = 0
    broker_bytes: float = 0

    def as_json(self) -> dict[str, Any]:
        """Return it with as many digits as mean something."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


class Meter:
    """Reads the parts of a running service."""

    def __init__(self, system: System, broker: Broker, postgres: Postgres | None) -> None:
        self._system = system
        self._servers = {"rabbitmq": broker, "postgres": postgres}

    async def read(self, text: str = "") -> Reading:
        """Read everything now; `text` is a page of metrics that was fetched already."""
        cpu = {process.name: cpu_seconds([pid]) for process in self._system.processes if (pid := pid_of(process))}
        trees = {name: _tree(server) for name, server in self._servers.items() if server is not None}
        cpu |= {name: cpu_seconds(tree) for name, tree in trees.items()}
        counts = transactions(text)
        counts["broker_bytes"] = _written(trees["rabbitmq"])
        if (postgres := self._servers["postgres"]) is not None:
            counts["wal_bytes"] = await _wal(postgres.url)
        return Reading(time.monotonic(), cpu, counts)

    async def page(self, process: Process) -> str:
        """Return a process's metrics."""
        return (await self._system.http.get(process.url + "/metrics")).text

    async def counted(self, process: Process, items: int, name: str, **labels: str) -> Cost:
        """Follow a process until one of its metrics has risen by so many items."""
        text = await self.page(process)
        first, begun = await self.read(text), total(text, name, **labels)
        while (done := total(text, name, **labels) - begun) < items:
            await asyncio.sleep(LOOK_SECONDS)
            text = await self.page(process)
        return cost(first, await self.read(text), int(done))


def cost(first: Reading, last: Reading, items: int, seconds: float | None = None, **more: float) -> Cost:
    """Return what each of so many items cost between two readings.

    Args:
        first: before them.
        last: after them.
        items: how many.
        seconds: in which they were done, where that was before the last reading.
        more: counts of one item that are known already.
    """
    seconds = seconds or last.at - first.at
    cpu = {part: (last.cpu[part] - first.cpu.get(part, 0.0)) * 1000 / items for part in last.cpu if part in first.cpu}
    counts = {name: (last.counts[name] - first.counts.get(name, 0)) / items for name in last.counts} | more
    return Cost(items, items / seconds, cpu, psutil.getloadavg()[0], **counts)


def transactions(text: str) -> Counter[str]:
    """Return the reads, writes and publishes on a page of metrics."""
    counts: Counter[str] = Counter()
    for name, labels, value in _samples(text):
        if name == "whatsapp_qr_transaction_seconds_count":
            counts[f"{labels['kind']}s"] += value
        elif name == "whatsapp_qr_published_total":
            counts["publishes"] += value
    return counts


def total(text: str, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels."""
    return sum(value for found, has, value in _samples(text) if found == name and labels.items() <= has.items())


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def pid_of(process: Process) -> int | None:
    """Return the id of a process that runs."""
    return process._process.pid if process._process is not None and process.alive else None


def memory_of(process: Process) -> float:
    """Return the megabytes that a process has in memory."""
    return psutil.Process(pid_of(process)).memory_info().rss / 1e6


def _tree(server: Broker | Postgres) -> list[int]:
    started = getattr(server._server, "_process", None)  # a container's processes are not ours to see
    if started is None:
        return []
    root = psutil.Process(started.pid)
    return [root.pid, *(child.pid for child in root.children(recursive=True))]


def cpu_seconds(pids: list[int]) -> float:
    """Return what processes have used."""
    seconds = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            seconds += times.user + times.system
    return seconds


def _written(pids: list[int]) -> float:
    size = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            size += psutil.Process(pid).io_counters().write_bytes
    return size


async def _wal(url: str) -> float:
    connection = await asyncpg.connect(url)
    try:
        return float(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'"))
    finally:
        await connection.close()


@dataclass(frozen=True)
class Hop:
    """One raw hop through RabbitMQ: the unit of cost (see hop.py)."""

    cpu_ms: float
    """Of the client and the broker together, for one message."""
    per_second: float
    """The lower of the rates of publishing and consuming."""
    confirm_ms: float
    """Between one publish and its confirmation, while nothing else is under way: the median."""


async def hop(meter: Meter, url: str, count: int) -> Hop:
    """Measure the raw hop."""
    command = [sys.executable, str(Path(__file__).with_name("hop.py")), url, str(count)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    cpu, slowest, confirm, before = 0.0, float("inf"), 0.0, 0.0
    async for line in process.stdout:
        told, now = json.loads(line), (await meter.read()).cpu["rabbitmq"]
        match told["what"]:
            case "begin":
                before = now
            case "end":
                cpu += told["cpu"] + now - before
                slowest = min(slowest, count / told["seconds"])
            case _:
                confirm = told["median"] * 1000
                continue
        process.stdin.write(b"\n")
    assert await process.wait() == 0
    return Hop(cpu * 1000 / count, slowest, confirm)

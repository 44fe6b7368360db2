"""Short periods, the metrics of the session consumers and rows made by hand, for the tests of singleton jobs."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.persistence.database import Database
from service.persistence.sessions import session_of
from service.persistence.tables import SessionRow
from tests.system import SECONDS, Process, System, eventually

FAST = {
    "SWEEP_PERIOD": "0.3",
    "SWEEP_AGE": "1.5",
    "RECONCILE_PERIOD": "0.3",
    "RECONCILE_AGE": "1.5",
    "RECONCILE_PAUSE": "0.5",
    "STUCK_AFTER": "4",
    "LEASE": "2",
    "GATEWAY_TIMEOUT": "3",
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
}


async def sample(process: Process, name: str, **labels: str) -> float:
    """Return a value from a process's /metrics; 0 where it is not there or the process does not answer."""
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as http:
        try:
            text = (await http.get(f"{process.url}/metrics")).text
        except httpx.TransportError:
            return 0.0
    values = [
        found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
        if found.name == f"whatsapp_qr_{name}" and found.labels == labels and not math.isnan(found.value)
    ]
    return values[0] if values else 0.0


async def redriven(system: System, kind: str) -> float:
    """Return how often something of a kind was mended."""
    consumers = [process for process in system.named("session-consumer") if process.alive]
    return sum([await sample(process, "redriven_total", kind=kind) for process in consumers])


async def mended(system: System, kind: str, before: float = 0.0) -> None:
    """Wait until the metric says that something was mended."""
    await eventually(lambda: redriven(system, kind), lambda count: count > before)


async def relayed(system: System, kind: str) -> float:
    """Return how many outputs the processes of a kind have told from their rows."""
    names = ("whatsapp-qr.events", "incoming-messages", "whatsapp-qr-send")
    processes = [process for process in system.named(kind) if process.alive]
    return sum([await sample(process, "relayed_total", destination=name) for process in processes for name in names])


async def mends_nothing(
    counts: Mapping[str, Callable[[], Awaitable[float]]], traffic: Callable[[], Awaitable[None]]
) -> None:
    """Check that traffic moves no counter.

    It may where the machine stood still in the middle: what is only late looks forgotten. But not every time.
    """
    for _ in range(5):
        before = {kind: await count() for kind, count in counts.items()}
        await traffic()
        after = {kind: await count() for kind, count in counts.items()}
        if after == before:
            return
    assert after == before


@asynccontextmanager
async def rows_by_hand(system: System) -> AsyncIterator[Database]:
    """The service's database, to leave rows as a crash would."""
    database = Database(system.database_url)
    try:
        yield database
    finally:
        await database.close()


async def session_row(database: Database, chatbot_id: UUID) -> SessionRow:
    found = await database.read(lambda tx: session_of(tx, chatbot_id))
    assert found is not None
    return found

"""The deployment of a run: the whole service with two of each kind, real servers behind proxies, and a supervisor."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from service.persistence.database import Database
from tests.faults import facts
from tests.faults.checker import TERMINAL
from tests.faults.facts import Facts
from tests.faults.ledger import Ledger
from tests.faults.load import PARTITIONS
from tests.faults.process import live
from tests.faults.supervising import Supervisor
from tests.proxy import Proxy
from tests.servers import Broker, Postgres
from tests.system import Process, System, eventually

CAST = (
    "ingress",
    "session-consumer",
    "conversation-consumer",
    "conversation-consumer",
    "outbound-consumer",
    "outbound-consumer",
    "simulator",
)
# Short periods, so that what takes minutes in production takes seconds here.
SETTINGS = {
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
    "SEND_BACKOFF": "0.5",
    "GATEWAY_TIMEOUT": "3",
    "HEARTBEAT_PERIOD": "2",
    "RELEASE_AFTER": "6",
    "LEASE": "4",
    "SWEEP_PERIOD": "3",
    "SWEEP_AGE": "10",
    "RECONCILE_PERIOD": "4",
    "RECONCILE_AGE": "8",
    "RECONCILE_PAUSE": "2",
}
EVERYTHING = "faults.events"
TAKEN = "faults.jobs"
"""Where jobs lie that were taken from the AI workers' queue before the end of a run."""
_PARTITIONED = ("whatsapp-qr.sessions", "whatsapp-qr.conversations", "whatsapp-qr-send")
_OTHERS = ("whatsapp-qr.sessions.entry", "whatsapp-qr.conversations.entry", "whatsapp-qr.dead-letters")
_BAD_WORDS = (
    "handler_failed",
    "batch_split",
    "relay_failed",
    "row_not_understood",
    "sending_failed",
    "send_failed",
    "message_not_ended",
)
_SETTLE_SECONDS = 120.0
_NEVER = 5  # times the patience: what goes on and on does not settle either


class Deployment:
    """What a run plays on, and what its faults are done to."""

    def __init__(
        self, system: System, broker: Broker, broker_proxy: Proxy, postgres: Postgres | None, database_proxy: Proxy
    ) -> None:
        self.system = system
        self.broker = broker
        self.broker_url = broker.url
        self.broker_proxy = broker_proxy
        self.postgres = postgres
        """None where the database is SQLite."""
        self.database_proxy = database_proxy
        self.ledger = Ledger()
        self.supervisor = Supervisor(system.processes)

    @property
    def flags(self) -> Path:
        """The folder by which the processes are told what to suffer."""
        return self.system.folder

    async def start(self, skews: Mapping[str, int], mutant: str) -> None:
        """Start all processes, each with its own wrong clock."""
        await self.system.migrate()
        for number, name in enumerate(CAST):
            await self.system.start(
                name,
                FAULTS_SKEW=str(skews.get(f"{name} {number}", 0)),
                FAULTS_MUTANT=mutant if name != "simulator" else "",
            )
        channel = await self.system.channel()
        for name in (EVERYTHING, TAKEN):
            await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        await (await channel.get_queue(EVERYTHING)).bind("whatsapp-qr.events", "#")
        await self.system.connection.close()  # type: ignore[union-attr]  # from here on faults may cut it
        self.system.connection = None
        # RabbitMQ 3.10 may lose a queue whose node is killed soon after it was declared.
        await self.broker.ctl("eval", "[dets:sync(T) || T <- dets:all()], ok.")
        self.supervisor.start()

    def running(self, name: str) -> list[Process]:
        """Return the processes of a kind that run."""
        return [process for process in self.system.named(name) if process.alive and not self.supervisor.rests(process)]

    async def ready(self) -> None:
        """Wait until every process is ready."""
        for process in self.system.processes:
            if process.name != "migrate":
                await self.started(process)

    async def _is_ready(self, process: Process) -> bool:
        return self.supervisor.rests(process) or (process.alive and await process.ready(self.system.http))

    async def started(self, process: Process) -> None:
        """Wait until a process is ready."""
        await eventually(lambda: self._is_ready(process), seconds=_SETTLE_SECONDS)

    async def settled(self, patience: float) -> float:
        """Wait until nothing is left to do; return after how many seconds. What never settles is for the judge.

        It is given up after `patience` seconds in which nothing was heard: on a busy machine all takes longer.
        """
        heard, started = -1, time.monotonic()
        moved = started
        while (now := time.monotonic()) - moved < patience and now - started < _NEVER * patience:
            before, heard = heard, await self._heard()
            if heard != before:
                moved = now
            elif await self._is_settled():
                break
            await asyncio.sleep(0.5)
        return time.monotonic() - started

    async def _is_settled(self) -> bool:
        ledger = self.ledger
        try:
            waiting = (await self.system.http.get(f"{self.system.controls}/callbacks")).json()["waiting"]
        except httpx.TransportError:
            return False
        database = Database(self.system.database_url)
        try:
            found = await facts.read_rows(database)
        finally:
            await database.close()
        done = [row for row in found.rows if not row.outgoing or row.status in TERMINAL]
        expected = dict.fromkeys((link.session_id for link in ledger.links), "CONNECTED") | ledger.pairings
        return (
            not waiting
            and not found.unfinished
            and len(done) == len(found.rows) >= ledger.accepted
            and set(ledger.poison) <= set(found.dead)
            and expected.items() <= found.sessions.items()
            and await self._queues_are_empty()
        )

    async def _heard(self) -> int:
        channel = await self.system.channel()
        found = [await channel.get_queue(name) for name in (EVERYTHING, TAKEN, "incoming-messages")]
        await channel.close()
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    async def _queues_are_empty(self) -> bool:
        channel = await self.system.channel()
        names = [name + (f".{number}" if number else "") for name in _PARTITIONED for number in range(PARTITIONS)]
        counts = [(await channel.get_queue(name)).declaration_result.message_count for name in (*names, *_OTHERS)]
        await channel.close()
        return not any(counts)

    async def facts(self) -> Facts:
        """Read what has become of everything."""
        database = Database(self.system.database_url)
        found = await facts.read_rows(database)
        await database.close()
        sent = (await self.system.http.get(f"{self.system.controls}/sent")).json()["sent"]
        jobs = [job for queue in (TAKEN, "incoming-messages") for job in await facts.drained(self.broker_url, queue)]
        events = await facts.drained(self.broker_url, EVERYTHING)
        return replace(
            found,
            sent=[facts.Sent(one["sessionId"], one["messageId"], one["message"]) for one in sent],
            jobs=[facts.job_of(message) for message in jobs],
            events=[facts.event_of(message) for message in events],
            exits=[*self.supervisor.unexpected, *self._bad_words()],
        )

    def _bad_words(self) -> list[str]:
        """Return what processes have logged and never should: something that failed, though it was tried again."""
        return [
            f"{process.name} logged {words}"
            for process in self.system.processes
            for words in _BAD_WORDS
            if f'"event": "{words}"' in process.log()
        ]

    async def close(self) -> None:
        """End everything that was started here."""
        await self.supervisor.stop()
        await self.system.close()


@asynccontextmanager
async def a_deployment(
    broker: Broker,
    postgres: Postgres | None,
    folder: Path,
    *,
    skews: Mapping[str, int] | None = None,
    mutant: str = "",
    **settings: Any,
) -> AsyncIterator[Deployment]:
    """Build the deployment; with `postgres` None the database is SQLite."""
    url = f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
    if postgres is not None:
        url = await postgres.create_database()
    async with Proxy(broker.url) as broker_proxy, Proxy(postgres.url if postgres else broker.url) as database_proxy:
        behind = f"{database_proxy.url.rpartition('/')[0]}/{url.rpartition('/')[2]}".replace(
            "postgresql:", "postgresql+asyncpg:"
        )
        given = SETTINGS | settings | {"FAULTS_FOLDER": str(folder)}
        system = System(broker.url, url, folder, entry=live, **given)
        system.settings |= {"AMQP_URL": broker_proxy.url} | ({"DATABASE_URL": behind} if postgres else {})
        deployment = Deployment(system, broker, broker_proxy, postgres, database_proxy)
        try:
            await deployment.start(skews or {}, mutant)
            yield deployment
        finally:
            await deployment.close()
    if postgres is not None:
        await postgres.drop_database(url)

"""The deployment of the benchmark: real servers, real processes, linked sessions, a stub gateway and a stub worker."""

import asyncio
import itertools
import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aio_pika
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.bench.calling import Request, post_all
from tests.bench.filling import Rows, chatbot_of, fill, session_of
from tests.bench.measuring import Meter, pid_of, total, transactions
from tests.bench.stub_gateway import StubGateway
from tests.servers import Broker, Postgres
from tests.system import CONSUMERS, Process, System, eventually
from whatsapp_qr_contracts.events import SessionQrReady
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import EVENTS

PROCESSES = ("ingress", *CONSUMERS)
Make = Callable[[int], Request]
AT_ONCE = 64
SESSIONS = 10
_LINKS_AT_ONCE = 16
_UNPACED = {"SEND_RATE": "100000", "SEND_BURST": "100000"}
_QUIET = {"SWEEP_PERIOD": "3600", "RECONCILE_PERIOD": "3600"}
_SECONDS = 600.0
_CUSTOMERS = 5


def be_started_anew(name: str, environment: dict[str, str], log: Path) -> None:
    """Be a process with nothing in memory but its own: a forked one would share what others have imported."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(log.parent)
    os.execve(sys.executable, [sys.executable, "-m", "service.cli", name], environment)  # noqa: S606  # ourselves


class Reader:
    """Takes all jobs for the workers, and hears all events; says when so many have come."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.taken: dict[str, float] = {}
        """When the job of each customer's message came, by its WhatsApp id, while that is noted."""
        self.notes = False
        self.transient = 0
        """Jobs that a restart of the broker would have lost."""
        self._some = asyncio.Event()

    @asynccontextmanager
    async def reading(self, url: str) -> AsyncIterator[None]:
        """Read, over a connection of its own."""
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=64)
            await (await channel.get_queue(IncomingJob.name)).consume(self._take)
            events = await channel.declare_queue(exclusive=True)
            await events.bind(EVENTS, "#")
            await events.consume(self._hear, no_ack=True)
            yield

    async def _take(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.transient += message.delivery_mode != aio_pika.DeliveryMode.PERSISTENT
        if self.notes:
            self.taken[json.loads(message.body)["metadata"]["whatsappMessageId"]] = time.perf_counter()
        await message.ack()
        self._note(IncomingJob.name)

    async def _hear(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self._note(message.type or "")

    def _note(self, name: str) -> None:
        self.counts[name] += 1
        self._some.set()

    async def until(self, expected: Mapping[str, int]) -> None:
        """Wait until so many of each have come."""
        try:
            async with asyncio.timeout(_SECONDS):
                while any(self.counts[name] < count for name, count in expected.items()):
                    self._some.clear()
                    await self._some.wait()
        except TimeoutError as error:
            raise AssertionError(f"{expected} were expected, and there came {self.counts}") from error


@dataclass
class Deployment:
    """A running service that is measured."""

    system: System
    broker: Broker
    postgres: Postgres | None
    meter: Meter
    gateway: StubGateway
    reader: Reader
    chatbots: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    """Those of the chatbots, in the same order: all CONNECTED."""
    waiting: list[str] = field(default_factory=list)
    """Further sessions, which wait for their QR codes to be scanned."""
    filled_chatbots: list[str] = field(default_factory=list)
    filled_sessions: list[str] = field(default_factory=list)
    posted: dict[str, float] = field(default_factory=dict)
    """When each message was posted, by its number."""
    _numbers: int = 0

    async def start(self, name: str, *, core: int | None = None, **settings: str) -> Process:
        """Start a process, pinned to a core where one is given."""
        process = (await self.system.start(name, **(_UNPACED | _QUIET | settings)))[0]
        if core is not None and (pid := pid_of(process)) is not None:
            psutil.Process(pid).cpu_affinity([core % (psutil.cpu_count() or 1)])
        return process

    def running(self, name: str) -> Process:
        """Return a process that runs."""
        return next(process for process in self.system.named(name) if process.alive)

    async def stop(self, *names: str) -> None:
        """Stop processes; they finish what they have begun."""
        for process in [one for one in self.system.processes if one.name in names and one.alive]:
            assert await process.stop() == 0, process.log()[-2000:]

    async def link(self, count: int) -> None:
        """Link so many chatbots more: init, QR code, scan, and wait until all are CONNECTED."""
        chatbots, sessions = await self._open(count)
        make = self.lifeline("connected", sessions)
        await post_all(self.system.api, make, count, _LINKS_AT_ONCE)
        await eventually(
            lambda: self.count("sessions", "status = 'CONNECTED'"), lambda found: found >= len(self.sessions) + count
        )
        self.chatbots += chatbots
        self.sessions += sessions

    async def show(self, count: int) -> None:
        """Begin to link so many chatbots, and leave it at their QR codes."""
        self.waiting += (await self._open(count))[1]

    async def _open(self, count: int) -> tuple[list[str], list[str]]:
        chatbots = [str(uuid.uuid4()) for _ in range(count)]
        heard = self.reader.counts[SessionQrReady.name] + count
        await post_all(self.system.api, lambda n: ("/init", {"chatbotId": chatbots[n]}), count, _LINKS_AT_ONCE)
        answers = [await self.system.get(f"/session/{chatbot_id}") for chatbot_id in chatbots]
        sessions = [str(answer.raise_for_status().json()["data"]["sessionId"]) for answer in answers]
        await post_all(self.system.api, self.qr(sessions), count, _LINKS_AT_ONCE)
        await self.reader.until({SessionQrReady.name: heard})
        return chatbots, sessions

    async def count(self, table: str, where: str) -> int:
        """Return how many rows there are."""
        engine = create_async_engine(self.system.database_url)
        async with engine.connect() as connection:
            found = await connection.execute(text(f"SELECT count(*) FROM {table} WHERE {where}"))  # noqa: S608  # our own
            counted = int(found.scalar_one())
        await engine.dispose()
        return counted

    async def analyze(self) -> None:
        """Let PostgreSQL count its rows, as it does by itself after a minute."""
        engine = create_async_engine(self.system.database_url)
        async with engine.begin() as connection:
            await connection.execute(text("ANALYZE"))
        await engine.dispose()

    async def row_bytes(self, *tables: str) -> dict[str, float]:
        """Return the bytes of a row in PostgreSQL, with its share of the indexes, by table."""
        engine = create_async_engine(self.system.database_url, isolation_level="AUTOCOMMIT")
        found = {}
        async with engine.connect() as connection:
            for name in tables:
                await connection.execute(text(f"VACUUM ANALYZE {name}"))
                query = f"SELECT pg_total_relation_size('{name}') * 1.0 / (SELECT count(*) FROM {name})"  # noqa: S608
                found[name] = float(f"{(await connection.execute(text(query))).scalar_one():.3g}")
        await engine.dispose()
        return found

    async def fill(self, messages: int, sessions: int) -> None:
        """Store very many rows: linked sessions, and messages that have been read."""
        engine = create_async_engine(self.system.database_url)
        async with AsyncSession(engine) as tx, tx.begin():
            await fill(tx, Rows(messages, sessions, live=sessions, parked=0, waiting=0))
        await engine.dispose()
        self.filled_chatbots = [chatbot_of(number) for number in range(1, sessions + 1)]
        self.filled_sessions = [session_of(number) for number in range(1, sessions + 1)]

    async def shared(self, name: str, count: int) -> None:
        """Wait until so many replicas of a consumer have shared the partitions."""

        async def owned() -> list[float]:
            pages = [await self.meter.page(process) for process in self.system.named(name) if process.alive]
            return sorted(total(page, "whatsapp_qr_partitions_owned") for page in pages)

        least = 4 // count - 1  # the entry queue is shared too, and is not among those that are counted
        await eventually(owned, lambda found: len(found) == count and found[0] >= least and sum(found) == 4)

    async def handled(self, name: str) -> float:
        """Return how many messages of a name all processes have handled."""
        pages = [await self.meter.page(process) for process in self.system.processes if process.alive]
        return sum(total(page, "whatsapp_qr_handled_total", type=name) for page in pages)

    async def transactions(self) -> dict[str, float]:
        """Return how many transactions and publishes all processes have done."""
        counts: Counter[str] = Counter()
        for process in self.system.processes:
            if process.alive:
                counts.update(transactions(await self.meter.page(process)))
        return dict(counts)

    def _next(self) -> int:
        self._numbers += 1
        self.posted[str(self._numbers)] = time.perf_counter()
        return self._numbers

    def incoming(self, sessions: Sequence[str] | None = None) -> Make:
        """Return what makes customers' messages: to these sessions in turn, five customers each."""

        def make(_: int) -> Request:
            number, chosen = self._next(), sessions or self.sessions[:SESSIONS]
            return "/incoming", {
                "sessionId": chosen[number % len(chosen)],
                "from": customer(number // len(chosen)),
                "message": "Is my order on its way? It should have come yesterday.",
                "messageId": str(number),
                "timestamp": int(time.time()),
            }

        return make

    def send(self, chatbots: Sequence[str] | None = None) -> Make:
        """Return what makes messages to send: by these chatbots in turn, to five customers each."""

        def make(_: int) -> Request:
            number, chosen = self._next(), chatbots or self.chatbots[:SESSIONS]
            text = f"It is: the carrier says tomorrow between nine and twelve. {number}"
            to = customer(number // len(chosen))
            return "/send", {"chatbotId": chosen[number % len(chosen)], "to": to, "message": text}

        return make

    def qr(self, sessions: Sequence[str] | None = None) -> Make:
        """Return what makes reports of QR codes: each a new one, about sessions in turn."""

        def make(_: int) -> Request:
            number, chosen = self._next(), sessions or self.waiting[:SESSIONS]
            data = {"qrCode": f"data:image/png;base64,{number:0600d}"}
            return "/webhook", {"type": "qr", "sessionId": chosen[number % len(chosen)], "data": data}

        return make

    def receipt(self) -> Make:
        """Return what makes receipts: each for the oldest message sent that has had none."""

        def make(_: int) -> Request:
            session_id, message_id = self.gateway.without_receipt.popleft()
            data = {"messageId": message_id, "status": "delivered", "timestamp": int(time.time())}
            return "/webhook", {"type": "receipt", "sessionId": session_id, "data": data}

        return make

    def lifeline(self, report: str, sessions: Sequence[str] | None = None) -> Make:
        """Return what makes reports that connections were found or lost, each of another session."""
        numbers = itertools.count()

        def make(_: int) -> Request:
            session_id = (sessions or self.sessions)[next(numbers)]
            self.gateway.statuses[session_id] = report
            return "/webhook", {"type": report, "sessionId": session_id, "data": {"phoneNumber": "5491100000000"}}

        return make


def customer(number: int) -> str:
    """Return one of five customers' addresses."""
    return f"54911123456{number % _CUSTOMERS:02}"


@asynccontextmanager
async def deployed(kind: str, folder: Path) -> AsyncIterator[Deployment]:
    """Run the servers, an empty database of a kind, and the whole service with a stub gateway and a stub worker."""
    async with AsyncExitStack() as ends:
        broker, postgres = Broker(), Postgres() if kind == "postgres" else None
        database = f"sqlite+aiosqlite:///{folder / 'bench.db'}"
        for server in filter(None, (broker, postgres)):
            ends.push_async_callback(server.close)
            await server.start()
        if postgres is not None:
            database = await postgres.create_database()
        system = System(await broker.renew(), database, folder, entry=be_started_anew)
        ends.push_async_callback(system.close)
        gateway, reader = StubGateway(), Reader()
        await ends.enter_async_context(gateway.serving(system.simulator_port))
        deployment = Deployment(system, broker, postgres, Meter(system, broker, postgres), gateway, reader)
        await system.migrate()
        for name in PROCESSES:
            await deployment.start(name)
        await ends.enter_async_context(reader.reading(system.amqp_url))
        yield deployment

"""The whole service as real processes, for tests: real HTTP, a real broker, a real database, the gateway simulator."""

import asyncio
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import aio_pika
import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.careful import CarefulTransport
from tests.servers import REPOSITORY, free_ports
from whatsapp_qr_contracts.commands import Command
from whatsapp_qr_contracts.partitions import partition_of

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SECONDS = 60.0
CONSUMERS = ("session-consumer", "conversation-consumer", "outbound-consumer")
ECHO_BOT = REPOSITORY / "contracts" / "examples" / "echo_bot.py"

# Processes are forked from one that has imported what they need: importing is most of the start of each.
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["tests.warm"])


def be_a_process(name: str, environment: dict[str, str], log: Path) -> None:
    """Be a process as `python -m service.cli NAME` would be, with its environment, folder and output."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(log.parent)
    output = log.open("a", buffering=1)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    if name == "echo-bot":
        runpy.run_path(str(ECHO_BOT), run_name="__main__")
        return
    from service import cli  # noqa: PLC0415  # only here: the parent is not one of them

    sys.argv = ["whatsapp-qr", name]
    cli.main()


Entry = Callable[[str, dict[str, str], Path], None]
"""What a forked process runs; the fault suite has one of its own."""


async def eventually(
    look: Callable[[], Awaitable[Any]], expected: Callable[[Any], bool] = bool, *, seconds: float = SECONDS
) -> Any:
    """Look until what is seen is as expected, and return it; fail with what was seen last."""
    deadline = time.monotonic() + seconds
    while True:
        seen = await look()
        if expected(seen):
            return seen
        assert time.monotonic() < deadline, f"not as expected after {seconds} s: {seen!r}"
        await asyncio.sleep(0.05)


class Process:
    """One process of the service, or the echo bot beside it."""

    def __init__(
        self, name: str, port: int, environment: dict[str, str], log: Path, entry: Entry = be_a_process
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._environment = environment
        self._log = log
        self._entry = entry
        self._process: BaseProcess | None = None

    async def start(self) -> None:
        self._log.touch()
        self._process = WARM.Process(target=self._entry, args=(self.name, self._environment, self._log), daemon=True)
        self._process.start()

    async def ready(self, http: httpx.AsyncClient) -> bool:
        assert self._process is not None
        assert self._process.exitcode is None, f"{self.name} ended:\n{self.log()[-3000:]}"
        if self.name == "echo-bot":
            return "answering" in self.log()
        path = "/health" if self.name == "simulator" else "/readyz"
        try:
            return (await http.get(self.url + path)).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def exitcode(self) -> int | None:
        """Its exit status once it has ended, negative for a signal."""
        return None if self._process is None else self._process.exitcode

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.exitcode is None

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    async def ended(self) -> int:
        """Wait until the process has ended and return its exit status."""
        assert self._process is not None
        await asyncio.to_thread(self._process.join, SECONDS)
        assert self._process.exitcode is not None, f"{self.name} does not end:\n{self.log()[-3000:]}"
        return self._process.exitcode

    async def stop(self) -> int:
        if self.alive:
            self.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        await self.ended()

    async def metric(self, http: httpx.AsyncClient, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels, as /metrics gives them."""
        text = (await http.get(self.url + "/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class System:
    """All processes of the service, its REST interface, its AMQP interface and the simulator's controls."""

    def __init__(
        self, amqp_url: str, database_url: str, folder: Path, *, entry: Entry = be_a_process, **settings: str
    ) -> None:
        self.amqp_url = amqp_url
        self.database_url = database_url
        self.folder = folder
        self.settings = settings
        self._entry = entry
        keys = {"X-API-Key": settings["API_KEYS"]} if "API_KEYS" in settings else {}
        self.transport = CarefulTransport()
        self.http = httpx.AsyncClient(transport=self.transport, timeout=30, headers=keys)
        self.processes: list[Process] = []
        self.connection: aio_pika.abc.AbstractRobustConnection | None = None
        self._jobs: Heard | None = None
        ports = free_ports(2)
        self.ingress_port, self.simulator_port = ports
        self.api = f"http://127.0.0.1:{self.ingress_port}/whatsapp-qr"
        self.controls = f"http://127.0.0.1:{self.simulator_port}/simulator"

    def _process(self, name: str, **settings: str) -> Process:
        health_port = free_ports(1)[0]
        port = {"ingress": self.ingress_port, "simulator": self.simulator_port}.get(name, health_port)
        environment = os.environ | {
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'contracts'}",
            "AMQP_URL": self.amqp_url,
            "DATABASE_URL": self.database_url,
            "WHATSAPP_QR_SERVICE_URL": f"http://127.0.0.1:{self.simulator_port}",
            "CALLBACK_URL": f"http://127.0.0.1:{self.ingress_port}",
            "HTTP_PORT": str(self.ingress_port),
            "HEALTH_PORT": str(health_port),
            "SIMULATOR_PORT": str(self.simulator_port),
            "LOG_FORMAT": "json",
            **self.settings,
            **settings,
        }
        return Process(name, port, environment, self.folder / f"{name}-{len(self.processes)}.log", self._entry)

    async def start(self, *names: str, **settings: str) -> list[Process]:
        """Start processes, with further settings where given, and wait until they are ready."""
        started = []
        for name in names or ("ingress", *CONSUMERS, "simulator"):
            process = self._process(name, **settings)
            self.processes.append(process)
            started.append(process)
            await process.start()
        for process in started:
            await eventually(lambda process=process: process.ready(self.http))
        return started

    def named(self, name: str) -> list[Process]:
        return [process for process in self.processes if process.name == name]

    async def migrate(self) -> None:
        process = self._process("migrate")
        await process.start()
        assert await process.ended() == 0, process.log()

    async def close(self) -> None:
        if self.connection is not None:
            await self.connection.close()
        await self.http.aclose()
        await asyncio.gather(*(process.stop() for process in self.processes))

    # REST

    async def post(self, path: str, **body: Any) -> httpx.Response:
        # With a key of its own a send may be repeated, as every careful caller does.
        headers = {"Idempotency-Key": str(uuid4())} if path == "/send" else {}
        return await self.http.post(f"{self.api}{path}", json=body, headers=headers)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.http.get(f"{self.api}{path}", params=query)

    async def status(self, session_id: str) -> str | None:
        answer = await self.get(f"/status/{session_id}")
        return answer.json()["session"]["status"] if answer.status_code == 200 else None

    async def message(self, message_id: str | UUID) -> dict[str, Any]:
        answer = await self.get(f"/messages/{message_id}")
        return answer.json()["data"] if answer.status_code == 200 else {}

    # Controls of the simulator

    async def control(self, path: str, **body: Any) -> Any:
        answer = await self.http.post(f"{self.controls}{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def faults(self, **faults: Any) -> None:
        answer = await self.http.put(f"{self.controls}/faults", json=faults)
        assert answer.is_success, answer.text

    async def sent(self, session_id: str) -> list[dict[str, Any]]:
        answer = await self.http.get(f"{self.controls}/sent", params={"sessionId": session_id})
        return answer.json()["sent"]

    async def connect(self, chatbot_id: UUID | None = None, *, phone: str = "5491100000000") -> tuple[UUID, str]:
        """Link a chatbot: init, wait for the QR code, scan it, wait for CONNECTED."""
        chatbot_id = chatbot_id or uuid4()
        answer = await self.post("/init", chatbotId=str(chatbot_id))
        assert answer.status_code in {200, 202}, answer.text  # 202: still under way on a busy machine
        session_id = answer.json()["sessionId"]
        await self.scan(session_id, phone)
        return chatbot_id, session_id

    async def scan(self, session_id: str, phone: str = "5491100000000") -> None:
        await eventually(lambda: self.status(session_id), lambda status: status == "QR_READY")
        await self.control(f"/sessions/{session_id}/scan", phoneNumber=phone)
        await eventually(lambda: self.status(session_id), lambda status: status == "CONNECTED")

    # AMQP

    async def channel(self) -> aio_pika.abc.AbstractChannel:
        if self.connection is None:
            self.connection = await aio_pika.connect_robust(self.amqp_url)
        return await self.connection.channel()

    async def hear(self, exchange: str = "whatsapp-qr.events", *keys: str) -> "Heard":
        """Collect the events that are published from now on."""
        channel = await self.channel()
        queue = await channel.declare_queue(exclusive=True)
        for key in keys or ("#",):
            await queue.bind(exchange, key)
        return await Heard.of(queue)

    async def jobs(self) -> "Heard":
        """Collect the jobs for the AI workers, all in one place: two consumers would share them out."""
        if self._jobs is None:
            channel = await self.channel()
            self._jobs = await Heard.of(await channel.get_queue("incoming-messages"))
        return self._jobs


NewSystem = Callable[..., AbstractAsyncContextManager[System]]
"""The fixture `new_system`: runs the whole service on an empty broker and a new database of a kind, with settings."""


class Heard:
    """Messages that were taken from a queue."""

    def __init__(self) -> None:
        self.messages: list[aio_pika.abc.AbstractIncomingMessage] = []

    @classmethod
    async def of(cls, queue: aio_pika.abc.AbstractQueue) -> "Heard":
        heard = cls()

        async def keep(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            heard.messages.append(message)
            await message.ack()

        await queue.consume(keep)
        return heard

    def ids(self) -> dict[str | None, set[str | None]]:
        """Return the message ids by type."""
        ids: dict[str | None, set[str | None]] = defaultdict(set)
        for message in self.messages:
            ids[message.type].add(message.message_id)
        return ids

    async def arrived(self, count: int = 1, of_type: str | None = None) -> list[aio_pika.abc.AbstractIncomingMessage]:
        """Wait for so many messages, of a type."""

        async def look() -> list[aio_pika.abc.AbstractIncomingMessage]:
            return [message for message in self.messages if of_type is None or message.type == of_type]

        return await eventually(look, lambda found: len(found) >= count)


async def send_by_amqp(system: System, command: Command, command_id: str) -> None:
    """Publish a command under its partition's routing key."""
    channel = await system.channel()
    exchange = await channel.get_exchange(command.exchange)
    partition = partition_of(str(command.chatbot_id), 4)
    message = aio_pika.Message(
        command.wire(), message_id=command_id, type=command.name, delivery_mode=2, content_type="application/json"
    )
    await exchange.publish(message, f"{command.name}.{partition}")
    await channel.close()


@asynccontextmanager
async def running(
    amqp_url: str,
    database_url: str,
    folder: Path,
    *,
    extra: tuple[str, ...] = (),
    entry: Entry = be_a_process,
    careful: bool = False,
    **settings: str,
) -> AsyncIterator[System]:
    """Run the whole service, with `extra` processes.

    A `careful` system repeats calls that are answered with 503, for tests that restart a server or the ingress.
    """
    system = System(amqp_url, database_url, folder, entry=entry, **settings)
    system.transport.careful = careful
    try:
        await system.migrate()
        await system.start()
        if extra:
            await system.start(*extra)
        yield system
    finally:
        await system.close()

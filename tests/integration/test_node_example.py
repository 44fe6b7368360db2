"""The Node.js example: an AI worker in another language, with the whole service and by itself on a bad day."""

import asyncio
import shutil
import signal
import subprocess
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import pytest

from schemas import node
from service.messaging import topology
from tests.amqp import Amqp
from tests.proxy import Proxy
from tests.servers import REPOSITORY
from tests.system import SECONDS, NewSystem, System, eventually
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import COMMANDS, JOBS

EXAMPLE = REPOSITORY / "contracts" / "examples" / "node"
CUSTOMER = "5491112345678"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with the packages that its lock names, as `npm ci` installs them."""
    folder = tmp_path_factory.mktemp("npm") / "node"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    node.install(folder)
    return folder


class Bot:
    """The example as a process."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    async def logged(self, text: str, count: int = 1) -> None:
        await eventually(lambda: asyncio.to_thread(self.log), lambda log: log.count(text) >= count)

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), SECONDS)


@asynccontextmanager
async def started(example: Path, amqp_url: str) -> AsyncIterator[Bot]:
    """Run the example, ready to answer; nothing of it outlives the test."""
    log = example / f"{uuid4().hex}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            node.node(), example / "echo_bot.js", env={"AMQP_URL": amqp_url}, stdout=output, stderr=output
        )
    bot = Bot(process, log)
    try:
        await bot.logged("answering")
        yield bot
    finally:
        if process.returncode is None:
            await bot.kill()


@pytest.fixture(scope="module")
async def system(new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service without a bot and without pacing."""
    async with new_system(SEND_RATE="1000", SEND_BURST="1000") as system:
        yield system


async def write(system: System, session_id: str, text: str) -> None:
    """Let the customer write."""
    await system.control(f"/sessions/{session_id}/customers", **{"from": CUSTOMER, "message": text})


async def echoes(system: System, session_id: str, count: int) -> list[str]:
    """Wait for so many messages at the phone, and return their texts."""
    sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= count)
    return [message["message"] for message in sent]


def test_its_types_are_those_of_the_schemas(example: Path) -> None:
    """The committed types are what the JSON Schemas say, and the example keeps to them."""
    types = subprocess.run(
        [node.node(), example / "types.js", "--check", REPOSITORY / "schemas" / "messages"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (types.returncode, types.stderr) == (0, "")
    compiler = example / "node_modules" / "typescript" / "bin" / "tsc"
    checked = subprocess.run([node.node(), compiler], cwd=example, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_its_lock_names_no_registry() -> None:
    """It installs from whatever registry npm is set to, and from none but by checksum."""
    lock = (EXAMPLE / "package-lock.json").read_text()
    assert "://" not in "".join(line for line in lock.splitlines() if '"url"' not in line)
    assert '"resolved"' not in lock
    assert lock.count('"integrity"') == lock.count('    "node_modules/')


async def test_a_customer_is_answered(system: System, example: Path) -> None:
    """By a command whose id is uuid5 of the job's, the same in every language; SIGTERM ends the bot cleanly."""
    _, session_id = await system.connect()
    jobs, commands = await system.hear(JOBS, IncomingJob.name), await system.hear(COMMANDS, "message.send")
    events = await system.hear()
    async with started(example, system.amqp_url) as bot:
        await write(system, session_id, "¿Qué tal? 🙂")
        assert await echoes(system, session_id, 1) == ["¿Qué tal? 🙂"]
        (job,), (command,) = await jobs.arrived(), await commands.arrived()
        assert job.message_id is not None
        assert command.message_id == str(uuid5(UUID(job.message_id), "answer"))
        assert (command.correlation_id, command.type, command.delivery_mode) == (job.message_id, "message.send", 2)
        (read,) = await events.arrived(1, "message.read")
        assert read.correlation_id == command.message_id
        assert await bot.stop() == 0
    async with Amqp(system.amqp_url) as amqp:
        await amqp.until_waiting(IncomingJob.name, 0)


async def test_a_killed_bot_loses_and_doubles_nothing(system: System, example: Path) -> None:
    """Killed three times while 60 messages come in, it answers each of them once, in order."""
    _, session_id = await system.connect()
    texts = [f"message {number}" for number in range(60)]

    async def customer() -> None:
        for text in texts:
            await write(system, session_id, text)

    writing = asyncio.create_task(customer())
    for seen in (5, 20, 35):
        async with started(example, system.amqp_url) as bot:
            await echoes(system, session_id, seen)
            await bot.kill()
    await writing
    async with started(example, system.amqp_url):
        assert await echoes(system, session_id, len(texts)) == texts


async def test_a_lost_connection_is_made_anew(system: System, example: Path) -> None:
    """The same process goes on, and answers what was written meanwhile."""
    _, session_id = await system.connect()
    async with Proxy(system.amqp_url) as proxy, started(example, proxy.url) as bot:
        await write(system, session_id, "before")
        await echoes(system, session_id, 1)
        proxy.cut()
        await write(system, session_id, "meanwhile")
        await bot.logged("answering", 2)
        await write(system, session_id, "after")
        assert await echoes(system, session_id, 3) == ["before", "meanwhile", "after"]
        assert await bot.stop() == 0


async def test_what_cannot_be_answered_does_not_stop_the_bot(clean_broker: str, example: Path) -> None:
    """No JSON, no job, or an id that is none goes to the dead letters; what follows is answered."""
    await topology.declare(clean_broker, 1)
    job = IncomingJob.model_validate(IncomingJob.example()).wire()
    async with Amqp(clean_broker) as amqp, started(example, clean_broker):
        answers = await amqp.bound(COMMANDS, "message.send")
        bad = [(b"not json", str(uuid4())), (b"{}", str(uuid4())), (b"null", str(uuid4())), (job, "no uuid")]
        for body, message_id in [*bad, (job, str(uuid4()))]:
            await amqp.publish(body, IncomingJob.name, JOBS, message_id=message_id)
        await amqp.take(answers)
        dead = await amqp.take(topology.DEAD_LETTERS, len(bad))
    assert [letter.body for letter in dead] == [body for body, _ in bad]

"""The echo bot, the example of an AI worker: with the whole service by AMQP alone, and by itself on a bad day."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import pytest

from service.messaging import topology
from tests.amqp import Amqp
from tests.proxy import Proxy
from tests.servers import Broker
from tests.system import NewSystem, Process, System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import DisconnectSession, InitializeSession
from whatsapp_qr_contracts.events import MessageReceived, MessageSent, SessionQrReady
from whatsapp_qr_contracts.jobs import IncomingJob, IncomingMetadata
from whatsapp_qr_contracts.message import COMMANDS, JOBS

CUSTOMER = "5491112345678"
UNPACED = {"SEND_RATE": "1000", "SEND_BURST": "1000"}


def a_job(text: str = "Hola", customer: str = CUSTOMER) -> bytes:
    """A job as the service hands it over."""
    origin = IncomingMetadata(whatsapp_message_id="WA1", timestamp=1_700_000_000)
    return IncomingJob(
        conversation_id=uuid4(),
        message_id=uuid4(),
        content=text,
        chatbot_id=uuid4(),
        external_user_id=customer,
        metadata=origin,
    ).wire()


async def write(system: System, session_id: str, text: str) -> str:
    """Let the customer write, and return WhatsApp's id of the message."""
    answer = await system.control(f"/sessions/{session_id}/customers", **{"from": CUSTOMER, "message": text})
    return str(answer["messageId"])


async def echoes(system: System, session_id: str, count: int) -> list[str]:
    """Wait for so many messages at the phone, and return their texts."""
    sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= count)
    return [message["message"] for message in sent]


def traceback_free(bot: Process) -> bool:
    """Whether the bot's output, both streams, shows no traceback."""
    return "Traceback" not in bot.log()


# With the whole service


async def test_the_whole_flow_by_amqp_alone(clean_broker: str, database_url: str, tmp_path: Path) -> None:
    """Linked, answered and unlinked without one REST call; each step names the one that caused it."""
    async with running(clean_broker, database_url, tmp_path, extra=("echo-bot",)) as system:
        events, reports, commands = [
            await system.hear(f"whatsapp-qr.{exchange}") for exchange in ("events", "gateway", "commands")
        ]
        jobs = await system.hear(JOBS, IncomingJob.name)
        chatbot_id = uuid4()

        # a command, the QR code, and the phone that scans it
        await send_by_amqp(system, InitializeSession(chatbot_id=chatbot_id), "link it")
        (connecting,) = await events.arrived(1, "session.connecting")
        assert connecting.correlation_id == "link it"
        (shown,) = await events.arrived(1, "session.qr_ready")
        qr_ready = SessionQrReady.model_validate_json(shown.body)
        assert qr_ready.qr_code.startswith("data:image/png;base64,")
        assert shown.correlation_id == (await reports.arrived(1, "gateway.qr"))[0].message_id
        await system.control(f"/sessions/{qr_ready.session_id}/scan", phoneNumber="5491100000000")
        (connected,) = await events.arrived(1, "session.connected")
        assert connected.correlation_id == (await reports.arrived(1, "gateway.connected"))[0].message_id

        # a customer writes, the bot answers
        whatsapp_id = await write(system, qr_ready.session_id, "Hola")
        (report,) = await reports.arrived(1, "gateway.message")
        (job,) = await jobs.arrived()
        (heard,) = await events.arrived(1, "message.received")
        assert (heard.correlation_id, job.correlation_id) == (report.message_id, report.message_id)
        received = MessageReceived.model_validate_json(heard.body)
        assert (received.content, received.metadata.whatsapp_message_id) == ("Hola", whatsapp_id)
        answer = (await commands.arrived(1, "message.send"))[0]
        assert job.message_id is not None
        assert (answer.message_id, answer.correlation_id) == (
            str(uuid5(UUID(job.message_id), "answer")),
            job.message_id,
        )
        assert (answer.delivery_mode, answer.content_type) == (2, "application/json")

        # the phone gets it
        for status in ("sent", "delivered", "read"):
            await events.arrived(1, f"message.{status}")
        found = (event for event in events.messages if event.correlation_id == answer.message_id)
        own = sorted(found, key=lambda event: int(json.loads(event.body)["version"]))  # two processes tell them
        assert [event.type for event in own] == ["message.sent", "message.delivered", "message.read"]
        sent = MessageSent.model_validate_json(own[0].body)
        assert sent.message_id == uuid5(chatbot_id, answer.message_id)
        assert sent.conversation_id == received.conversation_id
        (echo,) = await system.sent(qr_ready.session_id)
        assert (echo["messageId"], echo["to"], echo["message"]) == (sent.whatsapp_message_id, CUSTOMER, "Hola")

        # and the end of it
        await send_by_amqp(system, DisconnectSession(chatbot_id=chatbot_id), "unlink it")
        (disconnected,) = await events.arrived(1, "session.disconnected")
        assert disconnected.correlation_id == "unlink it"


@pytest.fixture(scope="module")
async def system(new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service without a bot and without pacing."""
    async with new_system(**UNPACED) as system:
        yield system


async def test_a_job_that_comes_twice_is_answered_once(system: System) -> None:
    """The same job again, under its id, makes the same command again and no second message at the phone."""
    _, session_id = await system.connect()
    jobs, commands = await system.hear(JOBS, IncomingJob.name), await system.hear(COMMANDS, "message.send")
    (bot,) = await system.start("echo-bot")
    await write(system, session_id, "Hola")
    (job,) = await jobs.arrived()
    await echoes(system, session_id, 1)
    async with Amqp(system.amqp_url) as amqp:
        await amqp.publish(job.body, IncomingJob.name, JOBS, message_id=job.message_id)
    await write(system, session_id, "Again")
    assert await echoes(system, session_id, 2) == ["Hola", "Again"]
    first, second, third = await commands.arrived(3)
    assert (first.message_id, first.body) == (second.message_id, second.body)
    assert third.message_id != first.message_id
    assert await bot.stop() == 0


async def test_a_killed_bot_leaves_nothing_unanswered(system: System) -> None:
    """Killed three times while 60 messages come in, it answers each of them once, in order."""
    _, session_id = await system.connect()
    texts = [f"message {number}" for number in range(60)]

    async def customer(*texts: str) -> None:
        for text in texts:
            await write(system, session_id, text)
            await asyncio.sleep(0.05)

    writing = asyncio.create_task(customer(*texts[:50]))
    for seen in (5, 20, 35):
        (bot,) = await system.start("echo-bot")
        await echoes(system, session_id, seen)
        await bot.kill()
    await writing
    await customer(*texts[50:])
    assert len(await system.sent(session_id)) < len(texts)
    (bot,) = await system.start("echo-bot")
    assert await echoes(system, session_id, len(texts)) == texts
    assert await bot.stop() == 0


async def test_the_bot_outlives_its_broker(breakable_broker: Broker, sqlite_database: str, tmp_path: Path) -> None:
    """Through a restart of the broker the same process goes on, and answers what was written meanwhile."""
    async with running(
        breakable_broker.url, sqlite_database, tmp_path, careful=True, extra=("echo-bot",), **UNPACED
    ) as system:
        _, session_id = await system.connect()
        await write(system, session_id, "before")
        await echoes(system, session_id, 1)
        (bot,) = system.named("echo-bot")
        await breakable_broker.stop()
        await eventually(lambda: asyncio.to_thread(bot.log), lambda log: "trying again" in log)
        await write(system, session_id, "meanwhile")
        await breakable_broker.start()
        await echoes(system, session_id, 2)
        await write(system, session_id, "after")
        assert await echoes(system, session_id, 3) == ["before", "meanwhile", "after"]
        assert bot.alive
        assert traceback_free(bot)


# By itself


@pytest.fixture
async def alone(clean_broker: str, tmp_path: Path) -> AsyncIterator[System]:
    """An empty broker and no process of the service."""
    system = System(clean_broker, "", tmp_path)
    yield system
    await system.close()


async def test_what_cannot_be_answered_does_not_stop_the_bot(alone: System) -> None:
    """A bad body, a bad id or an address nobody can write to goes to the dead letters; what follows is answered."""
    await topology.declare(alone.amqp_url, 1)
    (bot,) = await alone.start("echo-bot")
    async with Amqp(alone.amqp_url) as amqp:
        answers = await amqp.bound(COMMANDS, "message.send")
        bad = [(b"not json", str(uuid4())), (b"{}", str(uuid4())), (a_job(), "no uuid"), (a_job(), None)]
        bad.append((a_job(customer="status@broadcast"), str(uuid4())))
        for body, message_id in bad:
            await amqp.publish(body, IncomingJob.name, JOBS, message_id=message_id)
        await amqp.publish(a_job(""), IncomingJob.name, JOBS, message_id=str(uuid4()))
        await amqp.publish(a_job("Hola"), IncomingJob.name, JOBS, message_id=str(uuid4()))
        found = [json.loads(answer.body)["message"] for answer in await amqp.take(answers, 2)]
        assert found == ["I can read only text.", "Hola"]
        dead = await amqp.take(topology.DEAD_LETTERS, len(bad))
        assert [letter.body for letter in dead] == [body for body, _ in bad]
        assert {letter.headers["x-first-death-reason"] for letter in dead} == {"rejected"}  # not delivered in circles
        await amqp.until_waiting(IncomingJob.name, 0)
    assert await bot.stop() == 0
    assert traceback_free(bot)


async def test_an_answer_that_reaches_no_queue_is_not_acknowledged(alone: System) -> None:
    """While nobody would get the answer its job is kept, and the next one waits behind it."""
    async with Amqp(alone.amqp_url) as amqp:
        await amqp.channel.declare_exchange(COMMANDS, "topic", durable=True)
        jobs = await amqp.channel.declare_exchange(JOBS, "direct", durable=True)
        queue = await amqp.channel.declare_queue(IncomingJob.name, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(jobs, IncomingJob.name)
        for text in ("first", "second"):
            await amqp.publish(a_job(text), IncomingJob.name, JOBS, message_id=str(uuid4()))
        (bot,) = await alone.start("echo-bot")
        await eventually(lambda: asyncio.to_thread(bot.log), lambda log: "trying again after PublishError" in log)
        answers = await amqp.bound(COMMANDS, "message.send")
        found = [json.loads(answer.body)["message"] for answer in await amqp.take(answers, 2)]
        assert found == ["first", "second"]
    assert await bot.stop() == 0


async def test_the_bot_may_start_first(alone: System) -> None:
    """While there is no queue yet it waits, and then begins by itself."""
    bot = alone._process("echo-bot")
    alone.processes.append(bot)
    await bot.start()
    await eventually(lambda: asyncio.to_thread(bot.log), lambda log: "ChannelNotFoundEntity" in log)
    await topology.declare(alone.amqp_url, 1)
    async with Amqp(alone.amqp_url) as amqp:
        answers = await amqp.bound(COMMANDS, "message.send")
        await amqp.publish(a_job(), IncomingJob.name, JOBS, message_id=str(uuid4()))
        await amqp.take(answers)
    assert traceback_free(bot)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_bot_ends_cleanly(alone: System, number: signal.Signals) -> None:
    """Told to stop while it waits for work, it ends at once with status 0 and without a traceback."""
    await topology.declare(alone.amqp_url, 1)
    (bot,) = await alone.start("echo-bot")
    bot.send_signal(number)
    assert await bot.ended() == 0
    assert traceback_free(bot)


async def test_a_bot_without_a_broker_ends_cleanly(tmp_path: Path) -> None:
    """Told to stop while it looks for a broker, it ends with status 0 and without a traceback."""
    system = System("amqp://127.0.0.1:1/", "", tmp_path)
    bot = system._process("echo-bot")
    system.processes.append(bot)
    await bot.start()
    await eventually(lambda: asyncio.to_thread(bot.log), lambda log: "trying again" in log)
    assert await bot.stop() == 0
    assert traceback_free(bot)
    await system.close()


async def test_a_busy_bot_finishes_what_it_has_begun(alone: System) -> None:
    """Told to stop in the middle of many jobs: each is either answered and acknowledged, or was not touched."""
    await topology.declare(alone.amqp_url, 1)
    async with Amqp(alone.amqp_url) as amqp, Proxy(alone.amqp_url) as proxy:
        answers = await amqp.bound(COMMANDS, "message.send")
        alone.amqp_url = proxy.url
        ids = [str(uuid4()) for _ in range(500)]
        for message_id in ids:
            await amqp.publish(a_job(), IncomingJob.name, JOBS, message_id=message_id)
        proxy.slow(0.02)  # or it would have answered all of them while the test looks
        (bot,) = await alone.start("echo-bot")
        await eventually(lambda: amqp.waiting(answers))
        proxy.hold_answers()
        bot.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert bot.alive  # it waits for a confirmation, or for a job that is on its way
        proxy.heal()
        assert await bot.ended() == 0
        assert traceback_free(bot)
        answered = await amqp.take(answers, await amqp.waiting(answers))
        left = await amqp.take(IncomingJob.name, await amqp.waiting(IncomingJob.name))
    assert left
    assert [answer.correlation_id for answer in answered] + [job.message_id for job in left] == ids

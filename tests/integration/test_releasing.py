"""Work is held while a part is away, and given up to whoever can do it when that lasts; nothing is ever nacked."""

import ast
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aio_pika import IncomingMessage
from prometheus_client import REGISTRY

from service.domain.dead_letters import DeadLetter
from service.errors import DatabaseUnavailable
from service.messaging import connections, retrying, subscriptions
from service.messaging.consuming import Consumer
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from tests.amqp import SECONDS, Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from tests.conftest import Breakable
from tests.proxy import Proxy
from tests.servers import REPOSITORY
from tests.system import CONSUMERS, Process, System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage

QUEUE = CONVERSATIONS.name
SERVICE = REPOSITORY / "service"


class Database:
    """A part that may be away, and who asked whether it is there again."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    async def work(self, _message: SendMessage) -> None:
        if self.away:
            raise DatabaseUnavailable("away")

    async def check(self) -> None:
        self.asked += 1
        if self.away:
            raise DatabaseUnavailable("away")


def a_consumer(
    url: str, handler: Handler, publisher: Publisher, retry: RetryWhileUnavailable, dead: list[DeadLetter] | None = None
) -> Consumer:
    """Build a consumer of the conversations; without a list for them there may be no dead letters."""

    async def keep_dead_letter(letter: DeadLetter) -> None:
        assert dead is not None, letter
        dead.append(letter)

    return Consumer(
        url, CONVERSATIONS, handler, keep_dead_letter=keep_dead_letter, publisher=publisher, retry=retry, prefetch=64
    )


@asynccontextmanager
async def impatient(
    url: str,
    handler: Handler,
    publisher: Publisher,
    database: Database,
    *,
    patience: float = 0.5,
    dead: list[DeadLetter] | None = None,
) -> AsyncIterator[Consumer]:
    """Consume the conversations; give up what is held for so many seconds."""
    consumer = a_consumer(url, handler, publisher, RetryWhileUnavailable(patience), dead)
    consumer.start(check=database.check)
    try:
        await until(lambda: consumer.subscriptions.ready)
        yield consumer
    finally:
        await consumer.stop(SECONDS)


def counted(name: str, **labels: str) -> float:
    """Return a metric of this process."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("side_by_side", [True, False], ids=["side by side", "in batches"])
async def test_held_for_too_long_is_given_up(clean_broker: str, *, side_by_side: bool) -> None:
    """What one process holds for too long another does, in order; the first comes back when its part is there again."""
    database = Database()
    broken, healthy = (Handler(work, side_by_side=side_by_side) for work in (database.work, None))
    chatbot_id = a_chatbot()
    texts = [str(number) for number in range(10)]
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        impatient(clean_broker, broken, publisher, database) as consumer,
    ):
        before = counted("whatsapp_qr_retrying")
        database.away = True
        await send(publisher, chatbot_id, *texts)
        await until(lambda: counted("whatsapp_qr_retrying") > before)
        async with consuming(clean_broker, healthy, publisher, stands_by=True):
            await until(lambda: healthy.done == texts)
            assert set(broken.begun) == {"0"}
            assert not consumer.ready
            assert not consumer.subscriptions.consuming
            await until(lambda: database.asked >= 2)
            assert counted("whatsapp_qr_retrying") > before
        await send(publisher, chatbot_id, "later")
        database.away = False
        await until(lambda: broken.done == ["later"])
        await until(lambda: consumer.ready)
        await amqp.until_waiting(QUEUE, 0)
    assert counted("whatsapp_qr_retrying") == before


async def test_what_is_under_way_ends_before_the_channel_closes(clean_broker: str) -> None:
    """A give-up waits for handlers that are not held: they are done once, by who began them, and nothing overtakes."""
    database = Database()
    held, slow = a_chatbot(), a_chatbot()
    release = asyncio.Event()

    async def work(message: SendMessage) -> None:
        if message.chatbot_id == held:
            await database.work(message)
        else:
            await release.wait()

    broken, healthy = Handler(work), Handler()
    async with (
        publishing(clean_broker) as publisher,
        impatient(clean_broker, broken, publisher, database) as consumer,
        consuming(clean_broker, healthy, publisher, stands_by=True),
    ):
        database.away = True
        await send(publisher, slow, "slow 1", "slow 2")
        await send(publisher, held, "held 1", "held 2")
        await until(lambda: not consumer.subscriptions.consuming)
        assert healthy.begun == []
        release.set()
        await until(lambda: len(healthy.done) == 3)
        assert broken.done == ["slow 1"]
        assert [text for text in healthy.done if text.startswith("held")] == ["held 1", "held 2"]
        assert "slow 2" in healthy.done
        assert set(broken.begun) == {"slow 1", "held 1"}


async def test_give_up_over_a_lost_connection(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker itself is away, giving up waits for nothing, and nobody reconnects behind our back."""
    monkeypatch.setattr(subscriptions, "GRACE_SECONDS", 600)
    monkeypatch.setattr(connections, "_CLOSE_SECONDS", 600)
    database = Database()
    handler = Handler(database.work)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        impatient(proxy.url, handler, publisher, database) as consumer,
    ):
        database.away = True
        proxy.refuse()
        drain = asyncio.create_task(consumer._retry(database.check))  # what a drain does: bound to no channel
        with pytest.raises(Stopping):
            await asyncio.wait_for(drain, SECONDS)
        await until(lambda: not any(partition.started for partition in consumer.subscriptions.partitions))
        await until(lambda: database.asked >= 5)
        accepted, asked = proxy.accepted, database.asked
        proxy.heal()
        await until(lambda: database.asked >= asked + 2)  # each some seconds after the one before
        assert proxy.accepted == accepted
        assert not consumer.ready
        database.away = False
        await until(lambda: consumer.ready)
        await send(publisher, a_chatbot(), "1")
        await until(lambda: handler.done == ["1"])


async def test_it_stops_while_it_waits_for_its_parts(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has given up and probes ends at once when it is told to, not after its pause or its grace."""
    database = Database()
    handler = Handler(database.work)
    async with publishing(clean_broker) as publisher, impatient(clean_broker, handler, publisher, database) as consumer:
        database.away = True
        await send(publisher, a_chatbot(), "1")
        await until(lambda: database.asked >= 4)
        # Whatever it could wait for lasts longer than this test does.
        monkeypatch.setattr(subscriptions, "_END_SECONDS", 2 * SECONDS)
        monkeypatch.setitem(RetryWhileUnavailable.__call__.__kwdefaults__, "longest", 2 * SECONDS)  # type: ignore[attr-defined]
        monkeypatch.setattr(retrying, "backoff", lambda _failures: 2 * SECONDS)
        asked = database.asked
        await until(lambda: database.asked > asked)
        async with asyncio.timeout(SECONDS):
            await consumer.stop(2 * SECONDS)
        assert not consumer.subscriptions.consuming


async def test_fruitless_give_ups_become_rare(clean_broker: str) -> None:
    """A message that alone cannot be done is not given up again and again: each time counts as a delivery of others."""
    database = Database()
    database.away = True
    handler = Handler(database.work)

    async def is_there() -> None:
        database.asked += 1

    database.check = is_there  # type: ignore[method-assign]
    async with publishing(clean_broker) as publisher:
        await send(publisher, a_chatbot(), "1")
        async with impatient(clean_broker, handler, publisher, database, patience=0.2) as consumer:
            await until(lambda: consumer.subscriptions._retry.patience >= 1.6)


async def test_subscribed_soon_after_the_broker_is_there(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for its broker at the start looks again within 0.8 s, however long it has waited."""
    pauses: list[float] = []
    pause = retrying._pause

    async def recorded(seconds: float, leaving: asyncio.Event) -> None:
        pauses.append(seconds)
        await pause(seconds, leaving)

    monkeypatch.setattr(retrying, "_pause", recorded)
    async with publishing(clean_broker, 4) as publisher, Proxy(clean_broker) as proxy:
        proxy.refuse()
        consumer = a_consumer(proxy.url, Handler(), publisher, RetryWhileUnavailable())
        consumer.start()
        await until(lambda: len(pauses) >= 8)  # the eighth would be one of several seconds
        assert not consumer.ready
        proxy.heal()
        await until(lambda: consumer.ready)
        assert max(pauses) <= 0.8
        await consumer.stop(SECONDS)


def incoming(session_id: str, text: str) -> dict[str, Any]:
    """A customer's message as the gateway posts it."""
    times = {"timestamp": int(time.time()), "messageId": f"WA{uuid4().hex}"}
    return {"sessionId": session_id, "from": "5491112345678", "message": text, **times}


async def flow(system: System, chatbot_id: UUID, session_id: str, texts: list[str]) -> None:
    """Let messages go both ways."""
    for text in texts:
        assert (await system.post("/incoming", **incoming(session_id, text))).status_code == 200
        command = SendMessage(chatbot_id=chatbot_id, to="5491112345678", message=text)
        await send_by_amqp(system, command, str(uuid4()))


async def arrived(system: System, session_id: str, texts: list[str]) -> None:
    """Wait until they all have, and check that each did once, in order."""
    sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= len(texts))
    assert [message["message"] for message in sent] == texts

    async def jobs() -> dict[str | None, str]:
        heard = [(job.message_id, json.loads(job.body)) for job in (await system.jobs()).messages]
        return {job_id: body["content"] for job_id, body in heard if body["chatbotId"] in session_id}

    assert list((await eventually(jobs, lambda found: len(found) >= len(texts))).values()) == texts


async def owned(system: System, process: Process) -> float:
    """Return how many partitions a process is active on."""
    return await process.metric(system.http, "whatsapp_qr_partitions_owned")


FAST = {"SEND_RATE": "1000", "SEND_BURST": "1000", "HEARTBEAT_PERIOD": "1.5", "RELEASE_AFTER": "2"}


async def test_a_healthy_process_takes_over_from_a_cut_off_one(
    clean_broker: str, postgres_database: str, tmp_path: Path
) -> None:
    """A consumer without its database gives its partitions to one that has it; it returns when its path heals."""
    async with (
        Proxy(postgres_database) as proxy,
        running(clean_broker, postgres_database, tmp_path, careful=True, **FAST) as system,
    ):
        cut_off = await system.start("conversation-consumer", "outbound-consumer", DATABASE_URL=proxy.url)
        linked = [await system.connect(a_chatbot(number, 4)) for number in range(4)]  # one in each partition
        for process in cut_off:
            await eventually(lambda process=process: owned(system, process), bool)
        texts = [str(number) for number in range(20)]
        await system.jobs()
        proxy.refuse()
        flowing = asyncio.gather(*(flow(system, *link, texts) for link in linked))
        for process in cut_off:
            await eventually(lambda process=process: process.metric(system.http, "whatsapp_qr_retrying"))
            assert not await process.ready(system.http)
            await eventually(lambda process=process: owned(system, process), lambda count: count == 0)
        await flowing
        for _, session_id in linked:
            await arrived(system, session_id, texts)
        for process in cut_off:
            assert not await process.ready(system.http)
        proxy.heal()
        for process in cut_off:
            await eventually(lambda process=process: process.ready(system.http))
            await eventually(lambda process=process: owned(system, process), bool)


async def test_lanes_that_wait_move_to_a_healthy_process(
    clean_broker: str, postgres_database: str, tmp_path: Path
) -> None:
    """Who is cut off from the database gives its partitions up also where no job comes that would tell it so."""
    fast = {**FAST, "PARTITIONS": "1", "SEND_BACKOFF": "1", "SEND_ATTEMPTS": "100"}
    async with (
        Proxy(postgres_database) as proxy,
        running(clean_broker, postgres_database, tmp_path, careful=True, **fast) as system,
    ):
        (healthy,) = system.named("outbound-consumer")
        (cut_off,) = await system.start("outbound-consumer", DATABASE_URL=proxy.url)
        assert await healthy.stop() == 0
        await eventually(lambda: owned(system, cut_off), bool)
        await system.start("outbound-consumer")
        chatbot_id, session_id = await system.connect()
        await system.faults(failure_rate=1)
        await system.post("/send", chatbotId=str(chatbot_id), to="5491112345678", message="waits")
        attempts = partial(cut_off.metric, system.http, "whatsapp_qr_sends_total")
        await eventually(attempts, lambda count: count >= 2)  # no job is left that would tell it
        proxy.refuse()
        await system.faults()
        sent = await eventually(lambda: system.sent(session_id))
        assert [message["message"] for message in sent] == ["waits"]
        await eventually(lambda: owned(system, cut_off), lambda count: count == 0)


@pytest.mark.one_database("sqlite")
async def test_everything_returns_after_a_long_outage(
    clean_broker: str, breakable_database: Breakable, tmp_path: Path
) -> None:
    """With the database away for longer than work is held all give up, say so, and come back without help."""
    async with running(clean_broker, breakable_database.url, tmp_path, careful=True, **FAST) as system:
        chatbot_id, session_id = await system.connect()
        await system.jobs()
        texts = [str(number) for number in range(10)]
        consumers = [process for process in system.processes if process.name in CONSUMERS[1:]]
        async with breakable_database.away():
            await flow(system, chatbot_id, session_id, texts)
            conversations, _ = consumers
            await eventually(lambda: conversations.metric(system.http, "whatsapp_qr_retrying"))
            await eventually(lambda: owned(system, conversations), lambda count: count == 0)
            assert not await conversations.ready(system.http)
        for process in consumers:
            await eventually(lambda process=process: process.ready(system.http))
        await arrived(system, session_id, texts)
        async with Amqp(clean_broker) as amqp:
            assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_metrics_count_how_messages_end(clean_broker: str) -> None:
    """done, rerouted and dead_letter are counted by type; what anybody makes up is `unknown`."""

    async def work(message: SendMessage) -> None:
        if message.message == "bad":
            raise LookupError("no such thing")

    def handled(name: str, outcome: str) -> float:
        return counted("whatsapp_qr_handled_total", queue=QUEUE, type=name, outcome=outcome)

    def seen() -> list[float]:
        outcomes = [handled("message.send", outcome) for outcome in ("done", "rerouted", "dead_letter")]
        reasons = [
            counted("whatsapp_qr_dead_letters_total", reason=code) for code in ("handler_failed", "unknown_type")
        ]
        return [*outcomes, handled("unknown", "dead_letter"), *reasons]

    before = seen()
    handler, dead = Handler(work), list[DeadLetter]()
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead),
    ):
        await send(publisher, a_chatbot(0, 2), "good", "bad")
        await amqp.publish(a_message(a_chatbot(1, 2)).wire(), "message.send", type="message.send", message_id="m")
        await amqp.publish(b"{}", type="made.up.1", message_id="m")
        await until(lambda: len(handler.done) == 2)
        await until(lambda: [now - then for now, then in zip(seen(), before, strict=True)] == [2, 1, 1, 1, 1, 1])
    assert len(dead) == 2
    assert counted("whatsapp_qr_handled_total", queue=QUEUE, type="made.up.1", outcome="dead_letter") == 0


async def test_nothing_is_nacked(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a message ends, no nack or reject goes out."""
    refused: list[str] = []
    for name in ("nack", "reject"):
        monkeypatch.setattr(IncomingMessage, name, lambda *_args, name=name, **_more: refused.append(name))
    database = Database()

    async def work(message: SendMessage) -> None:
        if message.message == "bad":
            raise LookupError("no such thing")
        if message.message == "away":
            await database.work(message)

    handler, dead = Handler(work), list[DeadLetter]()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        impatient(clean_broker, handler, publisher, database, dead=dead),
    ):
        database.away = True
        await amqp.publish(b"?", type="message.send", message_id="m")
        await send(publisher, a_chatbot(), "good", "bad")
        await send(publisher, a_chatbot(), "away")
        await until(lambda: database.asked >= 2)
        database.away = False
        await until(lambda: sorted(handler.done) == ["away", "good"])
        await until(lambda: len(dead) == 2)
    assert refused == []


def test_no_code_refuses_a_message() -> None:
    """Nowhere in the service is a message nacked or rejected, by hand or by an acknowledgement policy."""
    forbidden = {"nack", "reject", "basic_nack", "basic_reject", "NackMessage", "RejectMessage"} | {
        "NACK_ON_ERROR",
        "REJECT_ON_ERROR",
    }
    used = {
        f"{file.relative_to(SERVICE)}: {name}"
        for file in SERVICE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (name := getattr(node, "attr", getattr(node, "id", None))) in forbidden
    }
    assert used == set()

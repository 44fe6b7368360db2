"""How a message can end on a real broker: done, held, dead letter, left; and never any other way."""

import asyncio
import json
from typing import Any

import pytest

from service.errors import DatabaseUnavailable, Undeliverable
from service.messaging.publishing import Publisher
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from tests.amqp import Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from tests.proxy import Proxy
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.jobs import SendJob

QUEUE = CONVERSATIONS.name


async def test_unavailable_is_held(clean_broker: str) -> None:
    """While a part is away the message waits in the process, which is not ready; then it is done, once, in order."""
    away = True
    failures = 0

    async def work(_message: SendMessage) -> None:
        nonlocal failures
        if away:
            failures += 1
            raise DatabaseUnavailable("away")

    handler = Handler(work)
    chatbot_id = a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher) as consumer,
    ):
        assert consumer.ready
        await send(publisher, chatbot_id, "1", "2")
        await until(lambda: failures >= 2)
        assert not consumer.ready
        assert handler.begun == ["1"] * failures
        assert await amqp.waiting(QUEUE) == 0
        away = False
        await until(lambda: handler.done == ["1", "2"])
        await until(lambda: consumer.ready)
        assert not any(envelope.redelivered for envelope in handler.envelopes)
        assert await amqp.waiting(DEAD_LETTERS) == 0
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(QUEUE) == 0


async def test_other_error_is_tried_three_times(clean_broker: str) -> None:
    """An unexpected error is tried 3 times, then kept once with bytes, traceback and origin; the queue goes on."""

    async def work(message: SendMessage) -> None:
        if message.message == "bad":
            raise LookupError("no such thing")

    handler = Handler(work)
    chatbot_id = a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher) as consumer,
    ):
        await send(publisher, chatbot_id, "bad", "good")
        await until(lambda: handler.done == ["good"])
        (dead,) = await amqp.take(DEAD_LETTERS)
        assert consumer.ready
    assert handler.begun == ["bad"] * 3 + ["good"]
    assert not any(envelope.redelivered for envelope in handler.envelopes)
    assert dead.body == a_message(chatbot_id, "bad").wire()
    assert (dead.message_id, dead.correlation_id, dead.type) == ("bad", "bad", "message.send")
    assert (dead.routing_key, dead.headers["reason"]) == ("handler_failed", "handler_failed")
    assert "LookupError: no such thing" in str(dead.headers["detail"])
    assert "Traceback" in str(dead.headers["detail"])
    assert dead.headers["source-queue"] == QUEUE
    assert dead.headers["source-exchange"] == "whatsapp-qr.commands"
    assert dead.headers["source-routing-key"] == "message.send.0"
    assert dead.headers["partition-key"] == str(chatbot_id)


async def test_error_that_passes_is_no_dead_letter(clean_broker: str) -> None:
    """A message that fails twice and then succeeds is done."""
    failures = 0

    async def work(_message: SendMessage) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise LookupError("not yet")

    handler = Handler(work)
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher),
    ):
        await send(publisher, a_chatbot(), "1")
        await until(lambda: handler.done == ["1"])
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_undeliverable_is_kept_at_once(clean_broker: str) -> None:
    """What a handler calls undeliverable is a dead letter after one attempt, with the handler's reason."""

    async def work(message: SendMessage) -> None:
        if message.message == "bad":
            raise Undeliverable("nobody knows it", code="unknown_session")

    handler = Handler(work)
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher),
    ):
        await send(publisher, a_chatbot(), "bad", "good")
        await until(lambda: handler.done == ["good"])
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert handler.begun == ["bad", "good"]
    assert (dead.headers["reason"], dead.headers["detail"]) == ("unknown_session", "nobody knows it")


async def test_dead_letter_waits_for_its_broker(clean_broker: str) -> None:
    """Where the dead letter cannot be published the message is held, not lost."""

    async def work(_message: SendMessage) -> None:
        raise Undeliverable("never", code="never")

    handler = Handler(work)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as sender,
        publishing(proxy.url) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher) as consumer,
    ):
        proxy.refuse()
        await send(sender, a_chatbot(), "1")
        await until(lambda: not consumer.ready)
        proxy.heal()
        (dead,) = await amqp.take(DEAD_LETTERS)
        assert dead.message_id == "1"
        await until(lambda: consumer.ready)


GOOD = a_message(a_chatbot()).wire()
TYPED = {"type": "message.send", "message_id": "m"}


UNREADABLE: list[tuple[bytes, dict[str, Any], str]] = [
    (b'{"to":', TYPED, "invalid_json"),
    (b"", TYPED, "invalid_json"),
    (b'{"to": "\xff\xfe"}', TYPED, "invalid_json"),
    (b"[" * 100_000, TYPED, "invalid_json"),
    (b'{"to": 1}', TYPED, "invalid_message"),
    (b"7", TYPED, "invalid_message"),
    (GOOD, {"type": "message.sing"}, "unknown_type"),
    (GOOD, TYPED | {"headers": {"schema-version": 2}}, "unknown_version"),
    (GOOD, TYPED | {"headers": {"schema-version": "1"}}, "unknown_version"),
]


async def test_unreadable_is_kept_once(clean_broker: str) -> None:
    """What cannot be read makes one dead letter with the original bytes and no handler call; the queue goes on."""
    handler = Handler()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher, prefetch=1),
    ):
        for body, envelope, _ in UNREADABLE:
            await amqp.publish(body, **envelope)
        await send(publisher, a_chatbot(), "good")
        await until(lambda: handler.done == ["good"])
        dead = await amqp.take(DEAD_LETTERS, len(UNREADABLE))
    assert handler.begun == ["good"]
    assert [(letter.body, letter.type, letter.headers["reason"]) for letter in dead] == [
        (body, envelope["type"], reason) for body, envelope, reason in UNREADABLE
    ]
    assert all(letter.headers["detail"] for letter in dead)


async def test_dead_letter_says_nothing_of_the_content(clean_broker: str) -> None:
    """The reason names the faulty field; the content, which may be private, stays in the body."""
    body = json.dumps({"chatbotId": "x", "to": "5491112345678", "message": ["secret"]}).encode()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, Handler().routes, publisher),
    ):
        await amqp.publish(body, **TYPED)
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert "message" in str(dead.headers["detail"])
    assert "secret" not in str(dead.headers)


@pytest.mark.parametrize("routing_key", ["message.send.0", "message.send"])
async def test_missing_type_is_read_from_the_routing_key(clean_broker: str, routing_key: str) -> None:
    """A message without type is what its routing key says, with or without the partition."""
    handler = Handler()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher),
    ):
        await amqp.publish(GOOD, routing_key, message_id="m")
        await until(lambda: handler.done == ["Hola"])
        assert handler.envelopes[0].message_id == "m"
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_unknown_key_is_kept(clean_broker: str) -> None:
    """A command under a routing key that nobody reads does not vanish: it is in the dead letters."""
    async with publishing(clean_broker), Amqp(clean_broker) as amqp:
        await amqp.publish(b"{}", "message.sing", message_id="m")
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert (dead.routing_key, dead.message_id, dead.body) == ("message.sing", "m", b"{}")


class Latin(str):
    """A text that a careless client sends in another encoding than AMQP's."""

    __slots__ = ()

    def encode(self, _encoding: str = "", _errors: str = "") -> bytes:
        return super().encode("latin-1")


async def test_foreign_headers_survive(clean_broker: str) -> None:
    """Headers of every AMQP type, and many of them, neither block the queue nor are lost with the dead letter."""
    headers: dict[str, Any] = {
        "latin": Latin("señor"),
        "none": None,
        "bytes": bytearray(b"\xff"),
        "table": {"list": [1, "two", None]},
        "float": 1.5,
        "big": 2**40,
        "flag": True,
        "x-death": [{"count": 3}],
        **{f"long-{number}": "x" * 1000 for number in range(40)},
    }
    handler = Handler()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher) as consumer,
    ):
        await amqp.publish(b"?", **TYPED, headers=headers)
        await send(publisher, a_chatbot(), "good")
        await until(lambda: handler.done == ["good"])
        (dead,) = await amqp.take(DEAD_LETTERS)
        assert consumer.ready
    assert {name: dead.headers[name] for name in headers if name not in {"x-death", "latin"}} == {
        name: value for name, value in headers.items() if name not in {"x-death", "latin"}
    }
    assert "x-death" not in dead.headers
    assert dead.headers["latin"] == repr("señor".encode("latin-1"))


async def test_prefetch_is_bounded(clean_broker: str) -> None:
    """No more messages than the prefetch are taken at once, also after a lost connection."""
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    handler = Handler(work)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(proxy.url, handler.routes, publisher, prefetch=3),
    ):
        for number in range(10):
            await send(publisher, a_chatbot(), str(number))
        await amqp.until_waiting(QUEUE, 7)
        await until(lambda: handler.begun == ["0", "1", "2"])
        proxy.cut()
        await until(lambda: sorted(handler.begun[3:]) == ["0", "1", "2"])
        await amqp.until_waiting(QUEUE, 7)
        release.set()
        await until(lambda: len(handler.done) == 10)


async def test_no_reply(clean_broker: str) -> None:
    """A consumer answers no reply_to, whoever asks for it."""
    handler = Handler()
    chatbot_id = a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher),
    ):
        answers = await amqp.channel.declare_queue(exclusive=True)
        for text in ("asks", "next"):  # the second begins when all of the first is over
            await amqp.publish(a_message(chatbot_id, text).wire(), **TYPED, reply_to=answers.name)
        await until(lambda: handler.done == ["asks", "next"])
        assert await amqp.waiting(answers.name) == 0


async def test_other_queues_messages_are_not_ours(clean_broker: str) -> None:
    """A message of another queue's type is a dead letter here, and says which queue it was found in."""
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, Handler().routes, publisher),
    ):
        await amqp.publish(GOOD, type=SendJob.name, message_id="m")
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert (dead.headers["reason"], dead.headers["source-queue"]) == ("unknown_type", QUEUE)


async def test_lost_publisher_connection_holds_the_message(clean_broker: str) -> None:
    """Where the connection is lost while a handler's output waits for its confirm, the message is tried again."""
    outputs = 0

    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as sender,
        publishing(proxy.url) as publisher,
        Amqp(clean_broker) as amqp,
    ):

        async def work(_message: SendMessage) -> None:
            nonlocal outputs
            outputs += 1
            await _job(publisher)

        handler = Handler(work)
        async with consuming(clean_broker, handler.routes, publisher) as consumer:
            await send(sender, a_chatbot(), "warm")
            await until(lambda: handler.done == ["warm"])
            proxy.hold_answers()
            await send(sender, a_chatbot(), "1")
            await amqp.until_waiting(SendJob.name, 2)
            proxy.cut()
            proxy.heal()
            await until(lambda: handler.done == ["warm", "1"])
            await until(lambda: consumer.ready)
            assert handler.cancelled == []
            assert await amqp.waiting(DEAD_LETTERS) == 0


async def _job(publisher: Publisher) -> None:
    job = SendJob(
        session_id="s", to="5491112345678", message="Hola", message_id=a_chatbot(), conversation_id=a_chatbot()
    )
    await publisher.publish(job, message_id="job", correlation_id="c", key="s")

"""How a message can end on a real broker: done, held, rerouted, dead letter, left; and never any other way."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from service.domain.dead_letters import DeadLetter
from service.errors import DatabaseUnavailable, Undeliverable
from service.messaging import handling
from service.messaging.handling import NotDone
from service.messaging.inbox import Delivery, Gate, Inbox
from service.messaging.lossless import to_json
from service.messaging.receiving import Received
from service.messaging.rerouting import DECIDED_BY
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from service.operating.comparing import MAX_MESSAGE_SIZE
from tests.amqp import Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from tests.proxy import Proxy
from tests.servers import Broker
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.jobs import SendJob
from whatsapp_qr_contracts.message import MAX_BODY_BYTES, Message

QUEUE = CONVERSATIONS.name
MEBIBYTE = 1 << 20
BOTH_WAYS = pytest.mark.parametrize("side_by_side", [True, False], ids=["side by side", "in batches"])


class Table(list[DeadLetter]):
    """The dead letters' table, which may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.refused = 0

    def append(self, letter: DeadLetter) -> None:
        if self.away:
            self.refused += 1
            raise DatabaseUnavailable("away")
        super().append(letter)


class Transactions(handling.Handler):
    """Handles a batch as a whole or not at all; waits before the first until it may go on."""

    models: ClassVar[dict[str, type[Message]]] = {SendMessage.name: SendMessage}

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.batches: list[list[str]] = []
        self.done: list[str] = []
        self.redelivered: list[str] = []

    async def handle(self, batch: Sequence[Received]) -> NotDone:
        texts = [cast("SendMessage", received.body).message for received in batch]
        self.batches.append(texts)
        self.redelivered += [text for text, received in zip(texts, batch, strict=True) if received.envelope.redelivered]
        await self.go_on.wait()
        if any(text.startswith("bad") for text in texts):
            raise LookupError("no such thing")
        self.done += texts
        return []


@BOTH_WAYS
async def test_unavailable_is_held(clean_broker: str, *, side_by_side: bool) -> None:
    """While a part is away the message waits in the process, which is not ready; then it is done, once, in order."""
    away = True
    failures = 0

    async def work(_message: SendMessage) -> None:
        nonlocal failures
        if away:
            failures += 1
            raise DatabaseUnavailable("away")

    handler = Handler(work, side_by_side=side_by_side)
    chatbot_id = a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher) as consumer,
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
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(QUEUE) == 0


async def test_other_error_is_tried_three_times(clean_broker: str) -> None:
    """An unexpected error is tried 3 times, then kept once with bytes, traceback and origin; the queue goes on."""

    async def work(message: SendMessage) -> None:
        if message.message == "bad":
            raise LookupError("no such thing")

    handler = Handler(work)
    chatbot_id = a_chatbot(1, 2)
    dead: list[DeadLetter] = []
    async with (
        publishing(clean_broker, 2) as publisher,
        consuming(clean_broker, handler, publisher, dead=dead) as consumer,
    ):
        await send(publisher, chatbot_id, "bad", "good")
        await until(lambda: handler.done == ["good"])
        assert consumer.ready
    [letter] = dead
    assert handler.begun == ["bad"] * 3 + ["good"]
    assert not any(envelope.redelivered for envelope in handler.envelopes)
    original = letter.original
    assert (letter.reason, letter.source) == ("handler_failed", QUEUE)
    assert "LookupError: no such thing" in letter.detail
    assert "Traceback" in letter.detail
    assert original.body == a_message(chatbot_id, "bad").wire()
    assert [original.text(name) for name in ("messageId", "correlationId", "type")] == ["bad", "bad", "message.send"]
    assert (original.exchange, original.routing_key) == ("whatsapp-qr.commands", "message.send.1")
    assert original.headers["partition-key"] == str(chatbot_id)


async def test_a_batch_that_fails_is_split(clean_broker: str) -> None:
    """Of messages that are handled together the culprit alone is a dead letter; the others are done, in order."""
    handler, chatbot_id = Transactions(), a_chatbot()
    texts = [str(number) for number in range(20)]
    texts[13] = "bad"
    dead: list[DeadLetter] = []
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead),
    ):
        await send(publisher, chatbot_id, "first")
        await until(lambda: handler.batches == [["first"]])
        await send(publisher, chatbot_id, *texts)
        await amqp.until_waiting(QUEUE, 0)
        handler.go_on.set()
        await until(lambda: len(handler.done) == len(texts))
        await amqp.until_waiting(QUEUE, 0)
    assert handler.batches[1] == texts
    assert handler.done == ["first", *(text for text in texts if text != "bad")]
    assert handler.batches.count(["bad"]) == 3
    assert [(letter.reason, letter.original.text("messageId")) for letter in dead] == [("handler_failed", "bad")]


async def test_error_that_passes_is_no_dead_letter(clean_broker: str) -> None:
    """A message that fails twice and then succeeds is done."""
    failures = 0

    async def work(_message: SendMessage) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise LookupError("not yet")

    handler = Handler(work)
    async with publishing(clean_broker) as publisher, consuming(clean_broker, handler, publisher):
        await send(publisher, a_chatbot(), "1")
        await until(lambda: handler.done == ["1"])


@BOTH_WAYS
async def test_undeliverable_is_kept_at_once(clean_broker: str, *, side_by_side: bool) -> None:
    """What a handler calls undeliverable is a dead letter after one attempt; while the table is away it is held."""
    away = Table()
    away.away = True

    async def work(message: SendMessage) -> None:
        if message.message == "bad":
            raise Undeliverable("nobody knows it", code="unknown_session")

    handler = Handler(work, side_by_side=side_by_side)
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=away) as consumer,
    ):
        await send(publisher, a_chatbot(), "bad", "good")
        await until(lambda: away.refused >= 2)
        assert not consumer.ready
        away.away = False
        await until(lambda: handler.done == ["good"])
        await until(lambda: consumer.ready)
    assert handler.begun == ["bad", "good"]
    assert [(letter.reason, letter.detail) for letter in away] == [("unknown_session", "nobody knows it")]
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(QUEUE) == await amqp.waiting(DEAD_LETTERS) == 0


CHATBOT = a_chatbot()
GOOD = a_message(CHATBOT).wire()
TYPED = {"type": "message.send", "message_id": "m"}
TO = {"to": "5491112345678", "message": "Hola"}


def odd(**fields: Any) -> bytes:
    return json.dumps(TO | fields).encode()


UNREADABLE: list[tuple[bytes, dict[str, Any], str, str]] = [
    (b'{"to":', TYPED, "invalid_json", ""),
    (b"", TYPED, "invalid_json", ""),
    (b'{"to": "\xff\xfe"}', TYPED, "invalid_json", ""),
    (b"[" * 100_000, TYPED, "invalid_json", ""),
    (b'{"to": 1}', TYPED, "invalid_message", "to"),
    (b"7", TYPED, "invalid_message", ""),
    (odd(chatbotId="x", message=["secret"]), TYPED, "invalid_message", "message"),
    (odd(chatbot_id=str(CHATBOT)), TYPED, "invalid_message", "write chatbotId, not chatbot_id"),
    # Its optional field would be ignored, and the message sent under another id.
    (odd(chatbotId=str(CHATBOT), message_id="mine"), TYPED, "invalid_message", "write messageId, not message_id"),
    (GOOD, {"type": "message.sing"}, "unknown_type", "message.sing"),
    (GOOD, {"type": SendJob.name, "message_id": "m"}, "unknown_type", QUEUE),
    (GOOD, TYPED | {"headers": {"schema-version": 2}}, "unknown_version", "2"),
    (GOOD, TYPED | {"headers": {"schema-version": "1"}}, "unknown_version", "1"),
]


async def test_unreadable_is_kept_once(clean_broker: str) -> None:
    """What cannot be read makes one dead letter with the original bytes and no handler call; the queue goes on.

    The reason names the faulty field; the content, which may be private, stays in the body.
    """
    handler = Handler()
    dead: list[DeadLetter] = []
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, prefetch=1, dead=dead),
    ):
        for body, envelope, *_ in UNREADABLE:
            await amqp.publish(body, **envelope)
        await send(publisher, a_chatbot(), "good")
        await until(lambda: handler.done == ["good"])
    assert handler.begun == ["good"]
    assert [(letter.original.body, letter.original.text("type"), letter.reason, letter.source) for letter in dead] == [
        (body, envelope["type"], reason, QUEUE) for body, envelope, reason, _ in UNREADABLE
    ]
    for letter, (*_, said) in zip(dead, UNREADABLE, strict=True):
        assert letter.detail
        assert said in letter.detail
        assert "secret" not in letter.detail


@pytest.fixture
async def generous_broker(shared_broker: Broker, clean_broker: str) -> AsyncIterator[str]:
    """A broker that takes 128 MiB, as RabbitMQ 3 does by itself; new channels know it."""
    await _take(shared_broker, 128 * MEBIBYTE)
    yield clean_broker
    await _take(shared_broker, MAX_MESSAGE_SIZE)


async def _take(broker: Broker, size: int) -> None:
    keep = f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size})"
    assert (await broker.ctl("eval", f"{keep}.")).strip() == "ok"


@pytest.mark.parametrize("routing_key", ["message.send.0", "message.send"])
async def test_a_large_body_is_a_dead_letter(generous_broker: str, routing_key: str) -> None:
    """A body over the limit, where a broker lets it pass, is kept cut, which is said; the consumer goes on."""
    handler, dead = Handler(side_by_side=False), list[DeadLetter]()
    sizes = [MAX_BODY_BYTES + 1, 2 * MEBIBYTE, 20 * MEBIBYTE]
    async with (
        publishing(generous_broker) as publisher,
        Amqp(generous_broker) as amqp,
        consuming(generous_broker, handler, publisher, dead=dead) as consumer,
    ):
        for size in sizes:
            await amqp.publish(GOOD.ljust(size), routing_key, **TYPED)
        await amqp.publish(GOOD.ljust(MAX_BODY_BYTES), routing_key, **TYPED | {"message_id": "largest"})
        await until(lambda: handler.done)
        assert [envelope.message_id for envelope in handler.envelopes] == ["largest"]
        assert not any(envelope.redelivered for envelope in handler.envelopes)
        assert consumer.ready
    assert [letter.reason for letter in dead] == ["too_large"] * len(sizes)
    assert [letter.original.body for letter in dead] == [GOOD.ljust(MAX_BODY_BYTES)] * len(sizes)
    for letter, size in zip(dead, sizes, strict=True):
        assert f"{size} bytes" in letter.detail
        assert "cut" in letter.detail


@pytest.mark.parametrize("routing_key", ["message.send.0", "message.send"])
async def test_missing_type_is_read_from_the_routing_key(clean_broker: str, routing_key: str) -> None:
    """A message without type is what its routing key says, with or without the partition."""
    handler = Handler()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher),
    ):
        await amqp.publish(GOOD, routing_key, message_id="m")
        await until(lambda: handler.done == ["Hola"])
        assert handler.envelopes[0].message_id == "m"


class Latin(str):
    """A text that a careless client sends in another encoding than AMQP's."""

    __slots__ = ()

    def encode(self, _encoding: str = "", _errors: str = "") -> bytes:
        return super().encode("latin-1")


HEADERS: dict[str, Any] = {
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


async def test_foreign_headers_survive(clean_broker: str) -> None:
    """Headers of every AMQP type, and many of them, neither block the queue nor are lost with the dead letter."""
    handler, dead = Handler(), list[DeadLetter]()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead) as consumer,
    ):
        await amqp.publish(b"?", **TYPED, headers=HEADERS)
        await amqp.publish(GOOD, **TYPED, headers=HEADERS)
        await until(lambda: handler.done)
        assert consumer.ready
    [letter] = dead
    kept = {name: value for name, value in HEADERS.items() if name != "x-death"}
    assert letter.original.headers == kept | {
        "latin": to_json("señor".encode("latin-1")),
        "bytes": to_json(kept["bytes"]),
    }


async def test_prefetch_is_bounded(clean_broker: str) -> None:
    """No more messages than the prefetch are taken at once, also after a lost connection."""
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    handler = Handler(work)
    texts = [str(number) for number in range(10)]
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(proxy.url, handler, publisher, prefetch=3) as consumer,
    ):
        for text in texts:
            await send(publisher, a_chatbot(), text)
        await amqp.until_waiting(QUEUE, 7)
        await until(lambda: handler.begun == ["0", "1", "2"])
        channel = consumer.subscriptions.partitions[0]._delivered_on
        proxy.cut()
        await until(lambda: consumer.subscriptions.partitions[0]._delivered_on is not channel)
        await amqp.until_waiting(QUEUE, 7)
        assert handler.begun == ["0", "1", "2"]  # each waits behind its first run, which is not over
        release.set()
        await until(lambda: set(handler.done) == set(texts))
        await amqp.until_waiting(QUEUE, 0)


async def test_no_reply(clean_broker: str) -> None:
    """A consumer answers no reply_to, whoever asks for it."""
    handler = Handler()
    chatbot_id = a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher),
    ):
        answers = await amqp.channel.declare_queue(exclusive=True)
        for text in ("asks", "next"):  # the second begins when all of the first is over
            await amqp.publish(a_message(chatbot_id, text).wire(), **TYPED, reply_to=answers.name)
        await until(lambda: handler.done == ["asks", "next"])
        assert await amqp.waiting(answers.name) == 0


@pytest.mark.parametrize("closings", [1, 2])
async def test_what_may_have_killed_a_process_is_handled_alone(clean_broker: str, closings: int) -> None:
    """Messages whose readers ended twice are not taken together with any other; after one end they still are."""
    handler, chatbot_id = Transactions(), a_chatbot()
    texts = [str(number) for number in range(5)]
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await send(publisher, chatbot_id, *texts)
        for _ in range(closings):
            await _take_and_end(amqp, len(texts))
        await send(publisher, chatbot_id, "new 1", "new 2")
        async with consuming(clean_broker, handler, publisher):
            await until(lambda: handler.batches)
            await amqp.until_waiting(QUEUE, 0)
            handler.go_on.set()
            await until(lambda: len(handler.done) == 7)
    assert handler.done == [*texts, "new 1", "new 2"]
    alone = [batch for batch in handler.batches if batch[0] in texts]
    assert alone == [[text] for text in texts] if closings == 2 else len(handler.batches) <= 2


async def _take_and_end(amqp: Amqp, count: int) -> None:
    """Take so many messages, then end without an acknowledgement."""
    taken: list[Any] = []
    async with amqp._connection.channel() as channel:
        queue = await channel.get_queue(QUEUE, ensure=False)
        await queue.consume(partial(_append, taken))
        await until(lambda: len(taken) == count)
    await amqp.until_waiting(QUEUE, count)


async def _append(taken: list[Any], message: Any) -> None:
    taken.append(message)


@pytest.mark.parametrize("most", [1, 3, 200])
async def test_every_partition_has_its_turn(most: int) -> None:
    """No more is taken than was asked for; and what is to be handled alone waits for no other partition."""
    inbox, gate = Inbox(), Gate()

    def arrives(number: int, deaths: int = 0) -> None:
        raw = SimpleNamespace(channel=SimpleNamespace(is_closed=False), headers={"x-delivery-count": deaths})
        inbox.add(Delivery(raw, number, gate))

    for number in (0, 0, 1, 1, 2, 2, 3):
        arrives(number, deaths=2 if number == 3 else 0)
    turns: list[list[int]] = []
    while not turns or turns[-1] != [3]:
        turns.append([delivery.number for delivery in await inbox.take(most)])
        for number in range(3):
            arrives(number)
        assert 3 not in turns[-1][1:]
        assert len(turns[-1]) <= most
        assert len(turns) <= 4
    assert gate.running == sum(map(len, turns))


PARTITIONS = 4


async def test_copies_do_not_multiply(clean_broker: str) -> None:
    """Each copy that the broker made for the headers CC and BCC is passed on at most once, without these headers."""
    handler, chatbot_id, dead = Handler(), a_chatbot(2, PARTITIONS), list[DeadLetter]()
    keys = [f"message.send.{number}" for number in range(PARTITIONS)]
    async with (
        publishing(clean_broker, PARTITIONS) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead),
    ):
        await amqp.publish(
            a_message(chatbot_id, "x").wire(), "message.send", **TYPED, headers={"CC": keys[:2], "BCC": keys[2:]}
        )
        await until(lambda: len(handler.done) >= PARTITIONS + 1)
        # What would have multiplied is behind every message that came this way again.
        for _ in range(3):
            for key in [*keys, "message.send"]:
                await amqp.publish(a_message(chatbot_id, "after").wire(), key, **TYPED)
        await until(lambda: handler.done.count("after") == 3 * (PARTITIONS + 1))
    assert handler.done.count("x") == PARTITIONS + 1
    assert dead == []


@pytest.mark.parametrize("routing_key", ["message.send.0", "message.send"])
async def test_what_is_not_at_home_after_one_hop_is_a_dead_letter(clean_broker: str, routing_key: str) -> None:
    """Rerouted once by this number of partitions it goes no further; by another number it does, and is handled."""
    handler, dead = Handler(), list[DeadLetter]()
    body = a_message(a_chatbot(1, PARTITIONS), "x").wire()
    async with (
        publishing(clean_broker, PARTITIONS) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead),
    ):
        for count, message_id in ((PARTITIONS, "misrouted"), (PARTITIONS - 1, "of before")):
            await amqp.publish(
                body, routing_key, type="message.send", message_id=message_id, headers={DECIDED_BY: count}
            )
        await until(lambda: handler.done)
        assert [envelope.message_id for envelope in handler.envelopes] == ["of before"]
    assert [(letter.reason, letter.original.text("messageId")) for letter in dead] == [("misrouted", "misrouted")]
    assert "not to 1" in dead[0].detail


async def test_a_lost_connection_holds_what_is_rerouted(clean_broker: str) -> None:
    """Where the connection is lost while a copy waits for its confirm, it is rerouted again, and acknowledged then."""
    handler = Handler()
    async with (
        Proxy(clean_broker) as proxy,
        publishing(proxy.url, PARTITIONS) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher) as consumer,
    ):
        chatbot_id = a_chatbot(1, PARTITIONS)
        body = a_message(chatbot_id, "1").wire()
        await amqp.publish(body, "message.send", **TYPED)
        await until(lambda: handler.done == ["1"])
        proxy.hold_answers()
        await amqp.publish(body, "message.send", **TYPED)
        await until(lambda: handler.done == ["1"] * 2)
        assert consumer.subscriptions.partitions[PARTITIONS]._gate.running == 1
        proxy.cut()
        proxy.heal()
        await until(lambda: handler.done == ["1"] * 3)
        await until(lambda: consumer.ready and not consumer.subscriptions.partitions[PARTITIONS]._gate.running)
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(f"{QUEUE}.entry") == 0

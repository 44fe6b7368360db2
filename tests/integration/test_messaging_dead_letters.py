"""Dead letters on a real broker: however a message came to die, it is read as it was and goes back as it was."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage
from pamqp.commands import Basic

from service.domain.dead_letters import DeadLetter, Original
from service.errors import BrokerUnavailable, DatabaseUnavailable, Undeliverable
from service.messaging import topology
from service.messaging.dead_letter_queue import DeadLetterQueue
from service.messaging.dead_letters import dead_letter_callback
from service.messaging.lossless import to_json
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from service.operating.replaying import Replayer
from tests.amqp import Amqp, Handler, consuming, publishing, until
from tests.proxy import Proxy
from whatsapp_qr_contracts.message import COMMANDS, MAX_BODY_BYTES

QUEUE = CONVERSATIONS.name
BODY = b'{"to": \xff}'
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROPERTIES: dict[str, Any] = {
    "message_id": "m",
    "correlation_id": "c",
    "type": "message.send",
    "content_type": "text/plain",
    "content_encoding": "none",
    "reply_to": "somewhere",
    "priority": 3,
    "timestamp": AT,
    "app_id": "theirs",
    "headers": {
        "text": "ñ\x00",
        "bytes": bytearray(b"\x00\xff"),
        "time": AT,
        "decimal": Decimal("1.5"),
        "table": {"list": [1, True, None, {"$time": "no time"}]},
        "x-request-id": "kept",
        "reason": "theirs",
        "original": "theirs",
        "death_id": "theirs",
        "source-queue": "theirs",
        "partition-key": "k",
    },
}


def properties_of(message: AbstractIncomingMessage) -> dict[str, Any]:
    """What matters of a message, without what the broker adds."""
    headers = {name: value for name, value in message.headers.items() if not name.startswith("x-delivery")}
    names = [name for name in PROPERTIES if name != "headers"]
    return {name: getattr(message, name) for name in names} | {"headers": headers}


@asynccontextmanager
async def storing(url: str, kept: list[DeadLetter], *, away: int = 0) -> AsyncIterator[None]:
    """Read the dead letters' queue; the table is away for the first attempts."""
    failures = 0

    async def keep(dead: DeadLetter) -> None:
        nonlocal failures
        failures += 1
        if failures <= away:
            raise DatabaseUnavailable("away")
        kept.append(dead)

    task = asyncio.create_task(DeadLetterQueue(url, 1).consume(keep))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def stored(url: str, count: int = 1) -> list[DeadLetter]:
    """Wait until so many dead letters were read, and that no more are there."""
    kept: list[DeadLetter] = []
    async with storing(url, kept):
        await until(lambda: len(kept) >= count)
    async with Amqp(url) as amqp:
        assert await amqp.waiting(DEAD_LETTERS) == 0
    assert len(kept) == count
    return kept


async def refused(url: str) -> DeadLetter:
    """A consumer finds that it is no good."""
    dead = list[DeadLetter]()
    async with publishing(url) as publisher, Amqp(url) as amqp, consuming(url, Handler(), publisher, dead=dead):
        await amqp.publish(BODY, **PROPERTIES)
        await until(lambda: dead)
        await amqp.until_waiting(QUEUE, 0)
    [letter] = dead
    return letter


async def moved(url: str) -> DeadLetter:
    """Nobody handles it, and in the end the broker takes it away."""
    async with publishing(url), Amqp(url) as amqp:
        await amqp.publish(BODY, **PROPERTIES)
        queue = await amqp.channel.get_queue(QUEUE, ensure=False)

        async def give_back(message: AbstractIncomingMessage) -> None:
            await message.nack(requeue=True)

        await queue.consume(give_back)
        await amqp.until_waiting(DEAD_LETTERS, 1)
    [letter] = await stored(url)
    return letter


async def unroutable(url: str) -> DeadLetter:
    """No queue is bound for it."""
    await sung(url)
    [letter] = await stored(url)
    return letter


async def sung(url: str) -> None:
    async with publishing(url), Amqp(url) as amqp:
        await amqp.publish(BODY, "message.sing", **PROPERTIES)


ORIGINS: list[tuple[Callable[[str], Awaitable[DeadLetter]], str, str, str]] = [
    (refused, "invalid_json", QUEUE, "message.send.0"),
    (moved, "delivery_limit", QUEUE, "message.send.0"),
    (unroutable, "unroutable", COMMANDS, "message.sing"),
]


@pytest.mark.parametrize(
    ("die", "reason", "source", "key"), [pytest.param(*origin, id=origin[1]) for origin in ORIGINS]
)
async def test_a_message_is_read_as_it_was(
    clean_broker: str, die: Callable[[str], Awaitable[DeadLetter]], reason: str, source: str, key: str
) -> None:
    """Reason, origin, bytes, properties and headers, also those that look like ours; so it goes back, once.

    Of its headers those of the contract go back: for others the broker would make copies of it.
    """
    dead = await die(clean_broker)
    assert (dead.reason, dead.source, dead.redelivered) == (reason, source, False)
    assert dead.detail
    assert bool(dead.death_id) is (die is moved)
    original = dead.original
    assert (original.body, original.exchange, original.routing_key) == (BODY, COMMANDS, key)
    assert original.headers == to_json(PROPERTIES["headers"])
    async with Replayer(clean_broker, 1) as replayer, Amqp(clean_broker) as amqp:
        copies = {"CC": ["message.send"], "BCC": ["session.initialize"]}
        await replayer.put_back(replace(original, routing_key="message.send.0", headers={**original.headers, **copies}))
        [back] = await amqp.take(QUEUE)
        assert [await amqp.waiting(name) for name in (f"{QUEUE}.entry", "whatsapp-qr.sessions.entry")] == [0, 0]
    assert (back.body, back.exchange, back.routing_key, back.delivery_mode) == (BODY, COMMANDS, "message.send.0", 2)
    assert properties_of(back) == PROPERTIES | {"headers": {"partition-key": "k"}}


async def test_a_replayed_message_dies_as_itself(clean_broker: str) -> None:
    """It has the same identity again, without an id too, whoever finds that it is no good: a consumer, the broker."""
    dead = list[DeadLetter]()
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp, Replayer(clean_broker, 1) as replayer:
        for properties in (PROPERTIES, {"type": "message.send"}):
            dead.clear()
            async with consuming(clean_broker, Handler(), publisher, dead=dead):
                await amqp.publish(BODY, **properties)
                await until(lambda: dead)
                await replayer.put_back(dead[0].original)
                await until(lambda: len(dead) == 2)
            first, second = dead
            assert second.id == first.id
            assert not second.redelivered
            contracts = {name: value for name, value in first.original.headers.items() if name == "partition-key"}
            assert second.original.headers == contracts
            assert second.original.text("messageId").strip() == first.original.text("messageId")
            await replayer.put_back(
                replace(first.original, properties=first.original.properties | {"expiration": 0.01})
            )
            [moved_by_the_broker] = await stored(clean_broker)
            assert (moved_by_the_broker.reason, moved_by_the_broker.id) == ("expired", first.id)


async def test_a_callback_is_kept_with_its_path(clean_broker: str) -> None:
    """It has no AMQP origin: its path says how to read it. One that is too large is cut."""
    bodies = [BODY, BODY.ljust(MAX_BODY_BYTES + 1)]
    async with publishing(clean_broker) as publisher:
        error = Undeliverable("no sessionId", code="invalid_callback")
        for body in bodies:
            await dead_letter_callback(publisher, body, error, path="/whatsapp-qr/webhook")
    for dead, body in zip(await stored(clean_broker, 2), bodies, strict=True):
        assert (dead.source, dead.reason, dead.detail) == ("/whatsapp-qr/webhook", "invalid_callback", "no sessionId")
        assert (dead.original.body, dead.original.exchange, dead.original.properties) == (body[:MAX_BODY_BYTES], "", {})


async def test_expiration_goes_back(clean_broker: str) -> None:
    """The broker takes it off what it moves; its dead letter knows it all the same."""
    async with publishing(clean_broker), Amqp(clean_broker) as amqp:
        await amqp.publish(BODY, message_id="m", expiration=0.05)
        await amqp.until_waiting(DEAD_LETTERS, 1)
        [dead] = await stored(clean_broker)
        assert (dead.reason, dead.original.properties["expiration"]) == ("expired", 0.05)


@pytest.mark.parametrize(
    ("exchange", "key", "code"),
    [
        (COMMANDS, "message.sing", "unroutable"),
        (COMMANDS, "message.send.9", "unroutable"),
        ("whatsapp-qr.jobs", "nowhere", "unroutable"),
        ("nobodys", "key", "unroutable"),
        ("", "nobodys-queue", "unroutable"),
        ("", "", "unknown_origin"),
        ("", "k" * 300, "unroutable"),
        ("e" * 300, "key", "unroutable"),
        ("no\x00name", "key", "unroutable"),
    ],
)
async def test_what_has_no_way_back_is_said(clean_broker: str, exchange: str, key: str, code: str) -> None:
    """It is not published anywhere, least of all to the dead letters again; the next one goes back."""
    async with publishing(clean_broker), Replayer(clean_broker, 1) as replayer, Amqp(clean_broker) as amqp:
        for _ in range(2):
            with pytest.raises(Undeliverable) as refused:
                await replayer.put_back(Original(BODY, exchange, key, {"messageId": "m"}, {}))
            assert refused.value.code == code
        await replayer.put_back(Original(BODY, "", QUEUE, {"messageId": "m"}, {}))
        [back] = await amqp.take(QUEUE)
        assert (back.exchange, back.routing_key, back.message_id) == ("", QUEUE, "m")
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_without_a_broker_a_replay_says_so(clean_broker: str) -> None:
    """At once, before or in the middle."""
    async with publishing(clean_broker), Proxy(clean_broker) as proxy, Replayer(proxy.url, 1) as replayer:
        await replayer.put_back(Original(BODY, COMMANDS, "message.send", {}, {}))
        proxy.refuse()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                await replayer.put_back(Original(BODY, COMMANDS, "message.send", {}, {}))
        async with Replayer(proxy.url, 1) as another:
            with pytest.raises(BrokerUnavailable):
                await another.put_back(Original(BODY, COMMANDS, "message.send", {}, {}))


async def test_a_dead_letter_waits_for_its_table(clean_broker: str) -> None:
    """What cannot be kept is neither lost nor in the way of a stop."""
    kept: list[DeadLetter] = []
    await sung(clean_broker)
    async with storing(clean_broker, kept, away=2):
        await until(lambda: kept)
    await sung(clean_broker)
    async with storing(clean_broker, kept, away=1_000_000), Amqp(clean_broker) as amqp:
        await amqp.until_waiting(DEAD_LETTERS, 0)
    assert len(kept) == 1
    [again] = await stored(clean_broker)
    assert again.redelivered
    assert again.id == kept[0].id


async def test_a_broker_that_falls_silent_while_it_is_asked_is_asked_again(
    clean_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the declarations, over a link that stays open: the heartbeat or the time limit notices."""
    await sung(clean_broker)
    kept: list[DeadLetter] = []
    queues = topology.queues
    async with Proxy(clean_broker) as proxy:

        def silent(partitions: int) -> Iterator[topology.Queue]:
            monkeypatch.setattr(topology, "queues", queues)
            proxy.lose()
            proxy.heal()  # for other connections than this one
            return queues(partitions)

        monkeypatch.setattr(topology, "queues", silent)
        monkeypatch.setattr("service.messaging.connections.HEARTBEAT", 1)
        async with storing(proxy.url, kept):
            await until(lambda: kept)
    assert topology.queues is queues


@pytest.mark.parametrize("trouble", ["cancelled by the client library", "no answer"])
async def test_a_stuck_declaration_is_repeated(
    clean_broker: str, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The client library cancels what waits for a stuck connection; nobody asked the reader to stop."""
    await sung(clean_broker)
    kept: list[DeadLetter] = []
    declare = topology.declare

    async def stuck(_url: str, _partitions: int) -> None:
        monkeypatch.setattr(topology, "declare", declare)
        if trouble == "no answer":
            await asyncio.Event().wait()
        raise asyncio.CancelledError

    monkeypatch.setattr(topology, "declare", stuck)
    monkeypatch.setattr("service.messaging.dead_letter_queue._SUBSCRIBE_SECONDS", 1.0)
    async with storing(clean_broker, kept):
        await until(lambda: kept)


async def test_what_anybody_publishes_to_the_dead_letters_is_kept(clean_broker: str) -> None:
    """Whatever the headers that should say why, and whatever cannot be decoded."""
    odd: list[dict[str, Any]] = [
        {},
        {"headers": {"x-death": "no list", "reason": "r"}},
        {"headers": {"x-death": []}},
        {"headers": {"x-death": [{"reason": 1, "time": "never", "queue": 2, "original-expiration": "x"}]}},
        {"headers": {"original": "[", "reason": 7, "death-id": ["b"]}},
        {"headers": {"original": "[]", "source-path": 7}},
        {"headers": {"original": json.dumps({"headers": "none", "messageId": 5})}},
        {"headers": {"original": '{"messageId": "\\ud800"}'}},
        {"headers": {"original": '{"priority": NaN}', "death-id": "\x00"}},
    ]
    async with publishing(clean_broker), Amqp(clean_broker) as amqp:
        for properties in odd:
            await amqp.publish(BODY, "anything", DEAD_LETTERS, **properties)
    dead = await stored(clean_broker, len(odd))
    assert all(one.original.body == BODY for one in dead)
    assert all(isinstance(text, str) for one in dead for text in (one.reason, one.detail, one.source, one.death_id))
    assert all(one.id for one in dead)
    async with Replayer(clean_broker, 1) as replayer:
        for properties in (
            {"expiration": [1]},
            {"timestamp": "soon"},
            {"priority": "high"},
            {"priority": 1_000},
            {"type": "t" * 300},
            {"type": "\ud800"},
            {"appId": {"$decimal": "forged"}},
        ):
            with pytest.raises(Undeliverable):
                await replayer.put_back(Original(BODY, COMMANDS, "message.send", properties, {}))


async def test_an_id_that_cannot_be_decoded_is_none(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dead letter is kept all the same."""
    marshal = Basic.Properties.marshal
    monkeypatch.setattr(Basic.Properties, "marshal", lambda given: marshal(given).replace(b"BOMB", b"\xff\xfe\xfd\xfc"))
    async with publishing(clean_broker), Amqp(clean_broker) as amqp:
        await amqp.publish(BODY, "message.sing", message_id="BOMB", type="t")
        [dead] = await stored(clean_broker)
    assert (dead.original.text("messageId"), dead.original.text("type")) == ("", "t")

"""What foreign clients may send: properties that cannot be decoded, headers as large as a frame, ids in other forms."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp.commands import Basic

from service.domain.dead_letters import DeadLetter
from service.messaging.topology import CONVERSATIONS
from tests.amqp import Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from tests.proxy import Proxy
from whatsapp_qr_contracts.commands import SendMessage

BOMB = "\N{BOMB}"
"""Stands for four bytes that are no UTF-8."""
MARKED = datetime(2020, 2, 2, 2, 2, 2, tzinfo=UTC)
"""Stands for Unix time in microseconds: as seconds it is far beyond the calendar."""
FRAME_MAX = 131_072


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let our client send what other clients can: the marks above become what they stand for."""
    marshal = Basic.Properties.marshal
    seconds = int(MARKED.timestamp())

    def poisoned(properties: Basic.Properties) -> bytes:
        sent = marshal(properties).replace(BOMB.encode(), b"\xff\xfe\xfd\xfc")
        return sent.replace(seconds.to_bytes(8, "big"), (seconds * 10**6).to_bytes(8, "big"))

    monkeypatch.setattr(Basic.Properties, "marshal", poisoned)


POISONS: dict[str, dict[str, Any]] = {
    "timestamp": {"timestamp": MARKED},
    "message_id": {"message_id": BOMB},
    "type": {"type": BOMB},
    "correlation_id": {"correlation_id": BOMB},
    "reply_to": {"reply_to": BOMB},
    "content_type": {"content_type": BOMB},
    "header name": {"headers": {BOMB: 1, "other": 2}},
    "name in a header": {"headers": {"outer": {BOMB: 1}}},
    "time in a header": {"headers": {"at": MARKED}},
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("properties", [pytest.param(value, id=name) for name, value in POISONS.items()])
async def test_a_property_that_cannot_be_decoded_counts_as_absent(
    clean_broker: str, properties: dict[str, Any]
) -> None:
    """The message is handled like any other, those behind it too, and nobody loses the connection over it."""
    handler, chatbot_id = Handler(), a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher) as consumer,
    ):
        await amqp.publish(a_message(chatbot_id, "poison").wire(), **{"message_id": "p", **properties})
        await send(publisher, chatbot_id, "1", "2")
        await send(publisher, a_chatbot(), "3")
        await until(lambda: {"poison", "1", "2", "3"} <= set(handler.done))
        assert [text for text in handler.done if text != "3"] == ["poison", "1", "2"]
        assert not any(envelope.redelivered for envelope in handler.envelopes)
        assert consumer.ready
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(CONVERSATIONS.name) == 0
    [seen] = [envelope for text, envelope in zip(handler.begun, handler.envelopes, strict=True) if text == "poison"]
    assert seen.timestamp is None
    assert seen.message_id == ("" if "message_id" in properties else "p")


@pytest.mark.usefixtures("poison")
async def test_a_dead_letter_is_kept_without_what_cannot_be_decoded(clean_broker: str) -> None:
    """A message that is no good and cannot be decoded either leaves the queue as one dead letter, with its bytes."""
    handler, dead = Handler(), list[DeadLetter]()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead),
    ):
        bad = {"message_id": BOMB, "type": BOMB, "correlation_id": BOMB, "timestamp": MARKED, "headers": {BOMB: BOMB}}
        await amqp.publish(b"no json", **bad)
        await send(publisher, a_chatbot(), "1")
        await until(lambda: handler.done == ["1"])
        await amqp.until_waiting(CONVERSATIONS.name, 0)
    [letter] = dead
    assert (letter.original.body, letter.reason, letter.original.headers) == (b"no json", "invalid_json", {})
    assert letter.id


async def test_headers_as_large_as_a_frame(clean_broker: str) -> None:
    """They cost nobody the connection: a dead letter keeps them all, and what is rerouted goes on without them."""
    handler, dead = Handler(), list[DeadLetter]()
    headers = {"junk": "x" * (FRAME_MAX - 1000), "partition-key": "mine", "tracestate": "y"}
    traced = {"traceparent": "x", "tracestate": "y" * (FRAME_MAX - 120)}
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher, dead=dead) as consumer,
    ):
        await amqp.publish(b"no json", message_id="big", headers=headers)
        for number in range(2):
            body = a_message(a_chatbot(number, 2), str(number)).wire()
            await amqp.publish(body, "message.send", message_id=f"junk {number}", headers=headers)
            await amqp.publish(body, "message.send", message_id=f"traced {number}", headers=traced)
        await until(lambda: len(handler.done) == 4)
        assert consumer.ready
    assert sorted(envelope.message_id for envelope in handler.envelopes) == ["junk 0", "junk 1", "traced 0", "traced 1"]
    [letter] = dead
    assert (letter.reason, letter.original.body, letter.original.headers) == ("invalid_json", b"no json", headers)


@pytest.mark.parametrize("form", ["{0.hex}", "urn:uuid:{0}", "{{{0}}}"])
async def test_the_forms_of_a_chatbot_id_share_partition_and_lane(clean_broker: str, form: str) -> None:
    """However the chatbot's id is written, its messages are one lane of its own partition: none overtakes another."""
    release = asyncio.Event()

    async def work(message: SendMessage) -> None:
        if message.message == "1":
            await release.wait()

    chatbot_id, neighbour = a_chatbot(2, 4), a_chatbot(2, 4)
    written = form.format(chatbot_id)
    body = json.dumps({"chatbotId": written, "to": "5491112345678", "message": "2"}).encode()
    handler = Handler(work)
    async with (
        publishing(clean_broker, 4) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher),
    ):
        await send(publisher, chatbot_id, "1")
        await until(lambda: handler.begun == ["1"])
        await amqp.publish(body, "message.send.2", message_id="2")
        await send(publisher, chatbot_id, "3")
        await send(publisher, neighbour, "side by side")
        await until(lambda: handler.done == ["side by side"])
        assert handler.begun == ["1", "side by side"]
        release.set()
        await until(lambda: len(handler.done) == 4)
        assert [text for text in handler.done if text != "side by side"] == ["1", "2", "3"]
        # Under the bare name it comes to the entry, from where it is rerouted to the same place.
        await amqp.publish(body.replace(b'"2"', b'"4"'), "message.send", message_id="4")
        await until(lambda: len(handler.done) == 5)


async def test_not_ready_while_the_connection_is_lost(clean_broker: str) -> None:
    """A consumer that has lost its broker says that it is not ready, without any message, and is ready again later."""
    handler = Handler()
    async with publishing(clean_broker) as publisher, Proxy(clean_broker) as proxy:
        async with consuming(proxy.url, handler, publisher) as consumer:
            assert consumer.ready
            proxy.refuse()
            await until(lambda: not consumer.ready)
            proxy.heal()
            await until(lambda: consumer.ready)
            await send(publisher, a_chatbot(), "1")
            await until(lambda: handler.done == ["1"])
        assert not consumer.ready

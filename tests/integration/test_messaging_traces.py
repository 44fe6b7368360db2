"""The trace context of messages between processes: passed on, kept by dead letters, never made up."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import structlog
from opentelemetry.trace import SpanKind

from service import tracing
from service.domain.dead_letters import DeadLetter
from service.messaging import handling
from service.messaging.handling import NotDone
from service.messaging.receiving import Received
from service.messaging.topology import CONVERSATIONS
from service.operating.replaying import Replayer
from tests.amqp import Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import Message

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONTEXT = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
ODD: list[Any] = ["", "00-0-0-00", 7, None, bytearray(b"\x00"), "x" * 10_000, TRACEPARENT.upper() + "-more"]
BOTH_WAYS = pytest.mark.parametrize("side_by_side", [True, False], ids=["side by side", "in batches"])


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()


class Noting(handling.Handler):
    """Handles messages as the service's handlers do, each in its own trace, and notes what is in the air then."""

    models: ClassVar[dict[str, type[Message]]] = {SendMessage.name: SendMessage}

    def __init__(self, *, side_by_side: bool) -> None:
        self.slow = frozenset(self.models) if side_by_side else frozenset[str]()
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []

    async def handle(self, batch: Sequence[Received]) -> NotDone:
        for received in batch:
            await self.handle_slow(received)
        return []

    async def handle_slow(self, received: Received) -> None:
        with received.traced(CONVERSATIONS.name):
            headers: dict[str, str] = {}
            tracing.inject(headers)
            self.seen.append((headers, structlog.contextvars.get_contextvars()))


@BOTH_WAYS
async def test_what_is_rerouted_stays_in_its_trace(clean_broker: str, *, side_by_side: bool) -> None:
    """A command that came to the wrong partition goes to its own with the context that it came with."""
    noting, chatbot_id = Noting(side_by_side=side_by_side), a_chatbot(1, 2)
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, noting, publisher),
    ):
        body = a_message(chatbot_id).wire()
        ids = {"message_id": "m", "correlation_id": "c"}
        await amqp.publish(body, "message.send.0", type="message.send", headers=CONTEXT, **ids)
        await amqp.publish(body, "message.send", type="message.send", headers=CONTEXT, **ids)
        await until(lambda: len(noting.seen) == 2)
    about = ids | {"chatbot_id": str(chatbot_id)} | {"trace_id": TRACEPARENT.split("-")[1]}
    assert noting.seen == [(CONTEXT, about)] * 2


@BOTH_WAYS
async def test_each_message_has_its_own_context(clean_broker: str, *, side_by_side: bool) -> None:
    """Nothing of a message, or of whoever made the publisher connect, is in what another one causes."""
    noting = Noting(side_by_side=side_by_side)
    async with publishing(clean_broker) as publisher:
        with tracing.root("first", SpanKind.SERVER, dict, CONTEXT):
            tracing.about(message_id="of the first")
            await send(publisher, a_chatbot(), "traced")
        structlog.contextvars.clear_contextvars()
        await send(publisher, a_chatbot(), "untraced")
        async with consuming(clean_broker, noting, publisher):
            await until(lambda: len(noting.seen) == 2)
    assert sorted((about["message_id"], headers.get("traceparent")) for headers, about in noting.seen) == [
        ("traced", TRACEPARENT),
        ("untraced", None),
    ]


@pytest.mark.parametrize("headers", [CONTEXT, {}])
async def test_a_dead_letter_keeps_its_context(clean_broker: str, headers: dict[str, str]) -> None:
    """So that a replay goes on with the trace; one that had none gets none, because it is put back as it was."""
    dead = list[DeadLetter]()
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp, Replayer(clean_broker, 1) as replayer:
        async with consuming(clean_broker, Handler(), publisher, dead=dead):
            await amqp.publish(b"?", type="message.send", message_id="m", headers=headers)
            await until(lambda: dead)
        with tracing.root("an operator's", SpanKind.SERVER, dict, {"traceparent": TRACEPARENT.replace("4bf9", "ffff")}):
            await replayer.put_back(dead[0].original)
        [back] = await amqp.take(CONVERSATIONS.name)
    assert dead[0].original.headers == headers
    assert back.headers == headers


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_an_odd_context_is_none(clean_broker: str, odd: Any) -> None:
    """Whatever a foreign client puts there, the message is handled."""
    handler = Handler()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher),
    ):
        odd_headers = {"traceparent": odd, "tracestate": odd}
        await amqp.publish(a_message().wire(), type="message.send", message_id="m", headers=odd_headers)
        await until(lambda: handler.done)

"""The trace context of messages between processes: passed on, kept by dead letters, never made up."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.trace import SpanKind

from service import tracing
from service.errors import Undeliverable
from service.messaging.envelope import Envelope
from service.messaging.topology import DEAD_LETTERS
from tests.amqp import Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from whatsapp_qr_contracts.commands import SendMessage

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONTEXT = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
ODD: list[Any] = ["", "00-0-0-00", 7, None, bytearray(b"\x00"), "x" * 10_000, TRACEPARENT.upper() + "-more"]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()


async def test_what_is_passed_on_stays_in_its_trace(clean_broker: str) -> None:
    """A command that came to the wrong partition goes to its own with the context that it came with."""
    seen = []

    async def note(_message: SendMessage, _envelope: Envelope) -> None:
        headers: dict[str, str] = {}
        tracing.inject(headers)
        seen.append((headers, structlog.contextvars.get_contextvars()))

    chatbot_id = a_chatbot(1, 2)
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, {SendMessage: note}, publisher, partitions=2),
    ):
        body = a_message(chatbot_id).wire()
        ids = {"message_id": "m", "correlation_id": "c"}
        await amqp.publish(body, "message.send.0", type="message.send", headers=CONTEXT, **ids)
        await until(lambda: seen)
    ((headers, bound),) = seen
    assert headers == CONTEXT
    assert bound == ids | {"chatbot_id": str(chatbot_id)} | {"trace_id": TRACEPARENT.split("-")[1]}


async def test_each_message_has_its_own_context(clean_broker: str) -> None:
    """Nothing of a message, or of whoever made the publisher connect, is in what another one causes."""
    seen = []

    async def note(message: SendMessage, _envelope: Envelope) -> None:
        seen.append((message.message, tracing.traceparent(), structlog.contextvars.get_contextvars()["message_id"]))

    async with publishing(clean_broker) as publisher:
        with tracing.root("first", SpanKind.SERVER, {}, CONTEXT):
            tracing.about(message_id="of the first")
            await send(publisher, a_chatbot(), "traced")
        structlog.contextvars.clear_contextvars()
        await send(publisher, a_chatbot(), "untraced")
        async with consuming(clean_broker, {SendMessage: note}, publisher):
            await until(lambda: len(seen) == 2)
    assert sorted(seen) == [("traced", TRACEPARENT, "traced"), ("untraced", None, "untraced")]


@pytest.mark.parametrize("headers", [CONTEXT, {}])
async def test_a_dead_letter_keeps_its_context(clean_broker: str, headers: dict[str, str]) -> None:
    """So that a replay goes on with the trace; one that had none gets none, because it is put back as it was."""

    async def bad(_message: SendMessage) -> None:
        raise Undeliverable("nobody knows it", code="unknown_session")

    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, Handler(bad).routes, publisher),
    ):
        await amqp.publish(a_message().wire(), type="message.send", message_id="m", headers=headers)
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert {name: value for name, value in dead.headers.items() if name in tracing.HEADERS} == headers


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_an_odd_context_is_none(clean_broker: str, odd: Any) -> None:
    """Whatever a foreign client puts there, the message is handled."""
    handler = Handler()
    async with (
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher),
    ):
        odd_headers = {"traceparent": odd, "tracestate": odd}
        await amqp.publish(a_message().wire(), type="message.send", message_id="m", headers=odd_headers)
        await until(lambda: handler.done)

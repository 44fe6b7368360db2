"""Reads a delivery: its message type, its content, and its partition key."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from opentelemetry.trace import Span, SpanKind
from pydantic import ValidationError

from service import tracing
from service.errors import Undeliverable
from service.messaging import topology
from service.messaging.envelope import Envelope
from service.messaging.inbox import Delivery
from whatsapp_qr_contracts.codes import DeadLetterReason
from whatsapp_qr_contracts.message import JOBS, MAX_BODY_BYTES, Message, storable


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """A message that was read."""

    delivery: Delivery
    body: Message
    envelope: Envelope
    key: str
    """Its partition key: messages of one key are handled in the order in which they came."""

    def traced(self, queue: str) -> AbstractContextManager[Span]:
        """Trace the work for this message, and add its ids to every log line of that work."""
        ids = {name: getattr(self.body, name, None) for name in ("session_id", "chatbot_id")}
        return traced(self.delivery, queue, **ids)


@contextmanager
def traced(delivery: Delivery, queue: str, **ids: object) -> Iterator[Span]:
    """Trace the work for a delivery, and add its ids to every log line of that work."""
    raw = delivery.raw
    before = structlog.contextvars.get_contextvars()
    try:
        describe = partial(tracing.received, queue, delivery.number, raw)
        with tracing.root(f"process {queue}", SpanKind.CONSUMER, describe, raw.headers) as span:
            tracing.about(correlation_id=raw.correlation_id or raw.message_id, message_id=raw.message_id, **ids)
            yield span
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**before)


def is_probe(delivery: Delivery) -> bool:
    """Return whether it is a probe: on another exchange, the same type would be an ordinary message."""
    return bool(delivery.raw.type == topology.PROBE and delivery.raw.exchange == JOBS)


def name_of(delivery: Delivery) -> str:
    """Return the name of the message: its type, or the name from its routing key."""
    return delivery.raw.type or topology.name_of(delivery.raw.routing_key or "")


def read(delivery: Delivery, models: Mapping[str, type[Message]], queue: str) -> Received:
    """Return the message of a delivery.

    Raises:
        Undeliverable: it can never be read.
    """
    raw, name = delivery.raw, name_of(delivery)
    if len(raw.body) > MAX_BODY_BYTES:
        message = f"the body has {len(raw.body)} bytes, and at most {MAX_BODY_BYTES} are read; the stored body is cut"
        raise Undeliverable(message, code=DeadLetterReason.TOO_LARGE)
    if name not in models:
        raise Undeliverable(f"{queue} carries no message of type {name!r}", code=DeadLetterReason.UNKNOWN_TYPE)
    body = _body(models[name], raw.body, raw.headers or {})
    envelope = Envelope(storable(raw.message_id or "").strip(), raw.timestamp, redelivered=bool(raw.redelivered))
    return Received(delivery, body, envelope, body.partition_key)


def _body(model: type[Message], body: bytes, headers: Mapping[str, Any]) -> Message:
    version = headers.get("schema-version", model.schema_version)
    if version not in range(1, model.schema_version + 1):
        message = (
            f"schema-version {version!r} of {model.name} is not known here; this service knows {model.schema_version}"
        )
        raise Undeliverable(message, code=DeadLetterReason.UNKNOWN_VERSION)
    try:
        return model.read(body)
    except ValidationError as error:
        # The content itself stays in the dead letter's body: it may hold data that must not be in a log.
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        detail = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)
        is_json = faults[0]["type"] != "json_invalid"
        code = DeadLetterReason.INVALID_MESSAGE if is_json else DeadLetterReason.INVALID_JSON
        raise Undeliverable(detail, code=code) from error

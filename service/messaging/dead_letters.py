"""What can never be processed is kept: the original bytes, with why, where from and which attempt in the headers."""

from typing import Any

from faststream.rabbit import RabbitMessage
from uuid_utils.compat import uuid7

from service.errors import Undeliverable
from service.messaging.publishing import Properties, Publisher, copied_headers
from service.messaging.topology import DEAD_LETTERS

_DETAIL_CHARACTERS = 8_000


async def dead_letter(publisher: Publisher, delivery: RabbitMessage, error: Undeliverable, *, queue: str) -> None:
    """Publish the original message to the dead letters, confirmed; the caller acknowledges it afterwards."""
    raw = delivery.raw_message
    headers: dict[str, Any] = {
        **copied_headers(raw.headers),
        "source-queue": queue,
        "source-exchange": raw.exchange or "",
        "source-routing-key": raw.routing_key or "",
    }
    await _publish(
        publisher,
        raw.body,
        error,
        properties=Properties(raw.message_id or str(uuid7()), raw.correlation_id or "", raw.type or "", headers),
    )


async def dead_letter_callback(publisher: Publisher, body: bytes, error: Undeliverable, *, path: str) -> None:
    """Keep the body of a gateway callback that fails validation."""
    properties = Properties(str(uuid7()), "", "", {"source-path": path})
    await _publish(publisher, body, error, properties=properties)


async def _publish(publisher: Publisher, body: bytes, error: Undeliverable, *, properties: Properties) -> None:
    why = {"reason": error.code, "detail": error.detail[:_DETAIL_CHARACTERS]}
    await publisher.publish_raw(
        body,
        exchange=DEAD_LETTERS,
        routing_key=error.code,
        properties=Properties(
            properties.message_id, properties.correlation_id, properties.type, {**properties.headers, **why}
        ),
    )

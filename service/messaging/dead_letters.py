"""What can never be processed is kept: the original bytes, with why, where from and which attempt in the headers.

A message comes to the dead letters in four ways, and `read_dead_letter` tells them apart: buried by a consumer, kept
by the ingress (a callback that it refused), moved by the broker (delivery limit), or passed on by an exchange that
has no queue for it.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from faststream.rabbit import RabbitMessage
from pamqp.decode import embedded_value as decode_table_value
from pamqp.encode import encode_table_value
from uuid_utils.compat import uuid7

from service.domain.dead_letters import UNROUTABLE, DeadLetter, Original
from service.errors import Undeliverable
from service.messaging import topology
from service.messaging.envelope import Properties, copied_headers
from service.messaging.lossless import to_json
from service.messaging.publishing import Publisher
from service.messaging.topology import DEAD_LETTERS
from whatsapp_qr_contracts.message import storable

_DETAIL_CHARACTERS = 8_000
_MAX_ORIGINAL_BYTES = 16_384
"""With the headers that are copied and the detail, all must fit into one frame of 128 KiB."""

_BURIALS = UUID("0b7a7c1e-3f44-4c55-8a35-5b0f4e2f6f6d")
_OURS = frozenset(
    {
        "source-queue",
        "source-exchange",
        "source-routing-key",
        "source-path",
        "reason",
        "detail",
        "burial",
        "original",
    }
)
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


async def dead_letter(publisher: Publisher, delivery: RabbitMessage, error: Undeliverable, *, queue: str) -> None:
    """Publish the original message to the dead letters, confirmed; the caller acknowledges it afterwards."""
    raw = delivery.raw_message
    copied = copied_headers(raw.headers)
    headers: dict[str, Any] = {
        **copied,
        "source-queue": queue,
        "source-exchange": raw.exchange or "",
        "source-routing-key": raw.routing_key or "",
        # The same for every attempt to bury this delivery.
        "burial": uuid5(_BURIALS, f"{raw.consumer_tag} {raw.delivery_tag} {raw.message_id}").hex,
        "original": _rest_of(raw, copied),
    }
    await _publish(
        publisher,
        raw.body,
        error,
        properties=Properties(raw.message_id or str(uuid7()), raw.correlation_id or "", raw.type or "", headers),
    )


async def dead_letter_callback(publisher: Publisher, body: bytes, error: Undeliverable, *, path: str) -> None:
    """Keep the body of a gateway callback that fails validation."""
    properties = Properties(str(uuid7()), "", "", {"source-path": path, "burial": uuid7().hex, "original": "{}"})
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


def _rest_of(raw: Any, copied: Mapping[str, Any]) -> str:
    """Return, as JSON, what a dead letter's own properties and headers do not say of the original."""
    changed = {
        name: to_json(value)
        for name, value in _without_brokers(raw.headers).items()
        if name in _OURS or name not in copied or not _survives(value)
    }
    properties = _properties(raw)
    text = json.dumps({**properties, "headers": changed})
    return text if len(text) <= _MAX_ORIGINAL_BYTES else json.dumps({**properties, "headersCut": True})


def _survives(value: Any) -> bool:
    try:
        encoded = encode_table_value(value)
        return bool(decode_table_value(encoded)[1] == value)
    except (TypeError, ValueError, OverflowError):
        return False


def _without_brokers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (headers or {}).items() if not name.startswith(_BROKERS)}


def _properties(raw: Any) -> dict[str, Any]:
    properties = {
        "messageId": raw.message_id,
        "correlationId": raw.correlation_id,
        "type": raw.type,
        "contentType": raw.content_type,
        "contentEncoding": raw.content_encoding,
        "replyTo": raw.reply_to,
        "expiration": raw.expiration,
        "priority": raw.priority,
        "timestamp": raw.timestamp,
        "appId": raw.app_id,
        "userId": raw.user_id,
    }
    return {name: to_json(value) for name, value in properties.items() if value not in {None, "", 0}}


# Reading them


def read_dead_letter(delivery: RabbitMessage) -> DeadLetter:
    """Return what a message on the dead letters' queue is."""
    raw = delivery.raw_message
    try:
        dead = _read(raw)
        dead.id  # noqa: B018  # raises where it cannot be computed
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        # Whoever forged its headers must not block those behind it.
        nothing = Original(raw.body, "", "", {}, {})
        what = f"what it says of its origin cannot be read: {type(error).__name__}"
        return DeadLetter(nothing, "unreadable", what, "", "", redelivered=bool(raw.redelivered), died_at=None)
    return dead


def _read(raw: Any) -> DeadLetter:
    if raw.exchange != DEAD_LETTERS:
        return _unroutable(raw)
    return _moved(raw) if "x-death" in (raw.headers or {}) else _buried(raw)


def _buried(raw: Any) -> DeadLetter:
    headers = raw.headers or {}
    # What was buried before this header existed is as its own properties say.
    properties: dict[str, Any] = _rest_in(headers["original"]) if "original" in headers else _properties(raw)
    kept = {name: to_json(value) for name, value in _without_brokers(headers).items() if name not in _OURS}
    original = Original(
        body=raw.body,
        exchange=str(headers.get("source-exchange", "")),
        routing_key=str(headers.get("source-routing-key", "")),
        properties={name: value for name, value in properties.items() if name != "headers"},
        headers=kept | (properties.get("headers") or {}),
    )
    return DeadLetter(
        original,
        reason=str(headers.get("reason") or raw.routing_key or "unknown"),
        detail=str(headers.get("detail", "")),
        source=str(headers.get("source-path") or headers.get("source-queue", "")),
        burial=str(storable(str(headers.get("burial", "")))),
        redelivered=bool(raw.redelivered),
        died_at=raw.timestamp,
    )


def _rest_in(text: str) -> Any:
    """Read what `_rest_of` wrote.

    Raises:
        ValueError: it never wrote that: NaN and infinity are no JSON.
    """
    rest = json.loads(text)
    json.dumps(rest, allow_nan=False)  # parse_constant would let 1e999 pass
    return _encodable(rest)


def _encodable(value: Any) -> Any:
    match value:
        case dict():
            return {_encodable(name): _encodable(item) for name, item in value.items()}
        case list():
            return [_encodable(item) for item in value]
        case str():
            # Not `storable`: AMQP has U+0000, and so has JSON in a database.
            return value.encode(errors="replace").decode()
        case _:
            return value


def _moved(raw: Any) -> DeadLetter:
    death = _first(raw.headers["x-death"])
    death = death if isinstance(death, dict) else {}
    properties = _properties(raw)
    expiration = str(death.get("original-expiration", ""))
    if expiration.isdigit():
        properties["expiration"] = int(expiration) / 1000  # the broker takes it off what it moves
    reason, at = str(death.get("reason", "moved")), death.get("time")
    what = f"{raw.message_id} {reason} {at} {death.get('count')}"
    original = Original(
        body=raw.body,
        exchange=str(death.get("exchange", "")),
        routing_key=str(_first(death.get("routing-keys")) or ""),
        properties=properties,
        headers={name: to_json(value) for name, value in _without_brokers(raw.headers).items()},
    )
    return DeadLetter(
        original,
        reason=reason,
        detail=f"the broker moved it from {death.get('queue')}: {reason}",
        source=topology.name_of(str(death.get("queue", ""))),
        burial=hashlib.sha256(what.encode()).hexdigest(),
        redelivered=bool(raw.redelivered),
        died_at=at if isinstance(at, datetime) else None,
    )


def _unroutable(raw: Any) -> DeadLetter:
    original = Original(
        body=raw.body,
        exchange=raw.exchange or "",
        routing_key=raw.routing_key or "",
        properties=_properties(raw),
        headers={name: to_json(value) for name, value in _without_brokers(raw.headers).items()},
    )
    return DeadLetter(
        original,
        reason=UNROUTABLE,
        detail=f"no queue is bound to {raw.exchange!r} under {raw.routing_key!r}",
        source=raw.exchange or "",
        burial="",
        redelivered=bool(raw.redelivered),
        died_at=None,
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None

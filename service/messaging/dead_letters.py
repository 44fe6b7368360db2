"""Dead letters: messages that can never be processed, stored with the reason.

A consumer writes its dead letters into the table directly. The dead letters' queue is for messages that reached no
handler. `read_dead_letter` distinguishes their origins: published by the ingress (a callback that it refused), moved by
the broker (delivery limit, or rejected by an AI worker), or routed there by an exchange that has no queue for it.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic.alias_generators import to_camel
from uuid_utils.compat import uuid7

from service.domain.dead_letters import UNROUTABLE, DeadLetter, Original
from service.errors import Undeliverable
from service.messaging import topology
from service.messaging.envelope import Properties
from service.messaging.lossless import to_json
from service.messaging.publishing import Publisher
from service.messaging.topology import DEAD_LETTERS
from whatsapp_qr_contracts.message import MAX_BODY_BYTES, storable

_DETAIL_CHARACTERS = 8_000
_OURS = frozenset(
    ["source-queue", "source-exchange", "source-routing-key", "source-path", "reason", "detail", "death-id", "original"]
)
_PROPERTIES = (
    *("message_id", "correlation_id", "type", "content_type", "content_encoding", "reply_to"),
    *("expiration", "priority", "timestamp", "app_id", "user_id"),
)
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


def dead_letter_of(raw: Any, error: Undeliverable, *, queue: str) -> DeadLetter:
    """Return the dead letter of a message that a consumer could not process; a body that is too large is cut."""
    return DeadLetter(
        _as_published(raw),
        reason=error.code,
        detail=error.detail[:_DETAIL_CHARACTERS],
        source=queue,
        death_id="",
        redelivered=bool(raw.redelivered),
        died_at=None,
    )


def _as_published(raw: Any) -> Original:
    return Original(
        body=raw.body[:MAX_BODY_BYTES],
        exchange=raw.exchange or "",
        routing_key=raw.routing_key or "",
        properties=_properties(raw),
        headers={name: to_json(value) for name, value in _without_brokers(raw.headers).items()},
    )


async def dead_letter_callback(publisher: Publisher, body: bytes, error: Undeliverable, *, path: str) -> None:
    """Publish the body of a gateway callback that fails validation: the ingress does not write to the database."""
    headers = {
        "source-path": path,
        "death-id": uuid7().hex,
        "original": "{}",
        "reason": error.code,
        "detail": error.detail[:_DETAIL_CHARACTERS],
    }
    await publisher.publish_raw(
        body[:MAX_BODY_BYTES],
        exchange=DEAD_LETTERS,
        routing_key=error.code,
        properties=Properties(str(uuid7()), "", "", headers),
    )


def _without_brokers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (headers or {}).items() if not name.startswith(_BROKERS)}


def _properties(raw: Any) -> dict[str, Any]:
    properties = {to_camel(name): getattr(raw, name) for name in _PROPERTIES}
    return {name: to_json(value) for name, value in properties.items() if value not in {None, "", 0}}


# Reading them


def read_dead_letter(raw: Any) -> DeadLetter:
    """Return the dead letter for a message from the dead letters' queue."""
    try:
        dead = _read(raw)
        dead.id  # noqa: B018  # raises if it cannot be computed
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        # A message with forged headers must not block the messages behind it.
        nothing = Original(raw.body[:MAX_BODY_BYTES], "", "", {}, {})
        what = f"its headers cannot be read: {type(error).__name__}"
        return DeadLetter(nothing, "unreadable", what, "", "", redelivered=bool(raw.redelivered), died_at=None)
    return dead


def _read(raw: Any) -> DeadLetter:
    if raw.exchange != DEAD_LETTERS:
        return _unroutable(raw)
    return _moved(raw) if "x-death" in (raw.headers or {}) else _published(raw)


def _published(raw: Any) -> DeadLetter:
    headers = raw.headers or {}
    # A dead letter from before this header existed has its original properties in its own.
    properties: dict[str, Any] = _rest_in(headers["original"]) if "original" in headers else _properties(raw)
    kept = {name: to_json(value) for name, value in _without_brokers(headers).items() if name not in _OURS}
    original = Original(
        body=raw.body[:MAX_BODY_BYTES],
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
        death_id=str(storable(str(headers.get("death-id", "")))),
        redelivered=bool(raw.redelivered),
        died_at=raw.timestamp,
    )


def _rest_in(text: str) -> Any:
    """Read the properties and headers from the header `original`.

    Raises:
        ValueError: it is not valid: NaN and infinity are not JSON.
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
            # Not `storable`: AMQP allows U+0000, and so does JSON in a database.
            return value.encode(errors="replace").decode()
        case _:
            return value


def _moved(raw: Any) -> DeadLetter:
    death = _first(raw.headers["x-death"])
    death = death if isinstance(death, dict) else {}
    properties = _properties(raw)
    expiration = str(death.get("original-expiration", ""))
    if expiration.isdigit():
        properties["expiration"] = int(expiration) / 1000  # the broker removes it from messages that it moves
    reason, at = str(death.get("reason", "moved")), death.get("time")
    what = f"{raw.message_id} {reason} {at} {death.get('count')}"
    original = Original(
        body=raw.body[:MAX_BODY_BYTES],
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
        death_id=hashlib.sha256(what.encode()).hexdigest(),
        redelivered=bool(raw.redelivered),
        died_at=at if isinstance(at, datetime) else None,
    )


def _unroutable(raw: Any) -> DeadLetter:
    return DeadLetter(
        _as_published(raw),
        reason=UNROUTABLE,
        detail=f"no queue is bound to {raw.exchange!r} under {raw.routing_key!r}",
        source=raw.exchange or "",
        death_id="",
        redelivered=bool(raw.redelivered),
        died_at=None,
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None

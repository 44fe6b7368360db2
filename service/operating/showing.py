"""Formats dead letters: as text for people, as JSON for machines, without secrets and control characters."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from service.persistence.tables import DeadLetterRow

MASK = "***"
_COLUMNS = ("ID", "DIED AT", "REASON", "SOURCE", "TYPE", "ATTEMPTS", "REPLAYED AT")
_SHORT_ID = 8
_QR_CODE = "qrcode"
_IMAGE = "data:image"


def summary(row: DeadLetterRow) -> dict[str, Any]:
    """Return a dead letter's fields for a list: none of them written by a customer or a caller."""
    return {
        "id": str(row.id),
        "diedAt": row.died_at.isoformat(),
        "reason": row.reason,
        "source": row.source,
        "type": row.type,
        "attempts": row.attempts,
        "replayedAt": row.replayed_at.isoformat() if row.replayed_at else None,
    }


def table(rows: Iterable[DeadLetterRow]) -> list[str]:
    """Return the lines of a list, the first of them a heading; ids are shortened."""
    lines = [_COLUMNS]
    for row in rows:
        fields = summary(row)
        seconds = (str(fields[name] or "-")[:19] for name in ("diedAt", "replayedAt"))
        died_at, replayed_at = seconds
        lines.append(
            (
                fields["id"][:_SHORT_ID],
                died_at,
                printable(row.reason),
                printable(row.source),
                printable(row.type) or "-",
                str(row.attempts),
                replayed_at,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def everything(row: DeadLetterRow, *, secrets: bool) -> dict[str, Any]:
    """Return all of a dead letter: `body` if it is text, otherwise `bodyBase64`; QR codes only if requested."""
    text = _text(row.body, secrets=secrets)
    body = {"bodyBase64": base64.b64encode(row.body).decode()} if text is None else {"body": text}
    return {
        **summary(row),
        "detail": row.detail,
        "exchange": row.exchange,
        "routingKey": row.routing_key,
        "messageId": row.message_id,
        "correlationId": row.correlation_id,
        "properties": row.properties,
        "headers": row.headers,
        **body,
    }


def described(row: DeadLetterRow, *, secrets: bool) -> list[str]:
    """Return all of a dead letter as lines, the body last."""
    fields = everything(row, secrets=secrets)
    lines = []
    for name, value in fields.items():
        shown = json.dumps(value) if isinstance(value, dict) else str("-" if value in {None, ""} else value)
        indented = printable(shown, keep="\n\t").replace("\n", "\n" + " " * 4)
        lines.append(f"{name}:".ljust(15) + indented)
    return lines


def printable(text: str, *, keep: str = "") -> str:
    """Return a text that can be printed to a terminal without side effects."""
    return "".join(c if c.isprintable() or c in keep else f"\\x{ord(c):02x}" for c in text)


def _text(body: bytes, *, secrets: bool) -> str | None:
    """Return a body as text, None if it is not text. QR codes are masked: with one, anyone can link the account."""
    try:
        # Pairs, because a name may occur twice.
        content = None if secrets else json.loads(body, object_pairs_hook=tuple)
        if _is_secret(content):
            return json.dumps(_masked(content), ensure_ascii=False)
    except (ValueError, RecursionError):
        text = _plain(body.decode(errors="replace"))
        if _QR_CODE in text or _IMAGE in text:
            return f"{MASK} (it contains a QR code: --secrets shows it)"
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _is_secret(content: Any) -> bool:
    match content:
        case tuple():
            return any(_plain(name) == _QR_CODE or _is_secret(value) for name, value in content)
        case list():
            return any(map(_is_secret, content))
        case str():
            return f"{_IMAGE}/" in content.lower()
        case _:
            return False


def _masked(content: Any) -> Any:
    match content:
        case tuple():
            return {name: MASK if _plain(name) == _QR_CODE else _masked(value) for name, value in content}
        case list():
            return [_masked(value) for value in content]
        case _:
            return MASK if _is_secret(content) else content


def _plain(text: str) -> str:
    return text.lower().replace("_", "").replace("\x00", "")

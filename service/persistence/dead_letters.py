"""The dead letters' table: one row for each message, regardless of how often it becomes a dead letter."""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, delete, tuple_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.domain.dead_letters import DeadLetter, Original, is_repetition
from service.persistence.database import Database, insert_new
from service.persistence.tables import DeadLetterRow, now
from whatsapp_qr_contracts.message import storable

log = structlog.get_logger()

_KEPT_PROPERTIES = ("messageId", "correlationId", "type")
_CHARACTERS = 255
_ID_DIGITS = 32
PAGE = 500
Place = tuple[datetime, UUID]
"""When a message became a dead letter, and its id."""


@dataclass(frozen=True)
class DeadLetters:
    """Stores dead letters, each in its own transaction."""

    database: Database

    async def keep(self, dead: DeadLetter) -> None:
        """Store one dead letter. Headers or properties that the database refuses are omitted, the body never is.

        Raises:
            DatabaseUnavailable: try again later.
        """
        try:
            await self.database.transact(partial(store, dead=dead))
        except (SQLAlchemyError, ValueError, TypeError, RecursionError) as error:
            bare = _bare(dead, error)
            log.exception("dead_letter_stored_bare", id=str(bare.id))
            await self.database.transact(partial(store, dead=bare))


def _bare(dead: DeadLetter, error: Exception) -> DeadLetter:
    """Return the part of a dead letter that any database accepts; it keeps the message's id, so its identity too."""
    original = dead.original
    return replace(
        dead,
        original=replace(
            original,
            properties={name: storable(text) for name in _KEPT_PROPERTIES if (text := original.text(name))},
            headers={},
        ),
        detail=f"{dead.detail}\n(stored without headers and most properties: {type(error).__name__})",
        death_id=storable(dead.death_id),
    )


async def store(tx: AsyncSession, dead: DeadLetter) -> None:
    """Store a dead letter: a new row, or one attempt more on the row of its message; a repetition changes nothing."""
    fields = _fields(dead)
    if await insert_new(tx, DeadLetterRow, id=dead.id, attempts=1, replayed_at=None, **fields):
        return
    query = select(DeadLetterRow).where(col(DeadLetterRow.id) == dead.id).with_for_update()
    row = (await tx.scalars(query)).one_or_none()
    if row is None:  # discarded between the two statements
        await insert_new(tx, DeadLetterRow, id=dead.id, attempts=1, replayed_at=None, **fields)
        return
    if is_repetition(dead, last_death_id=row.burial, replayed=row.replayed_at is not None):
        return
    for name, value in fields.items():
        setattr(row, name, value)
    row.attempts += 1
    row.replayed_at = None


def _fields(dead: DeadLetter) -> dict[str, Any]:
    original = dead.original
    return {
        "reason": _readable(dead.reason),
        "detail": str(storable(dead.detail)),
        "source": _readable(dead.source),
        "exchange": _readable(original.exchange),
        "routing_key": _readable(original.routing_key),
        "message_id": _readable(original.text("messageId")),
        "correlation_id": _readable(original.text("correlationId")),
        "type": _readable(original.text("type")),
        "body": original.body,
        "properties": {**original.properties, "exchange": original.exchange, "routingKey": original.routing_key},
        "headers": dict(original.headers),
        "burial": dead.death_id[:64],
        "died_at": dead.died_at or now(),
    }


def _readable(text: str) -> str:
    return str(storable(text))[:_CHARACTERS]


def original_of(row: DeadLetterRow) -> Original:
    """Return the original message of a row."""
    properties = dict(row.properties)
    exchange, routing_key = properties.pop("exchange", row.exchange), properties.pop("routingKey", row.routing_key)
    return Original(row.body, exchange, routing_key, properties, row.headers)


async def newest(tx: AsyncSession, *, reason: str | None, limit: int) -> list[DeadLetterRow]:
    """Return dead letters, the newest first."""
    query = select(DeadLetterRow).where(*_with(reason))
    return list(await tx.scalars(query.order_by(col(DeadLetterRow.died_at).desc(), col(DeadLetterRow.id)).limit(limit)))


async def ids_with(
    tx: AsyncSession, *, reason: str | None, waiting: bool, until: datetime, after: Place | None = None
) -> list[Place]:
    """Return a page of the dead letters until a moment, oldest first: the time and the id of each.

    `waiting`: only those that were not replayed.
    """
    died_at, row_id = col(DeadLetterRow.died_at), col(DeadLetterRow.id)
    query = select(died_at, row_id).where(*_with(reason), died_at <= until)
    if waiting:
        query = query.where(col(DeadLetterRow.replayed_at).is_(None))
    if after is not None:
        query = query.where(tuple_(died_at, row_id) > tuple_(*after))
    return [(at, found) for at, found in await tx.execute(query.order_by(died_at, row_id).limit(PAGE))]


def _with(reason: str | None) -> list[ColumnElement[bool]]:
    return [] if reason is None else [col(DeadLetterRow.reason) == reason]


async def ids_from(tx: AsyncSession, table: type[Any], prefix: str) -> list[UUID]:
    """Return at most two ids of a table that begin with these hexadecimal digits."""
    first, last = UUID(prefix.ljust(_ID_DIGITS, "0")), UUID(prefix.ljust(_ID_DIGITS, "f"))
    query = select(col(table.id)).where(col(table.id).between(first, last)).limit(2)
    return list(await tx.scalars(query))


async def mark_replayed(tx: AsyncSession, row: DeadLetterRow, at: datetime) -> None:
    """Record that a message was replayed, unless it has become a dead letter again meanwhile."""
    unchanged = (col(DeadLetterRow.id) == row.id, col(DeadLetterRow.attempts) == row.attempts)
    await tx.execute(update(DeadLetterRow).where(*unchanged).values(replayed_at=at))


async def discard(tx: AsyncSession, dead_letter_id: UUID) -> bool:
    """Delete a dead letter permanently; return whether it existed."""
    statement = delete(DeadLetterRow).where(col(DeadLetterRow.id) == dead_letter_id)
    return bool((await tx.execute(statement)).rowcount)  # type: ignore[attr-defined]

"""Rows of which something has still to be told, a page at a time, for the process that owns their partitions.

The conditions of the partial indexes are written out, not bound: only so are they used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.domain.identities import key_hash
from service.persistence.database import clock, on_sqlite
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, SessionRow

PAGE = 200


@dataclass(frozen=True, slots=True)
class Part:
    """What a process may tell: the rows of its partitions that have not changed for a while.

    Args:
        partitions: how many there are.
        owned: its own, and since when: what was taken over anew is looked through.
        age: seconds for which a row has not changed; less, and whoever wrote it may be telling it.
        busy: keys whose messages are being handled: their sessions are told at the end of that.
        page: rows at once, at most.
    """

    partitions: int
    owned: Mapping[int, float]
    age: float = 0.0
    busy: frozenset[str] = frozenset()
    page: int = PAGE


def _of(
    tx: AsyncSession, part: Part, table: type[Any], changed_at: Any, *where: ColumnElement[bool] | TextClause
) -> Select[Any]:
    mine = (col(table.key_hash) % part.partitions).in_(sorted(part.owned))
    query = select(table).where(*where, mine).limit(part.page)
    return query.where(col(changed_at) <= clock(tx, -timedelta(seconds=part.age))) if part.age else query


def _not(tx: AsyncSession, flag: str) -> str:
    return f"{flag} = 0" if on_sqlite(tx) else f"NOT {flag}"


async def _rows(tx: AsyncSession, query: Select[Any]) -> list[Any]:
    return list(await tx.scalars(query))


async def sessions(tx: AsyncSession, part: Part) -> list[SessionRow]:
    """Return sessions whose present version is not known to be announced."""
    row = SessionRow
    query = _of(tx, part, row, row.moved_at, text("sessions.announced_version < sessions.version"))
    if part.busy:
        query = query.where(col(row.key_hash).not_in(map(key_hash, part.busy)))
    return await _rows(tx, query.order_by(col(row.session_id)))


async def commands(tx: AsyncSession, part: Part, *, about_messages: bool) -> list[CommandRow]:
    """Return commands whose answer is not known to be announced: those about messages, or the others."""
    row = CommandRow
    names = col(row.name).startswith("message.")
    query = _of(tx, part, row, row.created_at, text(_not(tx, "told")), names if about_messages else ~names)
    return await _rows(tx, query.order_by(col(row.created_at)))


async def conversations(tx: AsyncSession, part: Part) -> list[ConversationRow]:
    """Return conversations whose start is not known to be announced."""
    row = ConversationRow
    query = _of(tx, part, row, row.changed_at, text(_not(tx, "announced")))
    return await _rows(tx, query.order_by(col(row.chatbot_id)))


async def to_hand_over(tx: AsyncSession, part: Part) -> list[MessageRow]:
    """Return customers' messages that are not known to be handed to the AI workers, in order per conversation."""
    row = MessageRow
    query = _of(tx, part, row, row.changed_at, text(f"{_not(tx, 'handed_over')} AND role = 'USER'"))
    return await _rows(tx, query.order_by(col(row.conversation_id), col(row.sequence)))


async def to_enqueue(tx: AsyncSession, part: Part) -> list[MessageRow]:
    """Return messages to send whose job is not known to be in the outbound consumer's queue."""
    row = MessageRow
    query = _of(tx, part, row, row.changed_at, text(f"{_not(tx, 'handed_over')} AND role = 'ASSISTANT'"))
    return await _rows(tx, query.order_by(col(row.session_id), col(row.lane_number)))


async def received(tx: AsyncSession, part: Part) -> list[MessageRow]:
    """Return customers' messages whose event is not known to be announced."""
    return await _untold(tx, part, "USER")


async def statuses(tx: AsyncSession, part: Part) -> list[MessageRow]:
    """Return messages to send whose present status is not known to be announced."""
    return await _untold(tx, part, "ASSISTANT")


async def _untold(tx: AsyncSession, part: Part, role: str) -> list[MessageRow]:
    row = MessageRow
    query = _of(tx, part, row, row.changed_at, text(f"told_version < version AND role = '{role}'"))
    return await _rows(tx, query.order_by(col(row.conversation_id), col(row.created_at)))

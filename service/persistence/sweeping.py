"""What is unfinished and has not been touched for long, by the database's clock; in batches, in the order to do it.

The conditions of the partial indexes are written out, not bound: only so are they used.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, TextClause, delete, func, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col

from service.persistence import lanes
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, ReceiptRow, SessionRow
from whatsapp_qr_contracts.message import Role, SessionStatus

BATCH = 200
_KEPT = timedelta(hours=24)
_PENDING = text("messages.delivery_status = 'PENDING'")


@dataclass(frozen=True, slots=True)
class Head:
    """The first message in the lane of a connected session."""

    session_id: str
    chatbot_id: UUID
    message_id: UUID
    tried: bool
    """Whether somebody has tried to send it."""
    claimed: bool
    """Whether somebody may be sending it at this moment."""
    changed_at: datetime
    idle: float
    """Seconds since its row was last written."""
    overdue: float | None
    """Seconds since the lane should have been looked at; None where nobody means to come back to it."""


def _unannounced(database: Database, table: str) -> TextClause:
    return text(f"{table}.announced = 0" if database.is_sqlite else f"NOT {table}.announced")


def _moment(database: Database, offset: timedelta = timedelta()) -> Any:
    """Return the present time, shifted, as one value for a whole statement: an index can be searched only for that."""
    return select(database.clock(offset)).scalar_subquery()


async def unhanded(database: Database, tx: AsyncSession, age: timedelta) -> list[MessageRow]:
    """Return customers' messages that are not known to be handed to the AI workers."""
    query = _forgotten(database, Role.USER, age)
    place = (col(MessageRow.session_id), col(MessageRow.conversation_id), col(MessageRow.sequence))
    return list(await tx.scalars(query.order_by(*place).limit(BATCH)))


async def unannounced_statuses(database: Database, tx: AsyncSession, age: timedelta) -> list[MessageRow]:
    """Return messages to send whose present status is not known to be announced."""
    query = _forgotten(database, Role.ASSISTANT, age)
    return list(await tx.scalars(query.order_by(col(MessageRow.session_id), col(MessageRow.lane_number)).limit(BATCH)))


def _forgotten(database: Database, role: Role, age: timedelta) -> Select[MessageRow]:
    return select(MessageRow).where(
        _unannounced(database, "messages"),
        col(MessageRow.role) == role,
        col(MessageRow.changed_at) <= database.clock(-age),
    )


async def unannounced_conversations(database: Database, tx: AsyncSession, age: timedelta) -> list[ConversationRow]:
    """Return conversations whose start is not known to be announced."""
    query = select(ConversationRow).where(
        _unannounced(database, "conversations"), col(ConversationRow.changed_at) <= database.clock(-age)
    )
    return list(await tx.scalars(query.order_by(col(ConversationRow.chatbot_id)).limit(BATCH)))


async def unannounced_sessions(database: Database, tx: AsyncSession, age: timedelta) -> list[SessionRow]:
    """Return sessions whose present version is not known to be announced."""
    behind = text("sessions.announced_version < sessions.version")
    query = select(SessionRow).where(behind, col(SessionRow.moved_at) <= database.clock(-age))
    return list(await tx.scalars(query.order_by(col(SessionRow.session_id)).limit(BATCH)))


async def heads(database: Database, tx: AsyncSession) -> list[Head]:
    """Return the first message of each lane from which something could be sent now."""
    waiting = aliased(MessageRow, name="waiting")
    first = (
        select(func.min(col(waiting.lane_number)))
        .where(col(waiting.session_id) == col(SessionRow.session_id), text("waiting.delivery_status = 'PENDING'"))
        .correlate(SessionRow)
        .scalar_subquery()
    )
    query = (
        select(
            col(MessageRow.session_id),
            col(MessageRow.chatbot_id),
            col(MessageRow.id),
            col(MessageRow.claim),
            col(MessageRow.claimed_until),
            col(MessageRow.changed_at),
            col(SessionRow.drain_at),
            database.clock(),
        )
        .select_from(SessionRow)
        .join(MessageRow, col(MessageRow.session_id) == col(SessionRow.session_id))
        .where(col(SessionRow.status) == SessionStatus.CONNECTED, _PENDING, col(MessageRow.lane_number) == first)
        .order_by(col(SessionRow.session_id))
    )
    rows = await tx.execute(query)
    return [
        Head(
            session_id=session_id,
            chatbot_id=chatbot_id,
            message_id=message_id,
            tried=claim is not None,
            claimed=claimed_until is not None and claimed_until > at,
            changed_at=changed_at,
            idle=(at - changed_at).total_seconds(),
            overdue=(at - drain_at).total_seconds() if drain_at else None,
        )
        for session_id, chatbot_id, message_id, claim, claimed_until, changed_at, drain_at, at in rows
    ]


async def expire(database: Database, tx: AsyncSession) -> list[MessageRow]:
    """Fail messages that waited too long, wherever they stand in their lanes and whether or not these can send."""
    unclaimed = or_(col(MessageRow.claimed_until).is_(None), col(MessageRow.claimed_until) <= database.clock())
    due = col(MessageRow.expires_at) <= _moment(database)
    longest = select(col(MessageRow.id)).where(_PENDING, due, unclaimed).order_by(col(MessageRow.expires_at))
    query = (
        select(MessageRow)
        .where(col(MessageRow.id).in_(longest.limit(BATCH)), _PENDING, unclaimed)
        .order_by(col(MessageRow.session_id), col(MessageRow.lane_number))
        .with_for_update(skip_locked=True)  # whoever has it locked is about to claim it, or to expire it himself
    )
    expired, at = list(await tx.scalars(query)), await database.present(tx)
    for message in expired:
        lanes.expire(message, at)
    return expired


async def forget_old(database: Database, tx: AsyncSession) -> int:
    """Delete commands and receipts that were kept long enough; return how many."""
    deleted = 0
    old = _moment(database, -_KEPT)
    command = tuple_(col(CommandRow.chatbot_id), col(CommandRow.command_id))
    receipt = tuple_(col(ReceiptRow.session_id), col(ReceiptRow.whatsapp_message_id), col(ReceiptRow.status))
    for table, key, created_at in (
        (CommandRow, command, col(CommandRow.created_at)),
        (ReceiptRow, receipt, col(ReceiptRow.created_at)),
    ):
        oldest = select(*key.clauses).where(created_at <= old).order_by(created_at).limit(BATCH)
        deleted += (await tx.execute(delete(table).where(key.in_(oldest)))).rowcount  # type: ignore[attr-defined]
    return deleted

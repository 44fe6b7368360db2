"""Finds work that was not resumed, by the database's clock: lanes that sleep with messages to send, old rows.

The conditions of the partial indexes are literals, not bound parameters: otherwise the indexes are not used.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, or_, select, text, true, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.persistence import lanes
from service.persistence.database import clock
from service.persistence.tables import AWAKE, EXPIRING, LIVE, CommandRow, LaneRow, MessageRow, ReceiptRow, SessionRow
from whatsapp_qr_contracts.message import SessionStatus

BATCH = 200
_KEPT = timedelta(hours=24)


def _moment(tx: AsyncSession, offset: timedelta = timedelta()) -> Any:
    """Return the present time, shifted, as one value for a whole statement: only such a value can use an index."""
    return select(clock(tx, offset)).scalar_subquery()


async def wake_expired(tx: AsyncSession) -> int:
    """Wake lanes that contain an expired message, even if they cannot send; return how many."""
    query = select(col(MessageRow.session_id)).where(text(EXPIRING), col(MessageRow.expires_at) <= _moment(tx))
    found = set(await tx.scalars(query.order_by(col(MessageRow.expires_at)).limit(BATCH)))
    await lanes.wake(tx, found)
    return len(found)


async def wake_forgotten(tx: AsyncSession, age: timedelta) -> list[str]:
    """Wake sleeping lanes whose first message could be sent and has waited too long; return them."""
    query = (
        select(col(SessionRow.session_id))
        .join(MessageRow, col(MessageRow.id) == lanes.first_pending())
        .join(LaneRow, col(LaneRow.session_id) == col(SessionRow.session_id))
        .where(
            text(f"({LIVE})"),
            col(SessionRow.status) == SessionStatus.CONNECTED,
            col(LaneRow.wake_at).is_(None),
            col(MessageRow.changed_at) <= _moment(tx, -age),
        )
    )
    found = list(await tx.scalars(query.order_by(col(SessionRow.session_id)).limit(BATCH)))
    await lanes.wake(tx, found)
    return found


async def tried_in_vain(tx: AsyncSession, session_ids: Collection[str]) -> dict[str, UUID]:
    """Return, by session, the first message of each of these lanes whose sending was tried and has not succeeded."""
    begun = col(LaneRow.claimed_message) == col(MessageRow.id)
    query = (
        select(col(SessionRow.session_id), col(MessageRow.id))
        .join(MessageRow, col(MessageRow.id) == lanes.first_pending())
        .join(LaneRow, col(LaneRow.session_id) == col(SessionRow.session_id))
        .where(
            col(SessionRow.session_id).in_(session_ids),
            col(SessionRow.status) == SessionStatus.CONNECTED,
            text(AWAKE),
            or_(col(LaneRow.deferrals) > 0, col(MessageRow.attempts) > 0, begun),
        )
    )
    return {session_id: message_id for session_id, message_id in await tx.execute(query)}  # noqa: C416  # dict() takes no rows


async def forget_old(tx: AsyncSession) -> int:
    """Delete answered commands and receipts that have been kept long enough; return how many."""
    deleted = 0
    table: Any
    for table, is_done in ((CommandRow, col(CommandRow.told_version) >= col(CommandRow.version)), (ReceiptRow, true())):
        primary, created_at = table.__table__.primary_key, col(table.created_at)
        old = select(*primary).where(created_at <= _moment(tx, -_KEPT), is_done).order_by(created_at).limit(BATCH)
        deleted += (await tx.execute(delete(table).where(tuple_(*primary).in_(old)))).rowcount  # type: ignore[attr-defined]
    return deleted

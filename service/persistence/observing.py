"""The state of the whole service in the database, for its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, literal_column, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.persistence.database import Database, present
from service.persistence.tables import PENDING, TO_HAND_OVER, ChatbotRow, DeadLetterRow, MessageRow, SessionRow
from whatsapp_qr_contracts.message import SessionStatus

_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Observed:
    """The service at one moment; ages in seconds, 0 if nothing waits."""

    sessions: Mapping[SessionStatus, int]
    oldest_pending: float
    """Of messages that a consumer may send at present: their session is CONNECTED."""
    oldest_pending_away: float
    """Of messages that wait for their session."""
    oldest_unhandled: float
    dead_letters: Mapping[str, int]


async def observe(database: Database) -> Observed:
    """Read all values.

    Raises:
        DatabaseUnavailable: no answer within 2 s.
    """

    async def look(tx: AsyncSession) -> Observed:
        at = await present(tx)
        return Observed(
            sessions=await _sessions(tx),
            oldest_pending=await _age(tx, at, *_pending(connected=True)),
            oldest_pending_away=await _age(tx, at, *_pending(connected=False)),
            oldest_unhandled=await _age(tx, at, text(TO_HAND_OVER)),
            dead_letters=await _dead_letters(tx),
        )

    return await database.read(look, seconds=_SECONDS)


async def _sessions(tx: AsyncSession) -> dict[SessionStatus, int]:
    query = (
        select(col(SessionRow.status), func.count())
        .join(ChatbotRow, col(ChatbotRow.id) == col(SessionRow.chatbot_id))
        .where(col(ChatbotRow.removed_at).is_(None))
        .group_by(col(SessionRow.status))
    )
    counted = {label: count for label, count in await tx.execute(query)}  # noqa: C416  # dict() takes no rows
    return {status: counted.get(status, 0) for status in SessionStatus}


def _pending(*, connected: bool) -> tuple[ColumnElement[bool], ...]:
    is_connected = col(SessionRow.status) == SessionStatus.CONNECTED
    of_session = exists().where(col(SessionRow.session_id) == col(MessageRow.session_id), is_connected)
    return literal_column(PENDING), of_session if connected else ~of_session


async def _age(tx: AsyncSession, at: datetime, *where: object) -> float:
    query = select(func.min(col(MessageRow.created_at))).where(*where)  # type: ignore[arg-type]
    oldest: datetime | None = (await tx.execute(query)).scalar_one()
    return max(0.0, (at - oldest).total_seconds()) if oldest is not None else 0.0


async def _dead_letters(tx: AsyncSession) -> dict[str, int]:
    query = select(col(DeadLetterRow.reason), func.count()).where(col(DeadLetterRow.replayed_at).is_(None))
    return {label: count for label, count in await tx.execute(query.group_by(col(DeadLetterRow.reason)))}  # noqa: C416  # dict() takes no rows

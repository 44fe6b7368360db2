"""Chatbots, their sessions and the commands for them."""

from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service import metrics
from service.domain.identities import key_hash
from service.errors import DatabaseUnavailable
from service.persistence.columns import DatabaseClock
from service.persistence.database import insert_new
from service.persistence.tables import ChatbotRow, CommandRow, LaneRow, SessionRecord, SessionRow, now
from whatsapp_qr_contracts.message import SessionStatus
from whatsapp_qr_contracts.partitions import chatbot_key

if TYPE_CHECKING:
    from datetime import datetime


async def session_of(tx: AsyncSession, chatbot_id: UUID, *, lock: bool = False) -> SessionRow | None:
    """Return a chatbot's session, if it has one; locked against other transactions if requested."""
    query = select(SessionRow).where(col(SessionRow.chatbot_id) == chatbot_id)
    return (await tx.scalars(query.with_for_update() if lock else query)).one_or_none()


async def session_by_id(tx: AsyncSession, session_id: str, *, lock: bool = False) -> SessionRow | None:
    """Return the session with a public id, if it exists; locked against other transactions if requested."""
    query = select(SessionRow).where(col(SessionRow.session_id) == session_id)
    return (await tx.scalars(query.with_for_update() if lock else query)).one_or_none()


async def locked_unchanged(tx: AsyncSession, seen: SessionRow) -> SessionRow:
    """Return a session, locked, for a change that was decided on the state that was read before.

    Raises:
        DatabaseUnavailable: another process changed it meanwhile; decide again.
    """
    session = await session_by_id(tx, seen.session_id, lock=True)
    if session is None or session.version != seen.version:
        raise DatabaseUnavailable("the session was changed by another process meanwhile")
    return session


async def open_session(tx: AsyncSession, chatbot_id: UUID, session_id: str) -> SessionRow:
    """Return the chatbot's session, locked; if there is none, create it with the given id, and its lane."""
    hashed = key_hash(chatbot_key(chatbot_id))
    new = SessionRow(chatbot_id=chatbot_id, session_id=session_id, status=SessionStatus.DISCONNECTED, key_hash=hashed)
    if await insert_new(tx, SessionRow, **new.model_dump()):
        tx.add(LaneRow(session_id=session_id, key_hash=hashed))
    return (
        await tx.scalars(select(SessionRow).where(col(SessionRow.chatbot_id) == chatbot_id).with_for_update())
    ).one()


def move(
    tx: AsyncSession,
    session: SessionRecord,
    status: SessionStatus,
    *,
    wanted: bool,
    caused_by: str = "",
    reason: str | None = None,
    qr_code: str | None = None,
    phone_number: str | None = None,
) -> None:
    """Change a session and raise its version. A QR code is stored only as long as it can be scanned."""
    at = now()
    session.status, session.status_reason, session.wanted = status, reason, wanted
    session.qr_code, session.qr_at = (qr_code, at) if qr_code else (None, None)
    if status is SessionStatus.CONNECTED:
        session.last_connected_at = at
        session.phone_number = phone_number or session.phone_number
    session.version += 1
    session.correlation_id = caused_by
    session.updated_at = at
    session.moved_at = cast("datetime", DatabaseClock())
    counter = metrics.TRANSITIONS.labels(session.status, metrics.transition_reason(session.status_reason))
    event.listen(tx.sync_session, "after_commit", lambda _: counter.inc(), once=True)


async def chatbot_is_known(tx: AsyncSession, chatbot_id: UUID) -> bool:
    """Return whether a chatbot is registered and not removed."""
    chatbot = await tx.get(ChatbotRow, chatbot_id)
    return chatbot is not None and chatbot.removed_at is None


async def register_chatbot(tx: AsyncSession, chatbot_id: UUID) -> None:
    """Register a chatbot, even if it was removed before."""
    await insert_new(tx, ChatbotRow, id=chatbot_id, registered_at=now(), removed_at=None)
    (await tx.get_one(ChatbotRow, chatbot_id)).removed_at = None


async def remove_chatbot(tx: AsyncSession, chatbot_id: UUID) -> None:
    """Mark a chatbot as removed; its rows stay."""
    chatbot = await tx.get(ChatbotRow, chatbot_id)
    if chatbot is not None and chatbot.removed_at is None:
        chatbot.removed_at = now()


async def command_row(tx: AsyncSession, new: CommandRow) -> CommandRow:
    """Return the row with a command's id, created if there is none; it may belong to another command."""
    await insert_new(tx, CommandRow, **new.model_dump())
    return await tx.get_one(CommandRow, (new.chatbot_id, new.command_id))


async def command_outcome(tx: AsyncSession, chatbot_id: UUID, command_id: str) -> dict[str, Any] | None:
    """Return the event that answers a command, if the command has ended."""
    row = await tx.get(CommandRow, (chatbot_id, command_id))
    return row.outcome if row is not None else None

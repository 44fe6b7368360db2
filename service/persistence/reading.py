"""What the ingress reads. Pages go on after a cursor: the place of the last row that was shown."""

import base64
import binascii
import json
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.errors import Rejected
from service.persistence.tables import ChatbotRow, ConversationRow, MessageRow, SessionRow

Place = tuple[datetime, UUID]


async def current_session(
    tx: AsyncSession, *, chatbot_id: UUID | None = None, session_id: str | None = None, lock: bool = False
) -> SessionRow | None:
    """Return a chatbot's session, or that of a public id, unless the chatbot was removed; locked if asked for."""
    is_it = col(SessionRow.session_id) == session_id if chatbot_id is None else col(SessionRow.chatbot_id) == chatbot_id
    query = select(SessionRow).join(ChatbotRow, col(ChatbotRow.id) == col(SessionRow.chatbot_id))
    query = query.where(col(ChatbotRow.removed_at).is_(None), is_it)
    return (await tx.scalars(query.with_for_update(of=SessionRow) if lock else query)).one_or_none()


async def conversations_page(
    tx: AsyncSession, chatbot_id: UUID, *, limit: int, after: Place | None
) -> tuple[list[ConversationRow], Place | None]:
    """Return conversations of a chatbot, newest first, and where the next page begins."""
    at, row_id = col(ConversationRow.last_message_at), col(ConversationRow.id)
    query = select(ConversationRow).where(col(ConversationRow.chatbot_id) == chatbot_id)
    if after is not None:
        query = query.where(tuple_(at, row_id) < tuple_(*after))
    rows = list(await tx.scalars(query.order_by(at.desc(), row_id.desc()).limit(limit + 1)))
    more = len(rows) > limit
    return rows[:limit], (rows[limit - 1].last_message_at, rows[limit - 1].id) if more else None


async def messages_page(
    tx: AsyncSession, conversation_id: UUID, *, limit: int, after: Place | None
) -> tuple[list[MessageRow], Place | None]:
    """Return messages of a conversation, oldest first, and where the next page begins."""
    at, row_id = col(MessageRow.created_at), col(MessageRow.id)
    query = select(MessageRow).where(col(MessageRow.conversation_id) == conversation_id)
    if after is not None:
        query = query.where(tuple_(at, row_id) > tuple_(*after))
    rows = list(await tx.scalars(query.order_by(at, row_id).limit(limit + 1)))
    more = len(rows) > limit
    return rows[:limit], (rows[limit - 1].created_at, rows[limit - 1].id) if more else None


def cursor_of(place: Place | None) -> str | None:
    """Return the text that stands for a place."""
    if place is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([place[0].isoformat(), str(place[1])]).encode()).decode()


def place_of(cursor: str | None) -> Place | None:
    """Return the place that a text stands for.

    Raises:
        Rejected: no page ever gave this cursor.
    """
    if cursor is None:
        return None
    try:
        at, row_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(at).astimezone(UTC), UUID(row_id)
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
        message = "take the cursor from nextCursor of the page before"
        raise Rejected(message, code="invalid_cursor") from error

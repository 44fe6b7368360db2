"""Queries of the ingress. Pages continue after a cursor: the place of the last row of the previous page."""

import base64
import binascii
import json
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, tuple_
from sqlalchemy import select as select_columns
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.errors import Rejected
from service.persistence.database import on_sqlite
from service.persistence.records import among, table_of
from service.persistence.tables import (
    ChatbotRow,
    ConversationRow,
    MessageRecord,
    MessageRow,
    SessionRecord,
    SessionRow,
)

Place = tuple[datetime, UUID]


async def current_session(
    tx: AsyncSession, *, chatbot_id: UUID | None = None, session_id: str | None = None, lock: bool = False
) -> SessionRow | None:
    """Return a chatbot's session, or that of a public id, unless the chatbot was removed; locked if requested."""
    is_it = col(SessionRow.session_id) == session_id if chatbot_id is None else col(SessionRow.chatbot_id) == chatbot_id
    query = select(SessionRow).join(ChatbotRow, col(ChatbotRow.id) == col(SessionRow.chatbot_id))
    query = query.where(col(ChatbotRow.removed_at).is_(None), is_it)
    return (await tx.scalars(query.with_for_update(of=SessionRow) if lock else query)).one_or_none()


Send = tuple[UUID, UUID | None]
"""A chatbot, and the message that its caller may have sent before."""
Known = tuple[MessageRecord | None, SessionRecord | None]


async def before_sends(tx: AsyncSession, keys: Collection[Send]) -> dict[Send, Known]:
    """Return for each send the message if it is known, and the chatbot's session, unless the chatbot was removed."""
    connection, sqlite = await tx.connection(), on_sqlite(tx)
    found = await connection.execute(_current_sessions(sqlite=sqlite), {"given": list({key[0] for key in keys})})
    sessions = {row["chatbot_id"]: SessionRecord(**row) for row in found.mappings()}
    messages: dict[UUID, MessageRecord] = {}
    if ids := [message_id for _, message_id in keys if message_id is not None]:
        found = await connection.execute(_messages(sqlite=sqlite), {"given": ids})
        messages = {row["id"]: MessageRecord(**row) for row in found.mappings()}
    return {key: (messages.get(key[1]) if key[1] else None, sessions.get(key[0])) for key in keys}


@cache
def _current_sessions(*, sqlite: bool) -> Select[Any]:
    session, chatbot = table_of(SessionRow), table_of(ChatbotRow)
    of = among(session.c.chatbot_id, "given", sqlite=sqlite), chatbot.c.removed_at.is_(None)
    return select_columns(session).join(chatbot, chatbot.c.id == session.c.chatbot_id).where(*of)


@cache
def _messages(*, sqlite: bool) -> Select[Any]:
    message = table_of(MessageRow)
    return select_columns(message).where(among(message.c.id, "given", sqlite=sqlite))


async def conversations_page(
    tx: AsyncSession, chatbot_id: UUID, *, limit: int, after: Place | None
) -> tuple[list[ConversationRow], Place | None]:
    """Return conversations of a chatbot, newest first, and the place of the next page."""
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
    """Return messages of a conversation, oldest first, and the place of the next page."""
    at, row_id = col(MessageRow.created_at), col(MessageRow.id)
    query = select(MessageRow).where(col(MessageRow.conversation_id) == conversation_id)
    if after is not None:
        query = query.where(tuple_(at, row_id) > tuple_(*after))
    rows = list(await tx.scalars(query.order_by(at, row_id).limit(limit + 1)))
    more = len(rows) > limit
    return rows[:limit], (rows[limit - 1].created_at, rows[limit - 1].id) if more else None


def cursor_of(place: Place | None) -> str | None:
    """Return the cursor of a place."""
    if place is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([place[0].isoformat(), str(place[1])]).encode()).decode()


def place_of(cursor: str | None) -> Place | None:
    """Return the place of a cursor.

    Raises:
        Rejected: no page contained this cursor.
    """
    if cursor is None:
        return None
    try:
        at, row_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(at).astimezone(UTC), UUID(row_id)
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
        message = "take the cursor from nextCursor of the page before"
        raise Rejected(message, code="invalid_cursor") from error

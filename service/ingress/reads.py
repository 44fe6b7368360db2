"""Calls that only read, from the database, within 2 s."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlmodel import SQLModel

from service.errors import Rejected
from service.ingress.bodies import (
    ConversationData,
    ConversationPage,
    MessageAnswer,
    MessageData,
    MessagePage,
    QrCode,
    SessionAnswer,
    SessionData,
    SessionStatusAnswer,
    SessionStatusData,
)
from service.ingress.commands import READ_SECONDS
from service.ingress.problems import Problem, responses
from service.ingress.streams import Streams
from service.persistence import reading
from service.persistence.database import Database, Work
from service.persistence.reading import Place, cursor_of
from service.persistence.tables import ConversationRow, MessageRow, SessionRow
from whatsapp_qr_contracts.message import Text, WireModel

Limit = Annotated[int, Query(ge=1, le=200, description="Rows per page")]
Cursor = Annotated[str | None, Query(max_length=200, description="nextCursor of the page before")]

_RETRY_MILLISECONDS = 2000  # after which a browser reconnects


B = TypeVar("B", bound=WireModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Reads:
    """The endpoints that only read."""

    database: Database
    streams: Streams

    def router(self) -> APIRouter:
        """Return the routes of the endpoints."""
        router = APIRouter(prefix="/whatsapp-qr", responses=responses(400, 404, 503))
        router.get("/qr-code/{session_id}", tags=["Sessions"])(self.qr_code)
        router.get("/status/{session_id}", tags=["Sessions"])(self.status)
        router.get("/session/{chatbot_id}", tags=["Sessions"])(self.session)
        known = [Depends(self.status)]  # once an answer has begun it cannot become a 404
        router.get("/events/{session_id}", tags=["Streams"], response_class=EventSourceResponse, dependencies=known)(
            self.events
        )
        router.get("/messages/{message_id}", tags=["Messages"])(self.message)
        router.get("/conversations", tags=["Conversations"])(self.conversations)
        router.get("/conversations/{conversation_id}/messages", tags=["Conversations"])(self.messages)
        return router

    async def qr_code(self, session_id: Text) -> QrCode:
        """Return the QR code to scan; 404 if there is none yet and once the session is connected."""
        session = _known(await self._read(lambda tx: reading.current_session(tx, session_id=session_id)))
        if session.qr_code is None:
            raise Problem(404, "no_qr_code", f"there is no QR code while the session is {session.status}")
        return QrCode(session_id=session.session_id, status=session.status, qr_code=session.qr_code)

    async def status(self, session_id: Text) -> SessionStatusAnswer:
        """Return a session's status."""
        session = _known(await self._read(lambda tx: reading.current_session(tx, session_id=session_id)))
        return SessionStatusAnswer(session=_shown(session, SessionStatusData))

    async def session(self, chatbot_id: UUID) -> SessionAnswer:
        """Return a chatbot's session, with its QR code while there is one."""
        session = _known(await self._read(lambda tx: reading.current_session(tx, chatbot_id=chatbot_id)))
        return SessionAnswer(data=_shown(session, SessionData))

    async def events(
        self, session_id: Text, last_event_id: Annotated[str | None, Header()] = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Follow a session by Server-Sent Events: its present state, and again after each change of status or QR code.

        Each event `session` has the body that GET /whatsapp-qr/session/{chatbotId} returns as `data`. The stream ends
        when the process stops or the chatbot is removed. A client reconnects with `Last-Event-ID`, as browsers do
        automatically, and receives the state again if it has changed.
        """
        async for row in self.streams.follow(session_id, last_event_id):
            shown = _shown(row, SessionData).wire().decode()
            yield ServerSentEvent(event="session", id=str(row.version), raw_data=shown, retry=_RETRY_MILLISECONDS)

    async def message(self, message_id: UUID) -> MessageAnswer:
        """Return a message with its status."""
        row = await self._read(lambda tx: tx.get(MessageRow, message_id))
        if row is None:
            raise Problem(404, "no_message", "there is no such message (yet)")
        return MessageAnswer(data=MessageData.of(row))

    async def conversations(
        self, chatbot_id: Annotated[UUID, Query(alias="chatbotId")], limit: Limit = 50, cursor: Cursor = None
    ) -> ConversationPage:
        """Return a chatbot's conversations, the one with the newest message first."""
        after = _place(cursor)
        rows, end = await self._read(lambda tx: reading.conversations_page(tx, chatbot_id, limit=limit, after=after))
        return ConversationPage(data=[_shown(row, ConversationData) for row in rows], next_cursor=cursor_of(end))

    async def messages(self, conversation_id: UUID, limit: Limit = 50, cursor: Cursor = None) -> MessagePage:
        """Return the messages of a conversation, oldest first."""
        after = _place(cursor)
        if await self._read(lambda tx: tx.get(ConversationRow, conversation_id)) is None:
            raise Problem(404, "no_conversation", "there is no such conversation (yet)")
        rows, end = await self._read(lambda tx: reading.messages_page(tx, conversation_id, limit=limit, after=after))
        return MessagePage(data=[MessageData.of(row) for row in rows], next_cursor=cursor_of(end))

    async def _read(self, work: Work[T]) -> T:
        return await self.database.read(work, seconds=READ_SECONDS)


def _place(cursor: str | None) -> Place | None:
    try:
        return reading.place_of(cursor)
    except Rejected as error:
        raise Problem(400, error.code, error.detail) from error


def _known(session: SessionRow | None) -> SessionRow:
    if session is None:
        raise Problem(404, "no_session", "there is no such session: POST /whatsapp-qr/init creates one")
    return session


def _shown(row: SQLModel, body: type[B]) -> B:
    """Return the fields of a row that a body contains."""
    return body(**row.model_dump(include=set(body.model_fields)))

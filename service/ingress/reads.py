"""Calls that only read, from the database, within 2 s."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

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
from service.persistence import reading
from service.persistence.database import Database
from service.persistence.reading import Place, cursor_of
from service.persistence.tables import ConversationRow, MessageRow, SessionRow

Limit = Annotated[int, Query(ge=1, le=200, description="Rows per page")]
Cursor = Annotated[str | None, Query(max_length=200, description="nextCursor of the page before")]


def _place(cursor: str | None) -> Place | None:
    try:
        return reading.place_of(cursor)
    except Rejected as error:
        raise Problem(400, error.code, error.detail) from error


def _known(session: SessionRow | None) -> SessionRow:
    if session is None:
        raise Problem(404, "no_session", "there is no such session: POST /whatsapp-qr/init makes one")
    return session


def _message(row: MessageRow) -> MessageData:
    return MessageData(
        **row.model_dump(include=set(MessageData.model_fields) - {"metadata"}), metadata=row.caller_metadata
    )


def reads(database: Database) -> APIRouter:
    """Return the endpoints that only read."""
    router = APIRouter(prefix="/whatsapp-qr", responses=responses(400, 404, 503))

    async def by_id(session_id: str) -> SessionRow:
        return _known(
            await database.read(lambda tx: reading.current_session_by_id(tx, session_id), seconds=READ_SECONDS)
        )

    @router.get("/qr-code/{session_id}", tags=["Sessions"])
    async def qr_code(session_id: str) -> QrCode:
        """Return the QR code to scan; 404 while there is none yet and once the session is connected."""
        session = await by_id(session_id)
        if session.qr_code is None:
            raise Problem(404, "no_qr_code", f"there is no QR code while the session is {session.status}")
        return QrCode(session_id=session.session_id, status=session.status, qr_code=session.qr_code)

    @router.get("/status/{session_id}", tags=["Sessions"])
    async def status(session_id: str) -> SessionStatusAnswer:
        """Return a session's status."""
        session = await by_id(session_id)
        return SessionStatusAnswer(
            session=SessionStatusData(**session.model_dump(include=set(SessionStatusData.model_fields)))
        )

    @router.get("/session/{chatbot_id}", tags=["Sessions"])
    async def session_of_chatbot(chatbot_id: UUID) -> SessionAnswer:
        """Return a chatbot's session, with its QR code while there is one."""
        session = _known(await database.read(lambda tx: reading.current_session(tx, chatbot_id), seconds=READ_SECONDS))
        return SessionAnswer(data=SessionData(**session.model_dump(include=set(SessionData.model_fields))))

    @router.get("/messages/{message_id}", tags=["Messages"])
    async def message(message_id: UUID) -> MessageAnswer:
        """Return a message and how far it came."""
        row = await database.read(lambda tx: tx.get(MessageRow, message_id), seconds=READ_SECONDS)
        if row is None:
            raise Problem(404, "no_message", "there is no such message (yet)")
        return MessageAnswer(data=_message(row))

    @router.get("/conversations", tags=["Conversations"])
    async def conversations(
        chatbot_id: Annotated[UUID, Query(alias="chatbotId")], limit: Limit = 50, cursor: Cursor = None
    ) -> ConversationPage:
        """Return a chatbot's conversations, the one with the newest message first."""
        after = _place(cursor)
        rows, end = await database.read(
            lambda tx: reading.conversations_page(tx, chatbot_id, limit=limit, after=after), seconds=READ_SECONDS
        )
        shown = set(ConversationData.model_fields)
        return ConversationPage(
            data=[ConversationData(**row.model_dump(include=shown)) for row in rows], next_cursor=cursor_of(end)
        )

    @router.get("/conversations/{conversation_id}/messages", tags=["Conversations"])
    async def messages(conversation_id: UUID, limit: Limit = 50, cursor: Cursor = None) -> MessagePage:
        """Return the messages of a conversation, oldest first."""
        after = _place(cursor)
        if await database.read(lambda tx: tx.get(ConversationRow, conversation_id), seconds=READ_SECONDS) is None:
            raise Problem(404, "no_conversation", "there is no such conversation (yet)")
        rows, end = await database.read(
            lambda tx: reading.messages_page(tx, conversation_id, limit=limit, after=after), seconds=READ_SECONDS
        )
        return MessagePage(data=[_message(row) for row in rows], next_cursor=cursor_of(end))

    return router

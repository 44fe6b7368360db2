"""Calls that change state: each becomes one command."""

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Header, Response
from uuid_utils.compat import uuid7

from service import tracing
from service.domain.identities import new_session_id, outgoing_message_id
from service.errors import DatabaseUnavailable
from service.ingress.bodies import (
    Accepted,
    ChatbotRequest,
    MessageAnswer,
    MessageData,
    SendRequest,
    Sent,
    SessionState,
)
from service.ingress.problems import Problem, responses
from service.messaging.publishing import Publisher
from service.persistence import sessions
from service.persistence.conversations import same_content
from service.persistence.database import Database
from service.persistence.loading import Loader
from service.persistence.reading import before_sends, current_session
from service.persistence.tables import MessageRow, SessionRecord, SessionRow
from service.waiting import Waiters
from whatsapp_qr_contracts.commands import (
    CancelMessage,
    Command,
    DisconnectSession,
    InitializeSession,
    RegisterChatbot,
    RemoveChatbot,
    SendMessage,
)
from whatsapp_qr_contracts.events import CommandRejected, SessionDisconnected
from whatsapp_qr_contracts.message import InOneSpelling, SessionStatus

READ_SECONDS = 2.0
PUBLISH_SECONDS = 2.5  # with the one read before it, below the 5 s after which a caller must have a failure answer
_REJECTIONS = {
    "unknown_chatbot": 404,
    "no_session": 404,
    "unknown_message": 404,
    "not_pending": 409,
    "being_sent": 409,
    "gateway_unreachable": 502,
    "gateway_error": 502,
}

S = TypeVar("S", bound=SessionRecord)
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=200, description="The same key with the same body has one effect; keep it per message"
    ),
]
NamedChatbot = Annotated[ChatbotRequest, InOneSpelling]
TextToSend = Annotated[SendRequest, InOneSpelling]

_UNDER_WAY: dict[int | str, dict[str, Any]] = {202: {"model": SessionState, "description": "Under way"}}
_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": Accepted, "description": "Under way"}}
_BEING_CANCELLED: dict[int | str, dict[str, Any]] = {202: {"model": MessageAnswer, "description": "Under way"}}


class Commands:
    """The endpoints that change state."""

    def __init__(self, publisher: Publisher, database: Database, waiters: Waiters) -> None:
        self.publisher, self.database, self.waiters = publisher, database, waiters
        self._before = Loader(database, before_sends, READ_SECONDS)

    def router(self) -> APIRouter:
        """Return the routes of the endpoints."""
        router = APIRouter(prefix="/whatsapp-qr", responses=responses(400, 413, 503))
        router.post("/init", tags=["Sessions"], responses=_UNDER_WAY | responses(404, 502))(self.init)
        router.post("/disconnect", tags=["Sessions"], responses=_UNDER_WAY | responses(404))(self.disconnect)
        router.post("/send", tags=["Messages"], status_code=202, responses=responses(404, 409))(self.send)
        cancelled = _BEING_CANCELLED | responses(404, 409)
        router.delete("/messages/{message_id}", tags=["Messages"], responses=cancelled)(self.cancel)
        router.put("/chatbots/{chatbot_id}", tags=["Chatbots"], responses=_ACCEPTED)(self.register)
        router.delete("/chatbots/{chatbot_id}", tags=["Chatbots"], responses=_ACCEPTED)(self.remove)
        return router

    async def init(self, body: NamedChatbot, response: Response) -> SessionState:
        """Link a chatbot to a WhatsApp account: opens its session; a QR code follows."""
        seen = await self.database.read(lambda tx: sessions.session_of(tx, body.chatbot_id), seconds=READ_SECONDS)
        now = datetime.now(UTC)
        command = InitializeSession(chatbot_id=body.chatbot_id, requested_at=now)
        outcome = await self._carry_out(command)
        if outcome is not None and outcome["name"] == SessionDisconnected.name:
            reason = outcome["body"]["statusReason"]
            raise Problem(502, reason, "the WhatsApp gateway did not open the session: is it running? Try again")
        session_id = seen.session_id if seen else new_session_id(body.chatbot_id, now)
        tracing.about(session_id=session_id)
        return _state(outcome, session_id, seen.status if seen else SessionStatus.CONNECTING, response)

    async def disconnect(self, body: NamedChatbot, response: Response) -> SessionState:
        """End the link of a chatbot, even while the gateway is unavailable."""
        seen = await self._session(body.chatbot_id)
        tracing.about(session_id=seen.session_id)
        outcome = await self._carry_out(DisconnectSession(chatbot_id=body.chatbot_id))
        return _state(outcome, seen.session_id, seen.status, response)

    async def send(self, body: TextToSend, idempotency_key: IdempotencyKey = None) -> Sent:
        """Send a text. 202 once the broker has it on disk; GET /whatsapp-qr/messages/{messageId} returns its status."""
        command = SendMessage(message_id=idempotency_key, **dict(body))
        command_id = str(uuid7())
        message_id = outgoing_message_id(body.chatbot_id, idempotency_key or command_id)
        known, found = await self._before((body.chatbot_id, None if idempotency_key is None else message_id)) or (
            None,
            None,
        )
        if known is not None:
            if not same_content(known, command):
                raise Problem(409, "id_reused", "this Idempotency-Key was used with another body: use a new one")
            return Sent(message_id=message_id)
        session = _linked(found)
        tracing.about(session_id=session.session_id)
        if session.status is not SessionStatus.CONNECTED:
            raise Problem(400, "not_connected", f"the session is {session.status}: link it first, then send again")
        await self._publish(command, command_id)
        return Sent(message_id=message_id)

    async def cancel(self, message_id: UUID, response: Response) -> MessageAnswer:
        """Cancel a message that still waits: it becomes FAILED (`cancelled`). It is idempotent.

        409 `not_pending` once it was sent or failed otherwise, 409 `being_sent` during an attempt to send it.
        """
        seen = await self._message(message_id)
        tracing.about(session_id=seen.session_id)
        outcome = await self._carry_out(CancelMessage(chatbot_id=seen.chatbot_id, message_id=message_id))
        try:
            if outcome is not None:
                return MessageAnswer(data=MessageData.of(await self._message(message_id)))
        except DatabaseUnavailable:
            pass  # it is done, but cannot be read at this moment
        response.status_code = 202
        return MessageAnswer(data=MessageData.of(seen))

    async def register(self, chatbot_id: UUID, response: Response) -> Accepted:
        """Register a chatbot; required before its first /init if CHATBOTS=strict. It is idempotent."""
        if await self._carry_out(RegisterChatbot(chatbot_id=chatbot_id)) is None:
            response.status_code = 202
        return Accepted()

    async def remove(self, chatbot_id: UUID, response: Response) -> Accepted:
        """End a chatbot's link and remove the chatbot; its conversations are kept."""
        if await self._carry_out(RemoveChatbot(chatbot_id=chatbot_id)) is None:
            response.status_code = 202
        return Accepted()

    async def _session(self, chatbot_id: UUID) -> SessionRow:
        return _linked(
            await self.database.read(lambda tx: current_session(tx, chatbot_id=chatbot_id), seconds=READ_SECONDS)
        )

    async def _message(self, message_id: UUID) -> MessageRow:
        message = await self.database.read(lambda tx: tx.get(MessageRow, message_id), seconds=READ_SECONDS)
        if message is None:
            raise Problem(404, "no_message", "there is no such message (yet)")
        return message

    async def _publish(self, command: Command, command_id: str) -> None:
        tracing.about(correlation_id=command_id, message_id=command_id, chatbot_id=command.chatbot_id)
        await self.publisher.publish(
            command,
            message_id=command_id,
            correlation_id=command_id,
            seconds=PUBLISH_SECONDS,
        )

    async def _carry_out(self, command: Command) -> dict[str, Any] | None:
        """Publish a command and return the event that answers it; None if there is no outcome in time."""
        command_id = str(uuid7())
        self.waiters.register(command_id)
        try:
            await self._publish(command, command_id)
            outcome = await self.waiters.outcome(command.chatbot_id, command_id)
        finally:
            self.waiters.forget(command_id)
        if outcome is not None and outcome["name"] == CommandRejected.name:
            rejected = CommandRejected.model_validate(outcome["body"])
            raise Problem(_REJECTIONS.get(rejected.code, 400), rejected.code, rejected.detail)
        return outcome


def _linked(session: S | None) -> S:
    if session is None:
        raise Problem(404, "no_session", "the chatbot has no session: POST /whatsapp-qr/init creates one")
    return session


def _state(outcome: dict[str, Any] | None, session_id: str, seen: SessionStatus, response: Response) -> SessionState:
    if outcome is not None:
        return SessionState(session_id=outcome["body"]["sessionId"], status=outcome["body"]["status"])
    response.status_code = 202
    return SessionState(session_id=session_id, status=seen)

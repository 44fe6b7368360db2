"""Publishes what follows from the rows of sessions and messages, until it is confirmed.

An event is a function of its row: published again after a crash it is the same event under the same id.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service import tracing
from service.domain.identities import output_id
from service.messaging.publishing import Publisher
from service.persistence import lanes, sessions
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.tables import ConversationRow, MessageRow, SessionRow
from whatsapp_qr_contracts.events import (
    ConversationStarted,
    MessageDelivered,
    MessageFailed,
    MessageRead,
    MessageReceived,
    MessageSent,
    MessageStatusEvent,
    SessionConnected,
    SessionConnecting,
    SessionDisconnected,
    SessionEvent,
    SessionQrReady,
)
from whatsapp_qr_contracts.jobs import IncomingJob, IncomingMetadata, SendJob
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus
from whatsapp_qr_contracts.partitions import chatbot_key

_SESSION_EVENTS: dict[SessionStatus, type[SessionEvent]] = {
    SessionStatus.CONNECTING: SessionConnecting,
    SessionStatus.QR_READY: SessionQrReady,
    SessionStatus.CONNECTED: SessionConnected,
    SessionStatus.DISCONNECTED: SessionDisconnected,
}
_STATUS_EVENTS: dict[DeliveryStatus, type[MessageStatusEvent]] = {
    DeliveryStatus.SENT: MessageSent,
    DeliveryStatus.DELIVERED: MessageDelivered,
    DeliveryStatus.READ: MessageRead,
    DeliveryStatus.FAILED: MessageFailed,
}


@dataclass(frozen=True)
class Announcer:
    """Publishes the events of rows and remembers which were confirmed.

    Every method raises BrokerUnavailable or DatabaseUnavailable; called again it does the rest.
    """

    database: Database
    publisher: Publisher
    confirmations: Confirmations

    async def session(self, session: SessionRow, *, caused_by: str) -> str | None:
        """Publish the event of a session's present version, unless it is known to be confirmed; return its id.

        With a connection, ring for the messages that waited for it.
        """
        if session.announced_version >= session.version:
            return None
        if session.status is SessionStatus.CONNECTED:
            await self.lane(session.session_id)
            waiting = await self.database.read(lambda tx: lanes.first_pending(tx, session.session_id))
            if waiting is not None:
                await self.ring(waiting, ring_id=output_id(session.id, f"ring {session.version}"))
        event_id = session_event_id(session)
        await self.publisher.publish(
            session_event(session), message_id=event_id, correlation_id=caused_by, key=chatbot_key(session.chatbot_id)
        )
        await self.database.transact(lambda tx: sessions.mark_announced(tx, session))
        return event_id

    async def conversation(self, conversation: ConversationRow, *, caused_by: str) -> None:
        """Publish that a conversation has started, unless that is known to be confirmed."""
        if self.confirmations.has_conversation(conversation):
            return
        event = ConversationStarted(
            conversation_id=conversation.id,
            chatbot_id=conversation.chatbot_id,
            external_user_id=conversation.external_user_id,
            occurred_at=conversation.created_at,
        )
        key = chatbot_key(conversation.chatbot_id)
        event_id = output_id(conversation.id, "started")
        await self.publisher.publish(event, message_id=event_id, correlation_id=caused_by, key=key)
        self.confirmations.conversation(conversation)

    async def received(self, message: MessageRow) -> None:
        """Hand a customer's message to the AI workers and tell everybody, unless that is known to be confirmed."""
        if self.confirmations.has_message(message):
            return
        # Two destinations: they may go side by side.
        both = (self._hand_over(message), self._announce_received(message))
        with tracing.continued(message.traceparent):
            results = await asyncio.gather(*both, return_exceptions=True)  # none goes on while it is repeated
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self.confirmations.message(message)

    async def _hand_over(self, message: MessageRow) -> None:
        job = IncomingJob(
            conversation_id=message.conversation_id,
            message_id=message.id,
            content=message.content,
            chatbot_id=message.chatbot_id,
            external_user_id=message.external_user_id,
            metadata=_origin(message),
        )
        await self.publisher.publish(
            job,
            message_id=output_id(message.id, "job"),
            correlation_id=message.correlation_id,
            key=chatbot_key(message.chatbot_id),
            headers={"conversation-sequence": message.sequence},
        )

    async def _announce_received(self, message: MessageRow) -> None:
        await self.publisher.publish(
            received_event(message),
            message_id=output_id(message.id, "received"),
            correlation_id=message.correlation_id,
            key=chatbot_key(message.chatbot_id),
        )

    async def status(self, message: MessageRow) -> None:
        """Publish the event of a message's present delivery status, unless it is known to be confirmed."""
        if self.confirmations.has_message(message):
            return
        with tracing.continued(message.traceparent):
            await self.publisher.publish(
                status_event(message),
                message_id=output_id(message.id, f"{message.delivery_status} {reached_at(message).isoformat()}"),
                correlation_id=message.correlation_id,
                key=chatbot_key(message.chatbot_id),
            )
        self.confirmations.message(message)

    async def lane(self, session_id: str) -> None:
        """Publish what a crash may have left unpublished in a session's lane."""
        for message in await self.database.read(lambda tx: lanes.unannounced(tx, session_id)):
            await self.status(message)

    async def ring(self, message: MessageRow, *, ring_id: str) -> None:
        """Ask the outbound consumer to look at the lane that a message stands in."""
        job = SendJob(
            session_id=message.session_id,
            to=message.external_user_id,
            message=message.content,
            message_id=message.id,
            conversation_id=message.conversation_id,
        )
        key = chatbot_key(message.chatbot_id)
        with tracing.continued(message.traceparent):
            await self.publisher.publish(job, message_id=ring_id, correlation_id=message.correlation_id, key=key)


def session_event(session: SessionRow) -> SessionEvent:
    """Return the event of a session's present state."""
    fields: dict[str, Any] = {"qr_code": session.qr_code} if session.status is SessionStatus.QR_READY else {}
    return _SESSION_EVENTS[session.status](
        session_id=session.session_id,
        chatbot_id=session.chatbot_id,
        status=session.status,
        status_reason=session.status_reason,
        phone_number=session.phone_number,
        version=session.version,
        occurred_at=session.updated_at,
        **fields,
    )


def session_event_id(session: SessionRow) -> str:
    """Return the id of the event of a session's present version."""
    return output_id(session.id, f"version {session.version}")


def received_event(message: MessageRow) -> MessageReceived:
    """Return the event of a customer's message."""
    return MessageReceived(
        message_id=message.id,
        conversation_id=message.conversation_id,
        chatbot_id=message.chatbot_id,
        session_id=message.session_id,
        external_user_id=message.external_user_id,
        whatsapp_message_id=message.whatsapp_message_id,
        occurred_at=message.created_at,
        content=message.content,
        metadata=_origin(message),
        conversation_sequence=message.sequence or 0,
    )


def status_event(message: MessageRow) -> MessageStatusEvent:
    """Return the event of a sent message's present delivery status."""
    failed = message.delivery_status is DeliveryStatus.FAILED
    fields: dict[str, Any] = (
        {"error_code": message.error_code or "unknown", "error_message": message.error_message} if failed else {}
    )
    return _STATUS_EVENTS[message.delivery_status](
        message_id=message.id,
        conversation_id=message.conversation_id,
        chatbot_id=message.chatbot_id,
        session_id=message.session_id,
        external_user_id=message.external_user_id,
        whatsapp_message_id=message.whatsapp_message_id,
        occurred_at=reached_at(message),
        delivery_status=message.delivery_status,
        metadata=message.caller_metadata,
        **fields,
    )


def reached_at(message: MessageRow) -> datetime:
    """Return when a message came to its present delivery status."""
    times = {
        DeliveryStatus.SENT: message.sent_at,
        DeliveryStatus.DELIVERED: message.delivered_at,
        DeliveryStatus.READ: message.read_at,
        DeliveryStatus.FAILED: message.failed_at,
    }
    return times[message.delivery_status] or message.created_at


def _origin(message: MessageRow) -> IncomingMetadata:
    return IncomingMetadata(whatsapp_message_id=message.whatsapp_message_id, timestamp=message.sent_at_customer or 0)

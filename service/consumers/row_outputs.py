"""The outputs of a row: events, jobs and wake-ups are functions of the row, and so are their ids.

So an output that is published again, after a crash or by another process, is the same message under the same id.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from sqlmodel import SQLModel

from service.domain.identities import output_id
from service.persistence.confirmations import Confirmation
from service.persistence.tables import (
    CommandRecord,
    CommandRow,
    ConversationRecord,
    ConversationRow,
    MessageRecord,
    MessageRow,
    SessionRecord,
    SessionRow,
)
from whatsapp_qr_contracts.catalogue import BY_NAME
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
from whatsapp_qr_contracts.message import DeliveryStatus, Message, Role, SessionStatus

M = TypeVar("M", bound=Message)

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


@dataclass(frozen=True, slots=True)
class Output:
    """One message to publish because of a row.

    Args:
        message_id: its AMQP id, the same at every repetition.
        correlation_id: the id of the command or report that caused it.
        confirmation: the record that is stored when the broker has confirmed it.
        order: outputs of one destination with the same order are published one after another.
    """

    message: Message
    message_id: str
    correlation_id: str
    confirmation: Confirmation
    order: str
    headers: Mapping[str, Any] = field(default_factory=dict)
    traceparent: str | None = None


def of_session(session: SessionRecord) -> list[Output]:
    """Return the event of a session's present version, unless it is known to be confirmed."""
    if session.told_version >= session.version:
        return []
    confirmation = Confirmation(SessionRow, (session.id,), session.version)
    event_id = session_event_id(session)
    return [Output(session_event(session), event_id, session.correlation_id, confirmation, session.session_id)]


def of_command(command: CommandRecord) -> list[Output]:
    """Return the event that answers a command, unless it is known to be confirmed."""
    if command.told_version >= command.version or command.outcome is None:
        return []
    event = BY_NAME[command.outcome["name"]].model_validate(command.outcome["body"])
    confirmation = Confirmation(CommandRow, (command.chatbot_id, command.command_id), command.version)
    asked = command.outcome.get("command_id", command.command_id)
    return [Output(event, command.outcome["message_id"], asked, confirmation, str(command.chatbot_id))]


def of_conversation(conversation: ConversationRecord) -> list[Output]:
    """Return the event that a conversation has started, unless it is known to be confirmed."""
    if conversation.told_version >= conversation.version:
        return []
    at = conversation.created_at
    event = _of(ConversationStarted, conversation, conversation_id=conversation.id, occurred_at=at)
    confirmation = Confirmation(ConversationRow, (conversation.id,), conversation.version)
    return [
        Output(event, output_id(conversation.id, "started"), conversation.correlation_id, confirmation, str(event.name))
    ]


def of_message(message: MessageRecord) -> list[Output]:
    """Return the job and the event of a message's present version, those that are not known to be confirmed."""
    return job_of(message) + event_of(message)


def job_of(message: MessageRecord) -> list[Output]:
    """Return the job of a message, unless it is known to be confirmed."""
    if message.handed_over:
        return []
    confirmation = Confirmation(MessageRow, (message.id,), place=message.lane_number or 0)
    if message.role is Role.USER:
        job: Message = incoming_job(message)
        job_id, order = output_id(message.id, "job"), str(message.conversation_id)
        headers = {"conversation-sequence": message.sequence}
    else:
        job, headers = send_job(message), {}
        job_id = order = output_id(message.id, f"job {message.lane_number}")
    return [Output(job, job_id, message.correlation_id, confirmation, order, headers, message.traceparent)]


def event_of(message: MessageRecord) -> list[Output]:
    """Return the event of a message's present version, unless it is known to be confirmed."""
    if message.told_version >= message.version:
        return []
    event, which = (
        (received_event(message), "received")
        if message.role is Role.USER
        else (status_event(message), _version_of(message))
    )
    confirmation = Confirmation(MessageRow, (message.id,), message.version)
    event_id, trace = output_id(message.id, which), message.traceparent
    return [Output(event, event_id, message.correlation_id, confirmation, str(message.id), traceparent=trace)]


def _version_of(message: MessageRecord) -> str:
    if message.version > 1:
        return f"version {message.version}"
    # A row from before versions existed: its event may have been published under this id.
    return f"{message.delivery_status} {reached_at(message).isoformat()}"


def session_event(session: SessionRecord) -> SessionEvent:
    """Return the event of a session's present state."""
    return _of(_SESSION_EVENTS[session.status], session, occurred_at=session.updated_at)


def session_event_id(session: SessionRecord) -> str:
    """Return the id of the event of a session's present version."""
    return output_id(session.id, f"version {session.version}")


def incoming_job(message: MessageRecord) -> IncomingJob:
    """Return the job of a customer's message for the AI workers."""
    return _of(IncomingJob, message, message_id=message.id, metadata=_origin(message))


def send_job(message: MessageRecord) -> SendJob:
    """Return the job that wakes the lane of a message."""
    return _of(SendJob, message, message_id=message.id, to=message.external_user_id, message=message.content)


def received_event(message: MessageRecord) -> MessageReceived:
    """Return the event of a customer's message."""
    number = {"conversation_sequence": message.sequence or 0}
    at, origin = message.created_at, _origin(message)
    return _of(MessageReceived, message, message_id=message.id, occurred_at=at, metadata=origin, **number)


def status_event(message: MessageRecord) -> MessageStatusEvent:
    """Return the event of a sent message's present delivery status."""
    error = {"error_code": message.error_code or "unknown"} if message.delivery_status is DeliveryStatus.FAILED else {}
    return event_as(_STATUS_EVENTS[message.delivery_status], message, reached_at(message), **error)


def event_as(kind: type[MessageStatusEvent], message: MessageRecord, at: datetime, **fields: Any) -> MessageStatusEvent:
    """Return an event of a kind about an outgoing message in its present state."""
    return _of(kind, message, message_id=message.id, occurred_at=at, metadata=message.caller_metadata, **fields)


def _of(kind: type[M], row: SQLModel, **fields: Any) -> M:
    """Return a message with these fields; the others are taken from the row's fields of the same name."""
    return kind(**{name: getattr(row, name) for name in _shared(kind, type(row))} | fields)


@cache
def _shared(kind: type[Message], row: type[SQLModel]) -> list[str]:
    return [name for name in kind.model_fields if name in row.model_fields]


def reached_at(message: MessageRecord) -> datetime:
    """Return when a message reached its present delivery status."""
    times = {
        DeliveryStatus.SENT: message.sent_at,
        DeliveryStatus.DELIVERED: message.delivered_at,
        DeliveryStatus.READ: message.read_at,
        DeliveryStatus.FAILED: message.failed_at,
    }
    return times[message.delivery_status] or message.created_at


def _origin(message: MessageRecord) -> IncomingMetadata:
    return IncomingMetadata(whatsapp_message_id=message.whatsapp_message_id, timestamp=message.sent_at_customer or 0)

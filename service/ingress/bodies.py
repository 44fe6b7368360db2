"""The bodies of requests and answers. Field names are those of the system that this service replaces."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import Field, StringConstraints

from service.persistence.tables import MessageRow
from whatsapp_qr_contracts.addresses import Address
from whatsapp_qr_contracts.commands import MAX_MESSAGE_CHARACTERS, Metadata
from whatsapp_qr_contracts.message import DeliveryStatus, Instant, Role, SessionStatus, Text, WireModel


class ChatbotRequest(WireModel):
    """Names a chatbot."""

    chatbot_id: UUID


class SendRequest(WireModel):
    """A text to send."""

    chatbot_id: UUID
    to: Address
    message: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_MESSAGE_CHARACTERS)]
    metadata: Metadata = Field(default_factory=dict)
    expires_at: Annotated[Instant | None, Field(description="After this it is not sent any more")] = None


class Accepted(WireModel):
    """It was done, or will be."""

    success: Literal[True] = True


class SessionState(Accepted):
    """A session after a command."""

    session_id: str
    status: SessionStatus


class QrCode(SessionState):
    """A QR code to scan."""

    qr_code: str = Field(description="PNG data URL")


class SessionStatusData(WireModel):
    """A session's status."""

    session_id: str
    chatbot_id: UUID
    status: SessionStatus
    last_connected_at: datetime | None
    status_reason: str | None = None
    phone_number: str | None = None


class SessionStatusAnswer(Accepted):
    """A session's status."""

    session: SessionStatusData


class SessionData(SessionStatusData):
    """A chatbot's session."""

    id: UUID
    qr_code: str | None = Field(default=None, description="PNG data URL, while the status is QR_READY")


class SessionAnswer(Accepted):
    """A chatbot's session."""

    data: SessionData


class Sent(Accepted):
    """A message that waits to be sent."""

    message: str = "Message enqueued for sending"
    message_id: UUID


class MessageData(WireModel):
    """A message of a conversation."""

    id: UUID
    conversation_id: UUID
    role: Role
    content: str
    delivery_status: DeliveryStatus
    whatsapp_message_id: str
    attempts: int = Field(description="Attempts to send it whose outcome is unknown")
    error_code: str | None
    error_message: str | None
    metadata: dict[str, Any]
    created_at: datetime
    sent_at: datetime | None
    delivered_at: datetime | None
    read_at: datetime | None
    failed_at: datetime | None

    @classmethod
    def of(cls, row: MessageRow) -> Self:
        """Return what is shown of a message's row."""
        fields = row.model_dump(include=set(cls.model_fields) - {"metadata"})
        return cls(**fields, metadata=row.caller_metadata)


class MessageAnswer(Accepted):
    """One message."""

    data: MessageData


class MessagePage(Accepted):
    """Messages of a conversation, oldest first."""

    data: list[MessageData]
    next_cursor: str | None


class ConversationData(WireModel):
    """A conversation with one customer."""

    id: UUID
    chatbot_id: UUID
    channel: str
    external_user_id: str
    status: str
    last_message_at: datetime
    created_at: datetime


class ConversationPage(Accepted):
    """Conversations of a chatbot, newest first."""

    data: list[ConversationData]
    next_cursor: str | None

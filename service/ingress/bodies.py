"""The bodies of requests and answers. Field names are those of the system that this service replaces."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field

from service.persistence.tables import MessageRow
from whatsapp_qr_contracts.commands import ExpiresAt, MessageText, Metadata
from whatsapp_qr_contracts.fields import (
    A_TIME,
    CallerMetadata,
    ChatbotId,
    ConversationId,
    Customer,
    LinkedNumber,
    Recipient,
    SentId,
    SentWhatsappId,
    SessionId,
    StatusReason,
)
from whatsapp_qr_contracts.fields import QrCode as ShownQrCode
from whatsapp_qr_contracts.message import DeliveryStatus, Role, SessionStatus, WireModel

_ROW = "0f8fad5b-d9cb-469f-a165-70867728950e"
_STATUS = Field(description="The session's present status", examples=["CONNECTED"])

NextCursor = Annotated[str | None, Field(description="Cursor of the next page; null on the last one", examples=[None])]


class ChatbotRequest(WireModel):
    """Names a chatbot."""

    chatbot_id: ChatbotId


class SendRequest(WireModel):
    """A text to send."""

    chatbot_id: ChatbotId
    to: Recipient
    message: MessageText
    metadata: Metadata = Field(default_factory=dict)
    expires_at: ExpiresAt = None


class Accepted(WireModel):
    """The request was executed, or will be."""

    success: Annotated[Literal[True], Field(description="Always true; false in errors")] = True


class SessionState(Accepted):
    """A session after a command."""

    session_id: SessionId
    status: Annotated[SessionStatus, _STATUS]


class QrCode(SessionState):
    """A QR code to scan."""

    status: Annotated[SessionStatus, Field(description="The session's present status", examples=["QR_READY"])]
    qr_code: ShownQrCode


class SessionStatusData(WireModel):
    """A session's status."""

    session_id: SessionId
    chatbot_id: ChatbotId
    status: Annotated[SessionStatus, _STATUS]
    last_connected_at: datetime | None = Field(description="When it was linked last", examples=[A_TIME])
    status_reason: StatusReason = None
    phone_number: LinkedNumber = None


class SessionStatusAnswer(Accepted):
    """A session's status."""

    session: Annotated[SessionStatusData, Field(description="The session")]


class SessionData(SessionStatusData):
    """A chatbot's session."""

    id: UUID = Field(description="The session's own id; it never changes", examples=[_ROW])
    qr_code: str | None = Field(default=None, description="PNG data URL, while the status is QR_READY")


class SessionAnswer(Accepted):
    """A chatbot's session."""

    data: Annotated[SessionData, Field(description="The session")]


class Sent(Accepted):
    """A message that waits to be sent."""

    message: str = Field(
        default="Message enqueued for sending",
        description="The result, for people",
        examples=["Message enqueued for sending"],
    )
    message_id: SentId


class MessageData(WireModel):
    """A message of a conversation."""

    id: SentId
    conversation_id: ConversationId
    role: Role = Field(description="USER: the customer wrote it; ASSISTANT: it was sent", examples=["ASSISTANT"])
    content: str = Field(description="The text", examples=["Your order is on its way."])
    delivery_status: DeliveryStatus = Field(description="The message's present status", examples=["READ"])
    whatsapp_message_id: SentWhatsappId
    attempts: int = Field(description="Attempts to send it whose outcome is unknown", examples=[0])
    error_code: str | None = Field(description="Why it FAILED, as a stable code", examples=[None])
    error_message: str | None = Field(description="Why it FAILED, in words", examples=[None])
    metadata: CallerMetadata
    created_at: datetime = Field(description="When the service stored it", examples=[A_TIME])
    sent_at: datetime | None = Field(description="When the gateway accepted it", examples=["2026-01-01T12:00:01Z"])
    delivered_at: datetime | None = Field(
        description="When it reached the phone, if that was reported", examples=["2026-01-01T12:00:02Z"]
    )
    read_at: datetime | None = Field(description="When it was read", examples=["2026-01-01T12:00:05Z"])
    failed_at: datetime | None = Field(description="When it failed", examples=[None])

    @classmethod
    def of(cls, row: MessageRow) -> Self:
        """Return the public form of a message's row."""
        fields = row.model_dump(include=set(cls.model_fields) - {"metadata"})
        return cls(**fields, metadata=row.caller_metadata)


class MessageAnswer(Accepted):
    """One message."""

    data: Annotated[MessageData, Field(description="The message")]


class MessagePage(Accepted):
    """Messages of a conversation, oldest first."""

    data: list[MessageData] = Field(description="The messages", examples=[[MessageData.example()]])
    next_cursor: NextCursor


class ConversationData(WireModel):
    """A conversation with one customer."""

    id: ConversationId
    chatbot_id: ChatbotId
    channel: str = Field(description="The channel between them", examples=["WHATSAPP_QR"])
    external_user_id: Customer
    status: str = Field(description="Always ACTIVE so far", examples=["ACTIVE"])
    last_message_at: datetime = Field(description="Time of the last message of either", examples=[A_TIME])
    created_at: datetime = Field(description="When it began", examples=[A_TIME])


class ConversationPage(Accepted):
    """Conversations of a chatbot, newest first."""

    data: list[ConversationData] = Field(description="The conversations", examples=[[ConversationData.example()]])
    next_cursor: NextCursor

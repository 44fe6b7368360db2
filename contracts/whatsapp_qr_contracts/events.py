"""Events: what happened. The public read interface, exchange `whatsapp-qr.events`.

Each event is published after it was stored, confirmed, at least once, with the same `message_id` every time; its
`correlation_id` is the id of the command that caused it. Events of one session come with a rising `version`.
"""

from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from whatsapp_qr_contracts.jobs import IncomingMetadata
from whatsapp_qr_contracts.message import EVENTS, DeliveryStatus, Instant, Message, SessionStatus


class Event(Message):
    """Base of all events."""

    exchange: ClassVar[str] = EVENTS


class SessionEvent(Event):
    """Base of what happens to a session."""

    session_id: str
    chatbot_id: UUID
    status: SessionStatus
    status_reason: str | None = Field(default=None, description="Why, as a stable code")
    phone_number: str | None = Field(default=None, description="The linked number, where known")
    version: int = Field(description="Rises with every change of the session; a lower one is older news")
    occurred_at: Instant


class SessionConnecting(SessionEvent):
    """The gateway accepted to open the session; a QR code or the connection follows."""

    name: ClassVar[str] = "session.connecting"

    status: Literal[SessionStatus.CONNECTING] = SessionStatus.CONNECTING


class SessionQrReady(SessionEvent):
    """A QR code waits to be scanned; sent again with each new code."""

    name: ClassVar[str] = "session.qr_ready"

    status: Literal[SessionStatus.QR_READY] = SessionStatus.QR_READY
    qr_code: str = Field(description="PNG data URL; whoever scans it links the account, so treat it as a secret")


class SessionConnected(SessionEvent):
    """The chatbot is linked: messages go out and come in."""

    name: ClassVar[str] = "session.connected"

    status: Literal[SessionStatus.CONNECTED] = SessionStatus.CONNECTED


class SessionDisconnected(SessionEvent):
    """The chatbot is not linked (any more), or could not be; `statusReason` says why."""

    name: ClassVar[str] = "session.disconnected"

    status: Literal[SessionStatus.DISCONNECTED] = SessionStatus.DISCONNECTED


class MessageEvent(Event):
    """Base of what happens to a message."""

    message_id: UUID
    conversation_id: UUID
    chatbot_id: UUID
    session_id: str
    external_user_id: str
    whatsapp_message_id: str
    occurred_at: Instant


class MessageReceived(MessageEvent):
    """A customer's message was stored. The same fact goes to the AI workers as a job."""

    name: ClassVar[str] = "message.received"

    content: str
    metadata: IncomingMetadata
    conversation_sequence: int = Field(description="Counts the customer's messages of the conversation, from 1")


class MessageStatusEvent(MessageEvent):
    """Base of the delivery states of a message that was sent."""

    delivery_status: DeliveryStatus
    metadata: dict[str, Any] = Field(description="What the caller gave with message.send")


class MessageSent(MessageStatusEvent):
    """The gateway took the message."""

    name: ClassVar[str] = "message.sent"

    delivery_status: Literal[DeliveryStatus.SENT] = DeliveryStatus.SENT


class MessageDelivered(MessageStatusEvent):
    """The message reached the phone. Left out where WhatsApp reports READ at once."""

    name: ClassVar[str] = "message.delivered"

    delivery_status: Literal[DeliveryStatus.DELIVERED] = DeliveryStatus.DELIVERED


class MessageRead(MessageStatusEvent):
    """The message was read."""

    name: ClassVar[str] = "message.read"

    delivery_status: Literal[DeliveryStatus.READ] = DeliveryStatus.READ


class MessageFailed(MessageStatusEvent):
    """The message was given up. After `outcome_unknown` it may have been sent all the same."""

    name: ClassVar[str] = "message.failed"

    delivery_status: Literal[DeliveryStatus.FAILED] = DeliveryStatus.FAILED
    error_code: str
    error_message: str | None = None


class MessageCancelled(MessageStatusEvent):
    """`message.cancel` was carried out. That the message FAILED is announced by `message.failed` as well."""

    name: ClassVar[str] = "message.cancelled"

    delivery_status: Literal[DeliveryStatus.FAILED] = DeliveryStatus.FAILED


class MessageQueued(MessageStatusEvent):
    """`message.retry` was carried out: the message waits to be sent again."""

    name: ClassVar[str] = "message.queued"

    delivery_status: Literal[DeliveryStatus.PENDING] = DeliveryStatus.PENDING


class ConversationStarted(Event):
    """The first message between a chatbot and a customer, in either direction."""

    name: ClassVar[str] = "conversation.started"

    conversation_id: UUID
    chatbot_id: UUID
    external_user_id: str
    channel: Literal["WHATSAPP_QR"] = "WHATSAPP_QR"
    occurred_at: Instant


class ChatbotRegistered(Event):
    """The chatbot is known."""

    name: ClassVar[str] = "chatbot.registered"

    chatbot_id: UUID


class ChatbotRemoved(Event):
    """The chatbot was forgotten and its link ended."""

    name: ClassVar[str] = "chatbot.removed"

    chatbot_id: UUID


class CommandRejected(Event):
    """A command was well formed but could not be carried out; nothing was changed."""

    name: ClassVar[str] = "command.rejected"

    command_id: str
    command: str = Field(description="The name of the command")
    chatbot_id: UUID
    code: str = Field(description="Stable code: unknown_chatbot, no_session, id_reused, not_pending, being_sent, …")
    detail: str

"""Events: facts about the past. The public read interface, exchange `whatsapp-qr.events`.

Each event is published after it was stored, confirmed, at least once, with the same `message_id` every time; its
`correlation_id` is the id of the command, or of the gateway's report, that caused it. A subscriber is optional: an
event is kept only in the queues that are bound for it. Events of one session have a rising `version`.
"""

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from whatsapp_qr_contracts.codes import RejectionCode, listed
from whatsapp_qr_contracts.fields import (
    CallerMetadata,
    Channel,
    ChatbotId,
    ConversationId,
    Customer,
    ErrorCode,
    LinkedNumber,
    OccurredAt,
    QrCode,
    ReceivedId,
    ReceivedText,
    ReceivedWhatsappId,
    SentId,
    SentWhatsappId,
    SessionId,
    StatusReason,
)
from whatsapp_qr_contracts.jobs import Origin
from whatsapp_qr_contracts.message import EVENTS, DeliveryStatus, Message, SessionStatus

_STATUS = Field(description="The session's present status")
_DELIVERY_STATUS = Field(description="The message's present status")


class Event(Message):
    """Base of all events."""

    exchange: ClassVar[str] = EVENTS


class SessionEvent(Event):
    """Base of the events of a session."""

    session_id: SessionId
    chatbot_id: ChatbotId
    status: SessionStatus = Field(description="The session's present status", examples=["CONNECTED"])
    status_reason: StatusReason = None
    phone_number: LinkedNumber = None
    version: int = Field(description="Rises with every change of the session; ignore lower versions", examples=[3])
    occurred_at: OccurredAt


class SessionConnecting(SessionEvent):
    """The gateway accepted to open the session; a QR code or the connection follows, usually within seconds."""

    name: ClassVar[str] = "session.connecting"
    routing_key: ClassVar[str] = "session.connecting"

    status: Annotated[Literal[SessionStatus.CONNECTING], _STATUS] = SessionStatus.CONNECTING


class SessionQrReady(SessionEvent):
    """A QR code waits to be scanned. Sent again with each new code, about every 20 s; only the newest is valid."""

    name: ClassVar[str] = "session.qr_ready"
    routing_key: ClassVar[str] = "session.qr_ready"

    status: Annotated[Literal[SessionStatus.QR_READY], _STATUS] = SessionStatus.QR_READY
    qr_code: QrCode


class SessionConnected(SessionEvent):
    """The chatbot is linked: messages can be sent and received, and waiting messages are sent now.

    Sent again if another number was linked, or if `statusReason` changes: with `action_required` the gateway
    reports a connection but sends nothing.
    """

    name: ClassVar[str] = "session.connected"
    routing_key: ClassVar[str] = "session.connected"

    status: Annotated[Literal[SessionStatus.CONNECTED], _STATUS] = SessionStatus.CONNECTED


class SessionDisconnected(SessionEvent):
    """The chatbot is not linked (any more), or could not be; `statusReason` has the reason.

    After `logged_out`, `replaced` and `requested` it stays so until `session.initialize`; otherwise the service tries
    to restore the link by itself, unless a code must be scanned for that.
    """

    name: ClassVar[str] = "session.disconnected"
    routing_key: ClassVar[str] = "session.disconnected"

    status: Annotated[Literal[SessionStatus.DISCONNECTED], _STATUS] = SessionStatus.DISCONNECTED


class MessageEvent(Event):
    """Base of the events of a message."""

    message_id: SentId
    conversation_id: ConversationId
    chatbot_id: ChatbotId
    session_id: SessionId
    external_user_id: Customer
    whatsapp_message_id: SentWhatsappId
    version: int = Field(
        description="Rises with every change of the message; a subscriber that ignores lower versions than it has seen "
        "ends with the right state",
        examples=[2],
    )
    occurred_at: OccurredAt


class MessageReceived(MessageEvent):
    """A customer's message was stored. The AI workers get the same message as a job.

    Once for each message, even if WhatsApp repeats it; `conversationSequence` gives the order.
    """

    name: ClassVar[str] = "message.received"
    routing_key: ClassVar[str] = "message.received"

    message_id: ReceivedId
    whatsapp_message_id: ReceivedWhatsappId
    content: ReceivedText
    metadata: Origin
    conversation_sequence: int = Field(
        description="Counts the customer's messages of the conversation, from 1", examples=[1]
    )


class MessageStatusEvent(MessageEvent):
    """Base of the delivery states of a message that was sent.

    Events of one message may arrive more than once or late: compare `version`.
    """

    delivery_status: DeliveryStatus = Field(description="The message's present status", examples=["SENT"])
    metadata: CallerMetadata


class MessageSent(MessageStatusEvent):
    """The gateway accepted the message.

    Left out if a receipt was stored before this was published: `message.delivered` or `message.read` implies it.
    """

    name: ClassVar[str] = "message.sent"
    routing_key: ClassVar[str] = "message.sent"

    delivery_status: Annotated[Literal[DeliveryStatus.SENT], _DELIVERY_STATUS] = DeliveryStatus.SENT


class MessageDelivered(MessageStatusEvent):
    """The message reached the phone.

    Left out if WhatsApp reports READ at once, or if READ was stored before this was published.
    """

    name: ClassVar[str] = "message.delivered"
    routing_key: ClassVar[str] = "message.delivered"

    delivery_status: Annotated[Literal[DeliveryStatus.DELIVERED], _DELIVERY_STATUS] = DeliveryStatus.DELIVERED


class MessageRead(MessageStatusEvent):
    """The message was read. Never published for a customer who has switched read receipts off."""

    name: ClassVar[str] = "message.read"
    routing_key: ClassVar[str] = "message.read"

    delivery_status: Annotated[Literal[DeliveryStatus.READ], _DELIVERY_STATUS] = DeliveryStatus.READ


class MessageFailed(MessageStatusEvent):
    """The message failed and is not sent any more. After `outcome_unknown` it may have been sent.

    A late receipt may still correct it: then `message.delivered` or `message.read` follows.
    """

    name: ClassVar[str] = "message.failed"
    routing_key: ClassVar[str] = "message.failed"

    delivery_status: Annotated[Literal[DeliveryStatus.FAILED], _DELIVERY_STATUS] = DeliveryStatus.FAILED
    error_code: ErrorCode
    error_message: str | None = Field(
        default=None, description="The reason in words, for people", examples=["5491112345678 is not on WhatsApp"]
    )


class MessageCancelled(MessageStatusEvent):
    """`message.cancel` was executed. `message.failed` also reports that the message FAILED."""

    name: ClassVar[str] = "message.cancelled"
    routing_key: ClassVar[str] = "message.cancelled"

    delivery_status: Annotated[Literal[DeliveryStatus.FAILED], _DELIVERY_STATUS] = DeliveryStatus.FAILED


class MessageQueued(MessageStatusEvent):
    """`message.retry` was executed: the message waits to be sent again."""

    name: ClassVar[str] = "message.queued"
    routing_key: ClassVar[str] = "message.queued"

    delivery_status: Annotated[Literal[DeliveryStatus.PENDING], _DELIVERY_STATUS] = DeliveryStatus.PENDING


class ConversationStarted(Event):
    """The first message between a chatbot and a customer, in either direction. Once for each conversation."""

    name: ClassVar[str] = "conversation.started"
    routing_key: ClassVar[str] = "conversation.started"

    conversation_id: ConversationId
    chatbot_id: ChatbotId
    external_user_id: Customer
    channel: Channel = "WHATSAPP_QR"
    occurred_at: OccurredAt


class ChatbotRegistered(Event):
    """The chatbot is registered: the answer to `chatbot.register`."""

    name: ClassVar[str] = "chatbot.registered"
    routing_key: ClassVar[str] = "chatbot.registered"

    chatbot_id: ChatbotId


class ChatbotRemoved(Event):
    """The chatbot was removed and its link ended: the answer to `chatbot.remove`."""

    name: ClassVar[str] = "chatbot.removed"
    routing_key: ClassVar[str] = "chatbot.removed"

    chatbot_id: ChatbotId


class CommandRejected(Event):
    """A command was well formed but could not be executed; nothing was changed. To try again, use a new id."""

    name: ClassVar[str] = "command.rejected"
    routing_key: ClassVar[str] = "command.rejected"

    command_id: str = Field(description="The AMQP `message_id` of the command", examples=["order-1234-shipped"])
    command: str = Field(description="The name of the command", examples=["message.send"])
    chatbot_id: ChatbotId
    message_id: UUID | None = Field(
        default=None,
        description="The message of a rejected message.send, message.cancel or message.retry, as in GET "
        "/whatsapp-qr/messages",
        examples=["213479c7-5b5a-56f5-8798-e081035027a2"],
    )
    code: str = Field(description=f"The reason as a stable code: {listed(RejectionCode)}", examples=["no_session"])
    detail: str = Field(
        description="The reason in words, for people",
        examples=["the chatbot has no session: POST /whatsapp-qr/init creates one"],
    )

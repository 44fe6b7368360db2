"""Jobs: one piece of work for exactly one worker. Published persistent, mandatory and confirmed.

A job may come more than once, each time with the same AMQP `message_id`.
"""

from typing import ClassVar, Literal
from uuid import UUID

from pydantic import Field

from whatsapp_qr_contracts.message import JOBS, Message, WireModel


class IncomingMetadata(WireModel):
    """Where a customer's message came from."""

    whatsapp_message_id: str
    timestamp: int = Field(description="Unix time as the gateway gave it, in seconds or milliseconds")


class IncomingJob(Message):
    """A customer's message for the AI workers: one job on `incoming-messages` for each message.

    Published after the message was stored, in order per conversation (header `conversation-sequence`). Several
    workers on the queue have no order among themselves.
    """

    exchange: ClassVar[str] = JOBS
    name: ClassVar[str] = "incoming-messages"

    conversation_id: UUID
    message_id: UUID
    content: str
    chatbot_id: UUID
    external_user_id: str = Field(description="The customer's phone number, or JID where it has no number")
    channel: Literal["WHATSAPP_QR"] = "WHATSAPP_QR"
    metadata: IncomingMetadata


class SendJob(Message):
    """The doorbell of one outgoing message, internal: the message's row says what is sent."""

    exchange: ClassVar[str] = JOBS
    name: ClassVar[str] = "whatsapp-qr-send"

    session_id: str
    to: str
    message: str
    message_id: UUID
    conversation_id: UUID

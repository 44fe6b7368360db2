"""Jobs: one piece of work for exactly one worker. Published persistent, mandatory and confirmed.

A job may be delivered more than once, each time with the same AMQP `message_id`. Its `correlation_id` is the id of the
gateway's report, or of the command, that caused it.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from whatsapp_qr_contracts.fields import (
    A_CUSTOMER,
    Channel,
    ChatbotId,
    ConversationId,
    Customer,
    ReceivedId,
    ReceivedText,
    ReceivedWhatsappId,
    SentId,
    SessionId,
)
from whatsapp_qr_contracts.message import JOBS, Headers, Message, ServiceHeaders, WireModel


class IncomingMetadata(WireModel):
    """The origin of a customer's message."""

    whatsapp_message_id: ReceivedWhatsappId
    timestamp: int = Field(
        description="When the customer wrote: Unix time as the gateway gave it, in seconds or milliseconds",
        examples=[1_767_268_800],
    )


Origin = Annotated[IncomingMetadata, Field(description="The origin of the message")]


class IncomingHeaders(ServiceHeaders):
    """The headers of a job for the AI workers."""

    conversation_sequence: int = Field(
        ge=1, description="Counts the customer's messages of the conversation, from 1", examples=[1]
    )


class IncomingJob(Message):
    """A customer's message for the AI workers: one job on the queue `incoming-messages` for each message.

    Published after the message was stored, in order per conversation (header `conversation-sequence`), and kept until a
    worker acknowledges it. It may be delivered more than once, with the same `message_id`. Several workers on the queue
    have no order among themselves. A job that a worker rejects without requeue becomes a dead letter.
    """

    exchange: ClassVar[str] = JOBS
    name: ClassVar[str] = "incoming-messages"
    routing_key: ClassVar[str] = "incoming-messages"
    headers: ClassVar[type[Headers]] = IncomingHeaders

    conversation_id: ConversationId
    message_id: ReceivedId
    content: ReceivedText
    chatbot_id: ChatbotId
    external_user_id: Customer
    channel: Channel = "WHATSAPP_QR"
    metadata: Origin


class SendJob(Message):
    """The wake-up for one outgoing message, internal: the text to send is read from the message's row.

    The first partition's queue, and so its routing key, has the bare name `whatsapp-qr-send`.
    """

    exchange: ClassVar[str] = JOBS
    name: ClassVar[str] = "whatsapp-qr-send"
    routing_key: ClassVar[str] = "whatsapp-qr-send.{partition}"
    keyed_by: ClassVar[Literal["chatbotId", "sessionId"]] = "sessionId"

    session_id: SessionId
    to: str = Field(description="The customer, in the form in which addresses are stored", examples=[A_CUSTOMER])
    message: str = Field(description="The text", examples=["Your order is on its way."])
    message_id: SentId
    conversation_id: ConversationId

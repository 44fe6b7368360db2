"""Fields that several messages share, each with its meaning and an example."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from whatsapp_qr_contracts import codes
from whatsapp_qr_contracts.addresses import ADDRESS_PATTERN, Address
from whatsapp_qr_contracts.message import Identifier, Instant

A_CHATBOT = "6f9619ff-8b86-4011-b42d-00c04fc964ff"
A_SESSION = f"session_{A_CHATBOT}_1767268800000"
A_CUSTOMER = "5491112345678"
A_PHONE_NUMBER = "5491100000000"
A_QR_CODE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABAQAAAAA3bvkkAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
A_TIME = "2026-01-01T12:00:00Z"
SENT_WHATSAPP_ID = "3EB053C5CF658EF017BE1E"
RECEIVED_WHATSAPP_ID = "3A1F9C6D2B4E8F0A7C55"

ChatbotId = Annotated[UUID, Field(description="The chatbot", examples=[A_CHATBOT])]
SessionId = Annotated[
    str,
    Field(
        description="The link between the chatbot and its WhatsApp account; kept when it is linked again",
        examples=[A_SESSION],
    ),
]
ReportedSessionId = Annotated[Identifier, Field(description="The session", examples=[A_SESSION])]
ConversationId = Annotated[
    UUID,
    Field(
        description="The conversation of one customer with one chatbot",
        examples=["acf6155f-620b-5a70-b926-049d6b11d50d"],
    ),
]
SentId = Annotated[
    UUID,
    Field(
        description="The message's id, as in its events and in GET /whatsapp-qr/messages",
        examples=["213479c7-5b5a-56f5-8798-e081035027a2"],
    ),
]
ReceivedId = Annotated[
    UUID,
    Field(
        description="The message's id, as in its events and in GET /whatsapp-qr/messages",
        examples=["db5894ac-cda8-5b71-8c32-f146b24613c3"],
    ),
]
SentWhatsappId = Annotated[
    str,
    Field(
        description="The message's id at WhatsApp; a gateway that does not use ours replaces it by its own",
        examples=[SENT_WHATSAPP_ID],
    ),
]
ReceivedWhatsappId = Annotated[str, Field(description="The message's id at WhatsApp", examples=[RECEIVED_WHATSAPP_ID])]
ReceivedText = Annotated[
    str, Field(description="The text; empty if the message contains none (for example an image)", examples=["Hello"])
]
Customer = Annotated[
    str, Field(description="The customer's phone number, or JID if there is no number", examples=[A_CUSTOMER])
]
Recipient = Annotated[
    Address,
    Field(
        description="The customer: a phone number of 7 to 15 digits with country code (a leading plus, spaces and "
        "dashes are removed), or a WhatsApp JID, of a group too",
        examples=[A_CUSTOMER],
        json_schema_extra={"pattern": ADDRESS_PATTERN},
    ),
]
Channel = Annotated[Literal["WHATSAPP_QR"], Field(description="The channel between them; later versions may add more")]
OccurredAt = Annotated[Instant, Field(description="When it happened, by the service's clock", examples=[A_TIME])]
QrCode = Annotated[
    str,
    Field(
        description="PNG data URL; anyone who scans it links the account, so treat it as a secret", examples=[A_QR_CODE]
    ),
]
CallerMetadata = Annotated[
    dict[str, Any], Field(description="The metadata of message.send", examples=[{"orderId": "1234"}])
]
StatusReason = Annotated[
    str | None,
    Field(
        description="The reason of the status as a stable code, if there is one: "
        f"{codes.listed(codes.StatusReason)}; there may be more"
    ),
]
LinkedNumber = Annotated[str | None, Field(description="The linked number, if known", examples=[A_PHONE_NUMBER])]
ErrorCode = Annotated[
    str,
    Field(
        description=f"The reason as a stable code: {codes.listed(codes.FailureCode)}; there may be more",
        examples=["not_on_whatsapp"],
    ),
]

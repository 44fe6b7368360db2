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

ChatbotId = Annotated[UUID, Field(description="The chatbot it is about", examples=[A_CHATBOT])]
SessionId = Annotated[
    str,
    Field(
        description="The link between the chatbot and its WhatsApp account; kept when it is linked anew",
        examples=[A_SESSION],
    ),
]
ReportedSessionId = Annotated[Identifier, Field(description="The session it is about", examples=[A_SESSION])]
ConversationId = Annotated[
    UUID,
    Field(
        description="All that one customer and one chatbot wrote to each other",
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
        description="The message's id at WhatsApp; a gateway that does not take ours replaces it by its own",
        examples=[SENT_WHATSAPP_ID],
    ),
]
ReceivedWhatsappId = Annotated[str, Field(description="The message's id at WhatsApp", examples=[RECEIVED_WHATSAPP_ID])]
ReceivedText = Annotated[
    str, Field(description="The text; empty where the customer sent none (an image, say)", examples=["Hello"])
]
Customer = Annotated[
    str, Field(description="The customer's phone number, or JID where it has no number", examples=[A_CUSTOMER])
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
Channel = Annotated[Literal["WHATSAPP_QR"], Field(description="How they talk; there may be others one day")]
OccurredAt = Annotated[Instant, Field(description="When it happened, by the service's clock", examples=[A_TIME])]
QrCode = Annotated[
    str,
    Field(
        description="PNG data URL; whoever scans it links the account, so treat it as a secret", examples=[A_QR_CODE]
    ),
]
CallerMetadata = Annotated[
    dict[str, Any], Field(description="What the caller gave with message.send", examples=[{"orderId": "1234"}])
]
StatusReason = Annotated[
    str | None,
    Field(
        description="Why, as a stable code, where there is something to say: "
        f"{codes.listed(codes.StatusReason)}; there may be more"
    ),
]
LinkedNumber = Annotated[str | None, Field(description="The linked number, where known", examples=[A_PHONE_NUMBER])]
ErrorCode = Annotated[
    str,
    Field(
        description=f"Why, as a stable code: {codes.listed(codes.FailureCode)}; there may be more",
        examples=["not_on_whatsapp"],
    ),
]

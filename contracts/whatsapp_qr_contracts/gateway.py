"""Reports of the WhatsApp gateway: the body of its callbacks, and of the message that each callback becomes.

The gateway posts the first four to `/whatsapp-qr/webhook` and the last to `/whatsapp-qr/incoming`; the ingress
publishes the same body on `whatsapp-qr.gateway` and answers 200 once it is on disk. A report is only a hint: it may
arrive late, twice or out of order, and the gateway is asked before a session enters or leaves CONNECTED.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from whatsapp_qr_contracts.fields import (
    A_CUSTOMER,
    A_PHONE_NUMBER,
    A_QR_CODE,
    A_TIME,
    RECEIVED_WHATSAPP_ID,
    SENT_WHATSAPP_ID,
    ReportedSessionId,
)
from whatsapp_qr_contracts.message import (
    GATEWAY,
    Identifier,
    InOneSpelling,
    Message,
    Moment,
    Text,
    WireModel,
    storable,
)

_MILLISECONDS_FROM = 100_000_000_000  # as seconds this is the year 5138


def _whole_number(value: Any) -> Any:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        message = "write Unix time in seconds or milliseconds, as a number or a numeric string"
        raise ValueError(message) from None


_LATEST = 99_999_999_999_999
_Written = Annotated[float, Field(ge=0, le=_LATEST)] | Annotated[str, Field(pattern=r"^\s*[0-9]+(\.[0-9]*)?\s*$")]

UnixTime = Annotated[int, Field(ge=0, le=_LATEST), BeforeValidator(_whole_number, json_schema_input_type=_Written)]
"""Unix time in seconds or milliseconds, a number or a numeric string; the unit is kept."""


def moment_of(unix_time: int) -> datetime:
    """Return the point in time of a Unix time in seconds or milliseconds."""
    seconds = unix_time / 1000 if unix_time >= _MILLISECONDS_FROM else unix_time
    return datetime.fromtimestamp(seconds, UTC)


def _cut(length: int) -> BeforeValidator:
    # A report must not be refused because of an optional text.
    return BeforeValidator(lambda value: None if value is None else str(storable(str(value)))[:length])


def _stripped(value: Any) -> Any:
    return storable(value).strip() if isinstance(value, str) else value


def _or_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


Decoration = Annotated[str | None, _cut(200)]
"""An optional text of a report: cut after 200 characters."""

Reported = Annotated[Moment | None, WrapValidator(_or_none)]
"""The gateway's time of the fact; no decision depends on it."""

Empty = BeforeValidator(lambda value: {} if value is None else value)


_TYPE = Field(description="The kind of report")
_DATA = Field(description="The content of the report")


class GatewayReport(Message):
    """Base of the gateway's reports about a session."""

    exchange: ClassVar[str] = GATEWAY
    keyed_by: ClassVar[Literal["chatbotId", "sessionId"]] = "sessionId"

    session_id: ReportedSessionId


class QrData(WireModel):
    """The content of a `qr` report."""

    qr_code: Annotated[Text, StringConstraints(min_length=1, max_length=65_536)] = Field(
        description="The QR code as a PNG data URL; anyone who scans it links the account, so treat it as a secret",
        examples=[A_QR_CODE],
    )


class GatewayQr(GatewayReport):
    """A QR code is ready to be scanned. Sent again each time the code is renewed (about every 20 s)."""

    name: ClassVar[str] = "gateway.qr"
    routing_key: ClassVar[str] = "gateway.qr.{partition}"

    type: Annotated[Literal["qr"], _TYPE]
    data: Annotated[QrData, _DATA]


class ConnectedData(WireModel):
    """The content of a `connected` report."""

    phone_number: Decoration = Field(
        default=None, description="The number of the linked account, if known", examples=[A_PHONE_NUMBER]
    )
    connected_at: Reported = Field(default=None, description="When it was linked", examples=[A_TIME])
    reason: Decoration = Field(
        default=None, description="If there is a connection but nothing is sent: `action_required`, …"
    )


class GatewayConnected(GatewayReport):
    """The account is linked: messages can be sent and received."""

    name: ClassVar[str] = "gateway.connected"
    routing_key: ClassVar[str] = "gateway.connected.{partition}"

    type: Annotated[Literal["connected"], _TYPE]
    data: Annotated[ConnectedData, Empty, _DATA] = ConnectedData()


class DisconnectedData(WireModel):
    """The content of a `disconnected` report."""

    disconnected_at: Reported = Field(default=None, description="When the link ended", examples=[A_TIME])
    reason: Decoration = Field(
        default=None, description="`logged_out`, `replaced`, `qr_expired`, …", examples=["logged_out"]
    )


class GatewayDisconnected(GatewayReport):
    """The link ended: logged out on the phone, replaced, expired or lost."""

    name: ClassVar[str] = "gateway.disconnected"
    routing_key: ClassVar[str] = "gateway.disconnected.{partition}"

    type: Annotated[Literal["disconnected"], _TYPE]
    data: Annotated[DisconnectedData, Empty, _DATA] = DisconnectedData()


class ReceiptData(WireModel):
    """The content of a receipt."""

    message_id: Identifier = Field(description="The WhatsApp id of the message", examples=[SENT_WHATSAPP_ID])
    status: Literal["delivered", "read", "failed"] = Field(description="The status it reached", examples=["delivered"])
    timestamp: UnixTime | None = Field(
        default=None, description="When: Unix time in seconds or milliseconds", examples=[1_767_268_800]
    )
    error: Annotated[str | None, _cut(1000)] = Field(default=None, description="Why it failed")


class GatewayReceipt(GatewayReport):
    """WhatsApp reported the delivery of a message that was sent. `delivered` may be left out if `read` is reported.

    A receipt for an id that is not known (yet) is stored for 24 h and applied once a message has that id.
    """

    name: ClassVar[str] = "gateway.receipt"
    routing_key: ClassVar[str] = "gateway.receipt.{partition}"

    type: Annotated[Literal["receipt"], _TYPE]
    data: Annotated[ReceiptData, _DATA]


class GatewayMessage(GatewayReport):
    """A customer wrote to the linked account. May be posted again.

    A report with a `messageId` that the session had before is a repetition if contact (`from`, in a group also
    `participant`) and content are equal; a number and a LID may be one contact. Otherwise it is a separate message.
    """

    name: ClassVar[str] = "gateway.message"
    routing_key: ClassVar[str] = "gateway.message.{partition}"

    sender: Annotated[str, BeforeValidator(_stripped), StringConstraints(min_length=1, max_length=200)] = Field(
        alias="from", description="Phone number or JID of the customer", examples=[A_CUSTOMER]
    )
    message: Text = Field(
        max_length=65_536, description="The text; may be empty if `type` is not `text`", examples=["Hello"]
    )
    message_id: Identifier = Field(description="The WhatsApp id of the message", examples=[RECEIVED_WHATSAPP_ID])
    timestamp: UnixTime = Field(
        description="When the customer wrote: Unix time in seconds or milliseconds", examples=[1_767_268_800]
    )
    push_name: Decoration = Field(default=None, description="The customer's display name", examples=["Ana"])
    participant: Decoration = Field(
        default=None,
        description="In a group: the phone number or JID of the member who wrote it",
        examples=[A_CUSTOMER],
    )
    type: Decoration = Field(default=None, description="`text`, `image`, …", examples=["text"])

    @model_validator(mode="after")
    def _text_or_type(self) -> "GatewayMessage":
        if not self.message and self.type in {None, "text"}:
            message = "message may be empty only if type is present and not text"
            raise ValueError(message)
        return self


Webhook = Annotated[
    Annotated[GatewayQr, InOneSpelling]
    | Annotated[GatewayConnected, InOneSpelling]
    | Annotated[GatewayDisconnected, InOneSpelling]
    | Annotated[GatewayReceipt, InOneSpelling],
    Field(discriminator="type"),
]
"""The body of POST /whatsapp-qr/webhook."""

Incoming = Annotated[GatewayMessage, InOneSpelling]
"""The body of POST /whatsapp-qr/incoming."""

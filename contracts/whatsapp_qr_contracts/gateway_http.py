"""The gateway's HTTP interface: requests of the service and the gateway's answers.

A gateway must implement this; its callbacks are in `gateway`. `schemas/gateway.openapi.yaml` is the whole contract.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from whatsapp_qr_contracts.fields import (
    A_PHONE_NUMBER,
    A_SESSION,
    A_TIME,
    SENT_WHATSAPP_ID,
    ChatbotId,
    QrCode,
    Recipient,
    ReportedSessionId,
)
from whatsapp_qr_contracts.message import Identifier, SessionStatus, Text, WireModel

_SAID = Field(description="The result in words, for people", examples=["OK"])


class InitRequest(WireModel):
    """POST /init: start a session. A running one stays unchanged."""

    session_id: ReportedSessionId
    chatbot_id: ChatbotId


class SendRequest(WireModel):
    """POST /send: send a text to a customer."""

    session_id: ReportedSessionId
    to: Recipient
    message: Annotated[Text, StringConstraints(min_length=1, max_length=65_536)] = Field(
        description="The text", examples=["Your order is on its way."]
    )
    message_id: Identifier | None = Field(
        default=None,
        description="The WhatsApp id to send it under, the same for every attempt: a gateway that uses it cannot send "
        "one message twice",
        examples=[SENT_WHATSAPP_ID],
    )


class DisconnectRequest(WireModel):
    """POST /disconnect: end a session and log its phone out."""

    session_id: ReportedSessionId


class GatewayAnswer(WireModel):
    """Base of the gateway's answers to successful requests."""

    success: Annotated[Literal[True], Field(description="It was done")] = True


class Done(GatewayAnswer):
    """A session was started or ended, or was in that state already."""

    message: Annotated[str, _SAID]
    session_id: str = Field(description="The session", examples=[A_SESSION])


class QrCodeAnswer(GatewayAnswer):
    """The QR code that waits to be scanned."""

    session_id: str = Field(description="The session", examples=[A_SESSION])
    qr_code: QrCode


class GatewaySession(WireModel):
    """A session's state at the gateway, which is authoritative for the connection."""

    session_id: str = Field(description="The session", examples=[A_SESSION])
    status: SessionStatus = Field(description="Its present status", examples=["CONNECTED"])
    qr_code: str | None = Field(default=None, description="The QR code that waits to be scanned, if there is one")
    phone_number: str | None = Field(
        default=None, description="The number of the linked account, if known", examples=[A_PHONE_NUMBER]
    )


class StatusAnswer(GatewayAnswer):
    """A session's state."""

    session: Annotated[GatewaySession, Field(description="The session")]


class SessionsAnswer(GatewayAnswer):
    """All sessions that run or are stored. QR codes may be left out."""

    sessions: list[GatewaySession] = Field(description="The sessions", examples=[[GatewaySession.example()]])


class SentAnswer(GatewayAnswer):
    """The message was sent to WhatsApp."""

    message_id: Identifier = Field(
        description="The WhatsApp id under which it was sent: the given one, or one of the gateway's",
        examples=[SENT_WHATSAPP_ID],
    )


class Refusal(WireModel):
    """The gateway did not execute the request."""

    success: Annotated[Literal[False], Field(description="It was not done")] = False
    error: str = Field(description="The reason in words, for people", examples=["There is no such session."])
    code: str | None = Field(
        default=None,
        description="Stable code of the reason: unknown_session, not_connected, not_on_whatsapp, restricted, refused; "
        "without one the service asks /status",
        examples=["unknown_session"],
    )


class Healthy(WireModel):
    """The gateway runs."""

    status: Annotated[Literal["ok"], Field(description="Always ok")] = "ok"
    timestamp: datetime = Field(description="The gateway's clock", examples=[A_TIME])

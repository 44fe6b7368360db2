"""What the gateway says about a session when it is asked: one of five things."""

from dataclasses import dataclass

from service.errors import GatewayError
from whatsapp_qr_contracts.message import SessionStatus


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is linked."""

    phone_number: str | None = None
    """As the gateway writes it, where it does."""


@dataclass(frozen=True, slots=True)
class OtherState:
    """It knows the session, which is not linked."""

    status: SessionStatus
    qr_code: str | None = None


@dataclass(frozen=True, slots=True)
class UnknownSession:
    """It does not know the session."""


@dataclass(frozen=True, slots=True)
class UnknownWord:
    """It knows the session, and has a word of its own for its state."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """It did not answer, or would not say."""

    error: GatewayError


Reported = Connected | OtherState | UnknownSession | UnknownWord | NoAnswer

"""The possible answers of the gateway about a session: one of five."""

from dataclasses import dataclass

from service.errors import GatewayError
from whatsapp_qr_contracts.message import SessionStatus


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is linked."""

    phone_number: str | None = None
    """As the gateway writes it, if it does."""


@dataclass(frozen=True, slots=True)
class OtherState:
    """The gateway has the session, which is not linked."""

    status: SessionStatus
    qr_code: str | None = None


@dataclass(frozen=True, slots=True)
class UnknownSession:
    """The gateway does not have the session."""


@dataclass(frozen=True, slots=True)
class UnknownWord:
    """The gateway has the session, in a state that is not part of the contract."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The gateway did not answer, or refused to."""

    error: GatewayError


Reported = Connected | OtherState | UnknownSession | UnknownWord | NoAnswer

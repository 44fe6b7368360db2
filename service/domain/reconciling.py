"""What is wrong with a session when its row and the gateway disagree, and what would mend it.

The step is a hint like every webhook: it goes into the session's queue, and what it says is settled by asking the
gateway when its turn comes.
"""

from dataclasses import dataclass
from enum import StrEnum

from service.domain.identities import customer_address
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from whatsapp_qr_contracts.message import SessionStatus

_S = SessionStatus

ACTION_REQUIRED = "action_required"
"""The reason on a session that says CONNECTED and does not send: nothing that the gateway offers mends it."""
QR_EXPIRED = "qr_expired"
NO_QR_CODE = "no_qr_code"
"""The reason on a session that is CONNECTING for long."""

# After these nothing happens before somebody acts: another try would show a QR code to nobody, or anger WhatsApp.
_WAITS_FOR_THE_USER = frozenset({QR_EXPIRED, ACTION_REQUIRED, "restricted"})


class Step(StrEnum):
    """What mends a session."""

    CONNECTED = "connected"
    """Report that it is connected."""
    DISCONNECTED = "disconnected"
    """Report that the connection is gone."""
    QR = "qr"
    """Report the QR code that the gateway shows."""
    INITIALIZE = "initialize"
    """Ask for the link anew."""
    END = "end"
    """Nobody wants it: end it at the gateway."""
    WARN = "action_required"
    """It says that it is connected, and nothing goes out: tell the user."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the row says, and what has been seen since it last changed."""

    status: SessionStatus
    wanted: bool
    age: float
    """Seconds since it last changed."""
    reason: str | None = None
    phone_number: str | None = None
    qr_code: str | None = None
    stuck: float | None = None
    """Seconds for which the first message of its lane has been seen tried in vain; None where none has."""
    reported_for: float = 0.0
    """Seconds for which the gateway has been seen to say what it says now: CONNECTING, or that it knows no session."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a session may stay in a state that should pass, in seconds."""

    passing: float = 60.0
    """CONNECTING, a lost connection, or a session that the gateway does not know, before it is asked to open it."""
    renewal: float = 120.0
    """A QR code that is not renewed: the first one lives for a minute, those that follow for 20 s."""
    stuck: float = 300.0
    """Sends that fail although everybody says CONNECTED."""


def step(stored: Stored, reported: Reported, patience: Patience) -> Step | None:
    """Return what mends the session, or None where nothing is wrong, the gateway does not say, or time will tell."""
    match reported:
        case NoAnswer() | UnknownWord():
            return None
        case UnknownSession() | OtherState(status=_S.DISCONNECTED):
            return _gone_there(stored, reported, patience) if stored.wanted else None
        case _ if not stored.wanted:
            return Step.END
        case Connected():
            return _connected_there(stored, reported, patience)
        case OtherState(status=_S.QR_READY):
            return _shown_there(stored, reported, patience)
        case _:
            return _connecting_there(stored, patience)


def _connected_there(stored: Stored, reported: Connected, patience: Patience) -> Step | None:
    if stored.status is not _S.CONNECTED or _another_number(stored, reported):
        return Step.CONNECTED
    if stored.reason == ACTION_REQUIRED:
        return Step.CONNECTED if stored.stuck is None else None
    return Step.WARN if stored.stuck is not None and stored.stuck >= patience.stuck else None


def _another_number(stored: Stored, reported: Connected) -> bool:
    number = customer_address(reported.phone_number) if reported.phone_number else ""
    return number not in {"", stored.phone_number}  # a blank one is none


def _shown_there(stored: Stored, reported: OtherState, patience: Patience) -> Step | None:
    if stored.status is not _S.QR_READY:
        return Step.QR
    if stored.age < patience.renewal:
        return None
    # A gateway renews its codes: this one was missed, or it is dead there as well.
    return Step.INITIALIZE if reported.qr_code == stored.qr_code else Step.QR


def _connecting_there(stored: Stored, patience: Patience) -> Step | None:
    match stored.status:
        case _S.CONNECTED:
            return Step.DISCONNECTED
        case _S.CONNECTING:
            return Step.INITIALIZE if stored.age >= patience.passing else None
        case _S.QR_READY:
            # The code may have been scanned in its last second: its age says nothing about the login that follows.
            return Step.INITIALIZE if stored.reported_for >= patience.passing else None
        case _:
            return None


def _gone_there(stored: Stored, reported: UnknownSession | OtherState, patience: Patience) -> Step | None:
    match stored.status:
        case _S.CONNECTED | _S.QR_READY if isinstance(reported, OtherState):
            return Step.DISCONNECTED
        case _S.CONNECTED:
            # A gateway that was restarted lists a session only once it has opened it; a second login ends the first.
            return Step.INITIALIZE if stored.reported_for >= patience.passing else None
        case _S.QR_READY:
            return Step.INITIALIZE
        case _S.DISCONNECTED if stored.reason in _WAITS_FOR_THE_USER:
            return None
        case _:
            return Step.INITIALIZE if stored.age >= patience.passing else None

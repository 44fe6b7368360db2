"""What is wrong with a session when its row and the gateway disagree, and what would mend it.

The step is a hint like every webhook: it goes into the session's queue, and what it says is settled by asking the
gateway when its turn comes.
"""

from dataclasses import dataclass
from enum import StrEnum

from service.domain.identities import customer_address
from service.domain.saying import Connected, NoAnswer, OtherState, Said, UnknownSession, UnknownWord
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
class Known:
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
    said_for: float = 0.0
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


def step(known: Known, said: Said, patience: Patience) -> Step | None:
    """Return what mends the session, or None where nothing is wrong, the gateway does not say, or time will tell."""
    match said:
        case NoAnswer() | UnknownWord():
            return None
        case UnknownSession() | OtherState(status=_S.DISCONNECTED):
            return _gone_there(known, said, patience) if known.wanted else None
        case _ if not known.wanted:
            return Step.END
        case Connected():
            return _connected_there(known, said, patience)
        case OtherState(status=_S.QR_READY):
            return _shown_there(known, said, patience)
        case _:
            return _connecting_there(known, patience)


def _connected_there(known: Known, said: Connected, patience: Patience) -> Step | None:
    if known.status is not _S.CONNECTED or _another_number(known, said):
        return Step.CONNECTED
    if known.reason == ACTION_REQUIRED:
        return Step.CONNECTED if known.stuck is None else None
    return Step.WARN if known.stuck is not None and known.stuck >= patience.stuck else None


def _another_number(known: Known, said: Connected) -> bool:
    number = customer_address(said.phone_number) if said.phone_number else ""
    return number not in {"", known.phone_number}  # a blank one is none


def _shown_there(known: Known, said: OtherState, patience: Patience) -> Step | None:
    if known.status is not _S.QR_READY:
        return Step.QR
    if known.age < patience.renewal:
        return None
    # A gateway renews its codes: this one was missed, or it is dead there as well.
    return Step.INITIALIZE if said.qr_code == known.qr_code else Step.QR


def _connecting_there(known: Known, patience: Patience) -> Step | None:
    match known.status:
        case _S.CONNECTED:
            return Step.DISCONNECTED
        case _S.CONNECTING:
            return Step.INITIALIZE if known.age >= patience.passing else None
        case _S.QR_READY:
            # The code may have been scanned in its last second: its age says nothing about the login that follows.
            return Step.INITIALIZE if known.said_for >= patience.passing else None
        case _:
            return None


def _gone_there(known: Known, said: UnknownSession | OtherState, patience: Patience) -> Step | None:
    match known.status:
        case _S.CONNECTED | _S.QR_READY if isinstance(said, OtherState):
            return Step.DISCONNECTED
        case _S.CONNECTED:
            # A gateway that was restarted lists a session only once it has opened it; a second login ends the first.
            return Step.INITIALIZE if known.said_for >= patience.passing else None
        case _S.QR_READY:
            return Step.INITIALIZE
        case _S.DISCONNECTED if known.reason in _WAITS_FOR_THE_USER:
            return None
        case _:
            return Step.INITIALIZE if known.age >= patience.passing else None

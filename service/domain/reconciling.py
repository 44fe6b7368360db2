"""The faults of a session whose row and the gateway disagree, and the step that repairs each.

A step is only a hint, like every webhook: it is published to the session's queue, and the session consumer asks the
gateway again before it acts.
"""

from dataclasses import dataclass
from enum import StrEnum

from service.domain.identities import customer_address
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from whatsapp_qr_contracts.message import SessionStatus

_S = SessionStatus

ACTION_REQUIRED = "action_required"
"""The reason of a session that is CONNECTED but does not send: no call to the gateway repairs it."""
QR_EXPIRED = "qr_expired"
NO_QR_CODE = "no_qr_code"
"""The reason of a session that is CONNECTING for too long."""

# After these, no repair before the user acts: another attempt would show a QR code to no one, or alarm WhatsApp.
_WAITS_FOR_THE_USER = frozenset({QR_EXPIRED, ACTION_REQUIRED, "restricted"})


class Step(StrEnum):
    """A step that repairs a session."""

    CONNECTED = "connected"
    """Report that it is connected."""
    DISCONNECTED = "disconnected"
    """Report that the connection is lost."""
    QR = "qr"
    """Report the QR code that the gateway shows."""
    INITIALIZE = "initialize"
    """Open the session again."""
    END = "end"
    """It is not wanted: end it at the gateway."""
    WARN = "action_required"
    """It is CONNECTED according to the gateway, and sends fail: notify the user."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The state of the row, and the observations since it last changed."""

    status: SessionStatus
    wanted: bool
    age: float
    """Seconds since it last changed."""
    reason: str | None = None
    phone_number: str | None = None
    qr_code: str | None = None
    stuck: float | None = None
    """Seconds since sends of the first message of its lane were first seen to fail; None if none were."""
    reported_for: float = 0.0
    """Seconds for which the gateway has been seen to give the present answer: CONNECTING, or unknown session."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a session may stay in a temporary state."""

    passing: float = 60.0
    """CONNECTING, a lost connection, or a session that is unknown at the gateway, before it is opened again."""
    renewal: float = 120.0
    """A QR code that is not renewed: the first one is valid for a minute, the following ones for 20 s."""
    stuck: float = 300.0
    """Failing sends although row and gateway are CONNECTED."""


def step(stored: Stored, reported: Reported, patience: Patience) -> Step | None:
    """Return the step that repairs the session; None if there is no fault, no answer, or the state may still change."""
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
    return number not in {"", stored.phone_number}  # a blank one counts as none


def _shown_there(stored: Stored, reported: OtherState, patience: Patience) -> Step | None:
    if stored.status is not _S.QR_READY:
        return Step.QR
    if stored.age < patience.renewal:
        return None
    # A gateway renews its codes: either the new code's report was lost, or the code has expired there too.
    return Step.INITIALIZE if reported.qr_code == stored.qr_code else Step.QR


def _connecting_there(stored: Stored, patience: Patience) -> Step | None:
    match stored.status:
        case _S.CONNECTED:
            return Step.DISCONNECTED
        case _S.CONNECTING:
            return Step.INITIALIZE if stored.age >= patience.passing else None
        case _S.QR_READY:
            # The code may have been scanned in its last second: its age does not limit the following login.
            return Step.INITIALIZE if stored.reported_for >= patience.passing else None
        case _:
            return None


def _gone_there(stored: Stored, reported: UnknownSession | OtherState, patience: Patience) -> Step | None:
    match stored.status:
        case _S.CONNECTED | _S.QR_READY if isinstance(reported, OtherState):
            return Step.DISCONNECTED
        case _S.CONNECTED:
            # A restarted gateway lists a session only once it has opened it; a second login would end the first.
            return Step.INITIALIZE if stored.reported_for >= patience.passing else None
        case _S.QR_READY:
            return Step.INITIALIZE
        case _S.DISCONNECTED if stored.reason in _WAITS_FOR_THE_USER:
            return None
        case _:
            return Step.INITIALIZE if stored.age >= patience.passing else None

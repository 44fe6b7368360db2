"""The session state machine.

A webhook is only a hint: before a session enters or leaves CONNECTED, the gateway is asked, so a late, repeated or
replayed report does no harm.
"""

from enum import StrEnum

from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from whatsapp_qr_contracts.message import SessionStatus

_S = SessionStatus


class Trigger(StrEnum):
    """An event that can change a session."""

    INITIALIZE = "initialize"
    """A user requested the link."""
    INITIALIZE_FAILED = "initialize_failed"
    """The gateway refused to open the session, or was unavailable."""
    QR = "qr"
    """The gateway reported a QR code."""
    CONNECTED = "connected"
    """The gateway reported the link."""
    DISCONNECTED = "disconnected"
    """The gateway reported that the link is lost."""
    DISCONNECT = "disconnect"
    """A user ended the link."""


TRANSITIONS: dict[tuple[SessionStatus, Trigger], SessionStatus] = {
    (_S.DISCONNECTED, Trigger.INITIALIZE): _S.CONNECTING,
    (_S.DISCONNECTED, Trigger.QR): _S.QR_READY,
    (_S.DISCONNECTED, Trigger.CONNECTED): _S.CONNECTED,
    (_S.DISCONNECTED, Trigger.DISCONNECTED): _S.DISCONNECTED,
    (_S.DISCONNECTED, Trigger.DISCONNECT): _S.DISCONNECTED,
    (_S.CONNECTING, Trigger.INITIALIZE): _S.CONNECTING,
    (_S.CONNECTING, Trigger.INITIALIZE_FAILED): _S.DISCONNECTED,
    (_S.CONNECTING, Trigger.QR): _S.QR_READY,
    (_S.CONNECTING, Trigger.CONNECTED): _S.CONNECTED,
    (_S.CONNECTING, Trigger.DISCONNECTED): _S.DISCONNECTED,
    (_S.CONNECTING, Trigger.DISCONNECT): _S.DISCONNECTED,
    (_S.QR_READY, Trigger.INITIALIZE): _S.CONNECTING,
    (_S.QR_READY, Trigger.QR): _S.QR_READY,
    (_S.QR_READY, Trigger.CONNECTED): _S.CONNECTED,
    (_S.QR_READY, Trigger.DISCONNECTED): _S.DISCONNECTED,
    (_S.QR_READY, Trigger.DISCONNECT): _S.DISCONNECTED,
    (_S.CONNECTED, Trigger.INITIALIZE): _S.CONNECTING,
    (_S.CONNECTED, Trigger.QR): _S.QR_READY,
    (_S.CONNECTED, Trigger.CONNECTED): _S.CONNECTED,
    (_S.CONNECTED, Trigger.DISCONNECTED): _S.DISCONNECTED,
    (_S.CONNECTED, Trigger.DISCONNECT): _S.DISCONNECTED,
}
"""Pairs that are not listed change nothing.

INITIALIZE leaves CONNECTED only if the gateway reports no connection. CONNECTED follows CONNECTED only with another
number, and DISCONNECTED follows DISCONNECTED only with a reason after which the session is not wanted any more.
"""

# Reports after which the account is not linked any more, so the session is not wanted any more.
_ENDS_THE_WISH = frozenset({"logged_out", "replaced"})


def target(status: SessionStatus, trigger: Trigger, *, wanted: bool) -> SessionStatus | None:
    """Return the status to which a trigger leads; None if it changes nothing.

    A QR code or a connection of a session that is not wanted is ignored.
    """
    if trigger in {Trigger.QR, Trigger.CONNECTED} and not wanted:
        return None
    return TRANSITIONS.get((status, trigger))


def must_be_confirmed(status: SessionStatus, trigger: Trigger) -> bool:
    """Return whether the gateway must be asked before a report is applied."""
    return trigger in {Trigger.CONNECTED, Trigger.DISCONNECTED} or status is SessionStatus.CONNECTED


def confirms(reported: Reported, trigger: Trigger, *, before: SessionStatus) -> bool:
    """Return whether the gateway's present answer agrees with its report; without an answer, the report is applied.

    Args:
        reported: the answer.
        trigger: the report.
        before: the session's status before it.
    """
    if isinstance(reported, NoAnswer | UnknownWord):
        return True
    if trigger is Trigger.CONNECTED:
        return isinstance(reported, Connected)
    if trigger is Trigger.QR or before is SessionStatus.CONNECTED:
        return not isinstance(reported, Connected)
    return isinstance(reported, UnknownSession) or (
        isinstance(reported, OtherState) and reported.status is _S.DISCONNECTED
    )


def still_wanted(reason: str | None) -> bool:
    """Return whether a session is still wanted after the gateway reported its end for this reason."""
    return reason not in _ENDS_THE_WISH


def hangs(reported: Reported, *, linked: bool) -> bool:
    """Return whether ending a pairing cannot end a link: to end it, the gateway logs out."""
    match reported:
        case OtherState(SessionStatus.QR_READY):
            return True
        case OtherState(SessionStatus.CONNECTING):
            return not linked
    return False

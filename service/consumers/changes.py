"""Changes to a session: the trigger, and the values that come with it."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from service.domain import session as machine
from service.domain.identities import customer_address
from service.domain.session import Trigger
from service.persistence import lanes, sessions
from service.persistence.tables import SessionRecord, SessionRow
from whatsapp_qr_contracts.message import SessionStatus


@dataclass(frozen=True, slots=True)
class Change:
    """A change to a session: its trigger, and the values that come with it."""

    trigger: Trigger
    wanted: bool
    reason: str | None = None
    qr_code: str | None = None
    phone_number: str | None = None


def phone(text: str | None) -> str | None:
    """Return a phone number in a form for comparison: gateways write a plus or a JID, and the device part changes.

    A blank number counts as none.
    """
    return (customer_address(text) or None) if text else None


def is_noop(session: SessionRecord, change: Change) -> bool:
    """Return whether a change that the state machine allows would change nothing."""
    match change.trigger, session.status:
        case Trigger.QR, SessionStatus.QR_READY:
            return change.qr_code == session.qr_code
        case Trigger.CONNECTED, SessionStatus.CONNECTED:
            return change.phone_number in {None, session.phone_number} and change.reason == session.status_reason
        case Trigger.DISCONNECTED, SessionStatus.DISCONNECTED:
            return change.wanted == session.wanted
    return False


def move(tx: AsyncSession, session: SessionRecord, change: Change, *, caused_by: str) -> None:
    """Change a locked session by a change that the state machine allows."""
    sessions.move(
        tx,
        session,
        machine.TRANSITIONS[session.status, change.trigger],
        wanted=change.wanted,
        caused_by=caused_by,
        reason=change.reason,
        qr_code=change.qr_code,
        phone_number=change.phone_number,
    )


async def apply(tx: AsyncSession, *, seen: SessionRow, change: Change, caused_by: str) -> SessionRow:
    """Change a session if it is still as it was read; return it.

    When it becomes connected, its lane is woken: waiting messages are sent, or fail if they were for another number.

    Raises:
        DatabaseUnavailable: another process changed it meanwhile; decide again.
    """
    session = await sessions.locked_unchanged(tx, seen)
    number = change.phone_number
    if number and session.phone_number and number != session.phone_number:
        await lanes.make_void(tx, session)
    move(tx, session, change, caused_by=caused_by)
    if session.status is SessionStatus.CONNECTED:
        await lanes.wake(tx, [session.session_id])
    return session

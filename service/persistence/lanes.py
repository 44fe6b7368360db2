"""The lane of a session: its PENDING messages in order. One message at a time is claimed, sent and recorded."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from sqlalchemy import ColumnElement, TextClause, not_, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select
from uuid_utils.compat import uuid7

from service.domain.identities import whatsapp_message_id
from service.domain.sending import GiveUp, Retry, SendPolicy
from service.errors import Rejected
from service.persistence.conversations import FAILED_BY_WHATSAPP, apply_waiting_receipts, raise_status
from service.persistence.database import Database
from service.persistence.sessions import session_by_id
from service.persistence.tables import MessageRow, SessionRow, now
from whatsapp_qr_contracts.message import DeliveryStatus, Role, SessionStatus

_PENDING = DeliveryStatus.PENDING

CANCELLED = "cancelled"
"""The error code of a message that its sender took back."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing can be sent: the lane is empty, or the session is not connected and its messages wait for that."""

    postponed: bool = False
    """Whether the row still says that the lane is to be looked at again."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The first message may be sent in so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Expired:
    """The first message waited too long and has failed."""

    message: MessageRow


@dataclass(frozen=True, slots=True)
class Claimed:
    """The first message belongs to this process until its claim ends."""

    message: MessageRow


Next = Idle | Wait | Expired | Claimed


def _pending(session_id: str) -> tuple[ColumnElement[bool] | TextClause, ...]:
    # The status is written out, not bound: only so is the partial index of the lane used.
    return (col(MessageRow.session_id) == session_id, text("delivery_status = 'PENDING'"))


async def claim_next(database: Database, tx: AsyncSession, *, session_id: str, policy: SendPolicy) -> Next:
    """Claim the first message of a lane. Messages behind it are never claimed before it: that is the order."""
    session = await session_by_id(tx, session_id)
    row = await _lock_first(database, tx, session_id)
    if session is None or row is None:
        return Idle(postponed=session is not None and session.drain_at is not None)
    message, at = row
    claimed = message.claimed_until is not None and message.claimed_until > at
    if not claimed and message.expires_at is not None and message.expires_at <= at:
        expire(message, at)
        return Expired(message)
    if session.status is not SessionStatus.CONNECTED:
        return Idle(postponed=session.drain_at is not None)
    ready_at = message.claimed_until if claimed else message.not_before
    if ready_at is not None and ready_at > at:
        return Wait((ready_at - at).total_seconds())
    message.claim = uuid7()
    message.claimed_until = at + timedelta(seconds=policy.claim_seconds)
    return Claimed(message)


async def _lock_first(database: Database, tx: AsyncSession, session_id: str) -> tuple[MessageRow, datetime] | None:
    """Return the first message of a lane, locked, and the present time."""
    query = (
        select(MessageRow, database.clock())
        .where(*_pending(session_id))
        .order_by(col(MessageRow.lane_number))
        .limit(1)
        .with_for_update(of=MessageRow)
    )
    while True:
        row = (await tx.execute(query, execution_options={"populate_existing": True})).one_or_none()
        if row is not None:
            return row[0], row[1]
        # PostgreSQL gives nothing where a receipt raised the first message while its lock was waited for.
        if await first_pending(tx, session_id) is None:
            return None


async def record_sent(tx: AsyncSession, *, claimed: MessageRow, whatsapp_id: str) -> MessageRow | None:
    """Record that the gateway took a message; None where it has another WhatsApp id by now: it is to go out anew.

    True whoever records it, so no claim is asked for.
    """
    renamed = claimed.whatsapp_message_id != whatsapp_id
    if renamed:
        await session_by_id(tx, claimed.session_id, lock=True)  # apply_receipt keeps early receipts under this lock
    message = await _locked(tx, claimed.id)
    if message.whatsapp_message_id not in {claimed.whatsapp_message_id, whatsapp_id}:
        return None
    if message.error_code != FAILED_BY_WHATSAPP:  # that receipt is newer than the answer that is recorded here
        raise_status(message, DeliveryStatus.SENT, now())
    if renamed:
        message.whatsapp_message_id = whatsapp_id  # a gateway with ids of its own: its receipts will carry this one
        await apply_waiting_receipts(tx, message)
    message.claimed_until = message.not_before = None
    return message


async def record_failure(
    database: Database, tx: AsyncSession, *, claimed: MessageRow, verdict: Retry | GiveUp
) -> MessageRow | None:
    """Record a failed attempt; None where the claim was lost meanwhile and the newer state stands."""
    message = await _locked(tx, claimed.id)
    if message.claim != claimed.claim or message.delivery_status is not _PENDING:
        return None
    message.claimed_until = None
    if isinstance(verdict, GiveUp):
        message.attempts += verdict.code == "outcome_unknown"
        raise_status(message, DeliveryStatus.FAILED, now(), error_code=verdict.code, error_message=verdict.detail)
    else:
        message.attempts += verdict.counts
        message.not_before = await database.present(tx, timedelta(seconds=verdict.delay))
    return message


async def postpone(database: Database, tx: AsyncSession, *, session_id: str, seconds: float | None) -> None:
    """Write down when the lane is to be looked at again; None once somebody looks."""
    at = None if seconds is None else database.clock(timedelta(seconds=seconds))
    await tx.execute(update(SessionRow).where(col(SessionRow.session_id) == session_id).values(drain_at=at))


async def first_pending(tx: AsyncSession, session_id: str) -> MessageRow | None:
    """Return the first message of a lane that waits to be sent."""
    query = select(MessageRow).where(*_pending(session_id)).order_by(col(MessageRow.lane_number)).limit(1)
    return (await tx.scalars(query)).one_or_none()


async def fail_pending(tx: AsyncSession, session_id: str, *, code: str, detail: str) -> None:
    """Fail every message of a lane that waits."""
    query = select(MessageRow).where(*_pending(session_id)).with_for_update()
    for message in await tx.scalars(query):
        _fail_waiting(message, now(), code=code, detail=detail)


def expire(message: MessageRow, at: datetime) -> None:
    """Fail a message that waited too long."""
    _fail_waiting(message, at, code="expired", detail="it waited too long")


def _fail_waiting(message: MessageRow, at: datetime, *, code: str, detail: str) -> None:
    if message.attempts or message.claimed_until is not None:  # the latter is left by a process that was killed
        detail += "; an earlier attempt, whose outcome is unknown, may have gone out"
    raise_status(message, DeliveryStatus.FAILED, at, error_code=code, error_message=detail)


async def cancel(database: Database, tx: AsyncSession, message: MessageRow) -> None:
    """Fail a locked message that waits; one that was cancelled before stays so.

    Raises:
        Rejected: it does not wait any more, or it is being sent at this moment.
    """
    if message.error_code == CANCELLED:
        return
    if message.delivery_status is not _PENDING:
        raise Rejected(f"the message is {message.delivery_status}: only one that is PENDING", code="not_pending")
    at = await database.present(tx)
    if message.claimed_until is not None and message.claimed_until > at:
        raise Rejected("the message is being sent at this moment: ask again in some seconds", code="being_sent")
    _fail_waiting(message, at, code=CANCELLED, detail="it was cancelled")


async def enqueue_again(
    database: Database, tx: AsyncSession, session: SessionRow, message: MessageRow, *, expiry: timedelta, retry: str
) -> None:
    """Put a locked message that failed at the end of the lane of its session, which is locked too.

    Args:
        database: the clock.
        tx: the transaction.
        session: whose lane it is.
        message: the message.
        expiry: how long it may wait.
        retry: the id of the command that asks for it.

    Raises:
        Rejected: it has not failed.
    """
    if message.delivery_status is not DeliveryStatus.FAILED:
        raise Rejected(f"the message is {message.delivery_status}: only one that is FAILED", code="not_failed")
    if message.error_code == FAILED_BY_WHATSAPP:
        # It did not arrive, so nothing doubles; under the old id a gateway may answer without sending, and the old
        # receipt, repeated, would fail it again.
        message.whatsapp_message_id = whatsapp_message_id(uuid5(message.id, retry))
    session.lane_end += 1
    message.lane_number = session.lane_end
    message.delivery_status, message.announced = _PENDING, True
    message.attempts = 0
    message.claim = message.claimed_until = message.not_before = None
    message.error_code = message.error_message = None
    message.failed_at = message.sent_at = None
    message.expires_at = await database.present(tx, expiry)


async def unannounced(tx: AsyncSession, session_id: str) -> list[MessageRow]:
    """Return the messages of a lane whose present status is not known to be announced, in order."""
    query = (
        select(MessageRow)
        .where(
            col(MessageRow.session_id) == session_id,
            not_(col(MessageRow.announced)),
            col(MessageRow.role) == Role.ASSISTANT,
        )
        .order_by(col(MessageRow.lane_number))
    )
    return list(await tx.scalars(query))


async def locked(tx: AsyncSession, message_id: UUID) -> MessageRow | None:
    """Return a message, locked against other transactions."""
    query = select(MessageRow).where(col(MessageRow.id) == message_id).with_for_update()
    return (await tx.scalars(query, execution_options={"populate_existing": True})).one_or_none()


async def _locked(tx: AsyncSession, message_id: UUID) -> MessageRow:
    message = await locked(tx, message_id)
    if message is None:
        raise LookupError(f"no message has the id {message_id}")
    return message

"""The lane of a session: its PENDING messages in order, and a row that says how far their sending is.

The outbound consumer locks the lane's row, then messages. So two processes never send from one lane at once, and
whoever stores messages, which locks the session's row, is never waited for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID, uuid5

from sqlalchemy import ScalarSelect, Select, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col
from uuid_utils.compat import uuid7

from service.domain.identities import whatsapp_message_id
from service.domain.sending import GiveUp, Retry, SendPolicy, taken, wait_for_token
from service.errors import Rejected
from service.persistence.conversations import raise_status, take_receipts
from service.persistence.database import clock, locked
from service.persistence.tables import AWAKE, EXPIRING, PENDING, LaneRow, MessageRow, SessionRow, now
from service.persistence.untold import Part
from whatsapp_qr_contracts.codes import FailureCode, RejectionCode
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus

_PENDING = DeliveryStatus.PENDING
BATCH = 200
_SOON = timedelta(milliseconds=1)
_ANOTHER_NUMBER = "the session was linked to another number while the message waited"
_MAY_HAVE_GONE = "; an earlier attempt, whose outcome is unknown, may have gone out"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that belongs to this process until its claim ends."""

    message: MessageRow
    claim: UUID
    deferrals: int
    """Times in a row that its session could not send at all, so far."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a claimed message: the WhatsApp id under which the gateway took it, or what follows a failure."""

    claimed: Claimed
    result: str | Retry | GiveUp


async def wake(tx: AsyncSession, session_ids: Collection[str]) -> None:
    """Let lanes be looked at now."""
    these = col(LaneRow.session_id).in_(session_ids)
    await tx.execute(select(col(LaneRow.session_id)).where(these).order_by(col(LaneRow.session_id)).with_for_update())
    await tx.execute(update(LaneRow).where(these).values(wake_at=clock(tx)))


async def make_void(tx: AsyncSession, session: SessionRow) -> None:
    """Let everything that waits in a lane fail; the session is locked by the caller."""
    lane = update(LaneRow).where(col(LaneRow.session_id) == session.session_id)
    await tx.execute(lane.values(void_to=session.lane_end, wake_at=clock(tx)))


async def due(tx: AsyncSession, part: Part, besides: Collection[str] = ()) -> list[str]:
    """Return lanes that are to be looked at now, those of this process alone, the longest waiting first."""
    query = (
        select(col(LaneRow.session_id))
        .where(
            text(AWAKE),
            col(LaneRow.wake_at) <= select(clock(tx)).scalar_subquery(),
            (col(LaneRow.key_hash) % part.partitions).in_(sorted(part.owned)),
            col(LaneRow.session_id).not_in(besides),
        )
        .order_by(col(LaneRow.wake_at))
    )
    return list(await tx.scalars(query.limit(BATCH)))


async def wake_for(tx: AsyncSession, ids: Iterable[UUID]) -> tuple[set[UUID], set[str]]:
    """Wake the lanes of messages; return the messages that exist, and the lanes to look at now.

    A lane that is awake already, because it waits for its pace or for the gateway, is looked at when its time comes.
    """
    query = (
        select(col(MessageRow.id), LaneRow, clock(tx))
        .join(LaneRow, col(LaneRow.session_id) == col(MessageRow.session_id))
        .where(col(MessageRow.id).in_(list(ids)))
        .order_by(col(LaneRow.session_id))
        .with_for_update(of=LaneRow)
    )
    known, now_due = set(), set()
    for message_id, lane, at in await tx.execute(query):
        known.add(message_id)
        lane.wake_at = lane.wake_at or at
        if lane.wake_at <= at:
            now_due.add(lane.session_id)
    return known, now_due


@dataclass(slots=True)
class Round:
    """What one transaction of the outbound consumer did."""

    changed: list[MessageRow]
    """Messages whose status has changed."""
    claimed: list[Claimed]
    """Messages to send now."""
    next_at: datetime | None
    """When the next lane of these wakes."""
    at: datetime
    """The time of the transaction, by the database's clock."""


async def send_round(tx: AsyncSession, *, answers: Sequence[Answer], due: Collection[str], policy: SendPolicy) -> Round:
    """Record what became of claimed messages, fail what has expired, and claim what is next in each lane.

    From lanes that are not `due`, those of the answers, nothing is claimed: they are to be looked at again.
    """
    sent = [(answer.claimed.message, answer.result) for answer in answers if isinstance(answer.result, str)]
    if renamed := {message.session_id for message, taken_as in sent if taken_as != message.whatsapp_message_id}:
        # A receipt for an id that is not known is kept under this lock too: neither may miss the other.
        query = select(col(SessionRow.id)).where(col(SessionRow.session_id).in_(renamed))
        await tx.execute(query.order_by(col(SessionRow.id)).with_for_update())
    answered = {answer.claimed.message.session_id for answer in answers}
    lanes, at = await _locked_lanes(tx, answered | set(due))
    expired, void = await _expired(tx, lanes, at), await _void(tx, lanes, at)
    ids = {answer.claimed.message.id for answer in answers} | expired | void
    messages = {message.id: message for message in await locked(tx, MessageRow, MessageRow.id, ids)}
    changed = [row for answer in answers if (row := await _record(tx, answer, lanes, messages, at))]
    changed += [messages[row_id] for row_id in expired if _expire(messages[row_id], lanes, at)]
    changed += [messages[row_id] for row_id in void if _fail_void(messages[row_id], lanes, at)]
    await tx.flush()
    some_failed = {messages[row_id].session_id for row_id in expired | void}
    claimed = await _claim(tx, {name: lane for name, lane in lanes.items() if name in due}, at, policy, some_failed)
    for session_id in answered - set(due):
        lanes[session_id].wake_at = at
    waiting = [lane.wake_at for lane in lanes.values() if lane.wake_at is not None]
    return Round(changed, claimed, min(waiting, default=None), at)


async def _locked_lanes(tx: AsyncSession, session_ids: Collection[str]) -> tuple[dict[str, LaneRow], datetime]:
    """Return the lanes of sessions, locked, and the time of the transaction."""
    query = select(LaneRow, clock(tx)).where(col(LaneRow.session_id).in_(session_ids))
    rows = (await tx.execute(query.order_by(col(LaneRow.session_id)).with_for_update(of=LaneRow))).all()
    return {lane.session_id: lane for lane, _ in rows}, max((at for _, at in rows), default=now())


async def _expired(tx: AsyncSession, lanes: Mapping[str, LaneRow], at: datetime) -> set[UUID]:
    """Return messages that waited too long, wherever they stand, but for those that may be on their way."""
    too_old = (text(EXPIRING), col(MessageRow.expires_at) <= at)
    query = select(col(MessageRow.id)).where(col(MessageRow.session_id).in_(lanes), *too_old)
    return set(await tx.scalars(query.limit(BATCH))) - _claimed_messages(lanes, at)


async def _void(tx: AsyncSession, lanes: Mapping[str, LaneRow], at: datetime) -> set[UUID]:
    """Return messages that a change of number made void, but for those that may be on their way."""
    some = [name for name, lane in lanes.items() if lane.void_to]
    if not some:
        return set()
    query = (
        select(col(MessageRow.id))
        .join(LaneRow, col(LaneRow.session_id) == col(MessageRow.session_id))
        .where(col(MessageRow.session_id).in_(some), text(PENDING), col(MessageRow.lane_number) <= col(LaneRow.void_to))
    )
    return set(await tx.scalars(query.limit(BATCH))) - _claimed_messages(lanes, at)


def _claimed_messages(lanes: Mapping[str, LaneRow], at: datetime) -> set[UUID | None]:
    return {lane.claimed_message for lane in lanes.values() if _is_claimed(lane, at)}


def _is_claimed(lane: LaneRow, at: datetime) -> bool:
    return lane.claimed_until is not None and lane.claimed_until > at


async def _record(
    tx: AsyncSession,
    answer: Answer,
    lanes: Mapping[str, LaneRow],
    messages: Mapping[UUID, MessageRow],
    at: datetime,
) -> MessageRow | None:
    """Record an answer; return the message where its status has changed."""
    claimed, message = answer.claimed, messages[answer.claimed.message.id]
    lane = lanes[message.session_id]
    held = lane.claim == claimed.claim
    if held:
        lane.claim = lane.claimed_message = lane.claimed_until = lane.not_before = None
        lane.deferrals = 0
    if isinstance(answer.result, str):
        # It is true whoever records it, so no claim is asked for.
        return await _record_sent(tx, claimed.message, message, answer.result)
    is_anew = message.whatsapp_message_id != claimed.message.whatsapp_message_id
    if not held or is_anew or message.delivery_status is not _PENDING:
        return None  # the claim was lost meanwhile, and the newer state stands
    if isinstance(answer.result, GiveUp):
        message.attempts += answer.result.code == FailureCode.OUTCOME_UNKNOWN
        code, detail = answer.result.code, answer.result.detail
        return message if raise_status(message, DeliveryStatus.FAILED, now(), code=code, detail=detail) else None
    message.attempts += answer.result.counts
    lane.deferrals = 0 if answer.result.counts else claimed.deferrals + 1
    lane.not_before = at + timedelta(seconds=answer.result.delay)
    return None


async def _record_sent(
    tx: AsyncSession, claimed: MessageRow, message: MessageRow, whatsapp_id: str
) -> MessageRow | None:
    if message.whatsapp_message_id not in {claimed.whatsapp_message_id, whatsapp_id}:
        return None  # it has another WhatsApp id by now: it is to go out anew
    before = message.version
    if message.error_code != FailureCode.FAILED_BY_WHATSAPP:  # that receipt is newer than the answer
        raise_status(message, DeliveryStatus.SENT, now())
    if whatsapp_id != message.whatsapp_message_id:
        message.whatsapp_message_id = whatsapp_id  # a gateway with ids of its own: its receipts will carry this one
        await take_receipts(tx, message)
    return message if message.version > before else None


def _expire(message: MessageRow, lanes: Mapping[str, LaneRow], at: datetime) -> bool:
    # Looked at again under its lock: WhatsApp may have failed it, and its caller tried it again, meanwhile.
    if message.expires_at is None or message.expires_at > at:
        return False
    return fail_waiting(message, lanes.get(message.session_id), at, FailureCode.EXPIRED, "it waited too long")


def _fail_void(message: MessageRow, lanes: Mapping[str, LaneRow], at: datetime) -> bool:
    lane = lanes[message.session_id]
    if not _is_void(message, lane):  # tried again meanwhile: it stands further behind
        return False
    return fail_waiting(message, lane, at, FailureCode.NUMBER_CHANGED, _ANOTHER_NUMBER)


def _is_void(message: MessageRow, lane: LaneRow) -> bool:
    return message.lane_number is not None and message.lane_number <= lane.void_to


async def _claim(
    tx: AsyncSession, lanes: Mapping[str, LaneRow], at: datetime, policy: SendPolicy, some_failed: Collection[str]
) -> list[Claimed]:
    """Claim the first message of each lane that may send now; say of the others when they are to be looked at.

    `some_failed` are lanes in which messages have just failed: more of them may have to, also where none can be sent.
    """
    first = {message.session_id: message for message in await tx.scalars(_first_of_connected(lanes))}
    claimed = []
    for lane in lanes.values():
        message = first.get(lane.session_id)
        if message is None:
            lane.wake_at = at + _SOON if lane.session_id in some_failed else None
            continue
        ready_at = _ready_at(message, lane, at, policy)
        if ready_at > at:
            lane.wake_at = ready_at
            continue
        lane.claim, lane.claimed_message = uuid7(), message.id
        lane.claimed_until = lane.wake_at = at + timedelta(seconds=policy.claim_seconds)
        lane.tokens, lane.tokens_at = taken(lane.tokens, _since(lane, at), policy), at
        claimed.append(Claimed(message, lane.claim, lane.deferrals))
    return claimed


@cache
def first_pending() -> ScalarSelect[UUID]:
    """Return the id of the first message that waits in the lane of a session of the statement around it.

    Lane after lane, by their index: a join may read all that waits, where PostgreSQL's statistics are older than that.
    """
    # The status is written out, not bound: only so is the partial index used.
    waiting = aliased(MessageRow, name="waiting")
    query = select(col(waiting.id)).where(
        col(waiting.session_id) == col(SessionRow.session_id), text(f"waiting.{PENDING}")
    )
    return query.order_by(col(waiting.lane_number)).limit(1).correlate(SessionRow).scalar_subquery()


def _first_of_connected(session_ids: Collection[str]) -> Select[MessageRow]:
    is_connected = col(SessionRow.status) == SessionStatus.CONNECTED
    first = select(first_pending()).where(col(SessionRow.session_id).in_(session_ids), is_connected)
    return select(MessageRow).where(col(MessageRow.id).in_(first)).execution_options(populate_existing=True)


def _since(lane: LaneRow, at: datetime) -> float:
    return 0.0 if lane.tokens_at is None else max(0.0, (at - lane.tokens_at).total_seconds())


def _ready_at(message: MessageRow, lane: LaneRow, at: datetime, policy: SendPolicy) -> datetime:
    if _is_claimed(lane, at) and lane.claimed_until is not None:
        return lane.claimed_until
    if _is_void(message, lane) or (message.expires_at is not None and message.expires_at <= at):
        return at + _SOON  # it is one of very many, and fails in the next round
    paced = at + timedelta(seconds=wait_for_token(lane.tokens, _since(lane, at), policy))
    return max(paced, lane.not_before or at)


def fail_waiting(message: MessageRow, lane: LaneRow | None, at: datetime, code: str, detail: str) -> bool:
    """Fail a message that waits; say whether that changed it."""
    begun = lane is not None and lane.claimed_message == message.id  # it is left by a process that was killed
    detail += _MAY_HAVE_GONE if message.attempts or begun else ""
    return raise_status(message, DeliveryStatus.FAILED, at, code=code, detail=detail)


def cancel(message: MessageRow, lane: LaneRow | None, at: datetime) -> None:
    """Fail a message that waits; one that was cancelled before stays so. It and its lane are locked by the caller.

    Raises:
        Rejected: it does not wait any more, or it is being sent at this moment.
    """
    if message.error_code == FailureCode.CANCELLED:
        return
    if message.delivery_status is not _PENDING:
        detail = f"the message is {message.delivery_status}: only one that is PENDING"
        raise Rejected(detail, code=RejectionCode.NOT_PENDING)
    if lane is not None and lane.claimed_message == message.id and _is_claimed(lane, at):
        detail = "the message is being sent at this moment: ask again in some seconds"
        raise Rejected(detail, code=RejectionCode.BEING_SENT)
    fail_waiting(message, lane, at, FailureCode.CANCELLED, "it was cancelled")


def enqueue_again(session: SessionRow, message: MessageRow, *, expires_at: datetime, retry: str) -> None:
    """Put a message that failed at the end of its lane; `retry` is the id of the command that asks for it.

    It and its session are locked by the caller.

    Raises:
        Rejected: it has not failed.
    """
    if message.delivery_status is not DeliveryStatus.FAILED:
        detail = f"the message is {message.delivery_status}: only one that is FAILED"
        raise Rejected(detail, code=RejectionCode.NOT_FAILED)
    if message.error_code == FailureCode.FAILED_BY_WHATSAPP:
        # It did not arrive, so nothing doubles; under the old id a gateway may answer without sending, and the old
        # receipt, repeated, would fail it again.
        message.whatsapp_message_id = whatsapp_message_id(uuid5(message.id, retry))
    session.lane_end += 1
    message.lane_number = session.lane_end
    message.delivery_status, message.handed_over = _PENDING, False
    message.version += 1
    message.told_version = message.version  # that it waits again is told by the command's outcome
    message.attempts = 0
    message.error_code = message.error_message = None
    message.failed_at = message.sent_at = None
    message.expires_at = expires_at

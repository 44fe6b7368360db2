"""The lane of a session: its PENDING messages in order, and a row with the progress of their sending.

The outbound consumer locks the lane's row, then messages. So two processes never send from one lane at once, and the
outbound consumer never waits for a transaction that stores messages: that locks the session's row.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import BigInteger, Integer, ScalarSelect, Select, bindparam, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col
from uuid_utils.compat import uuid7

from service.domain.identities import whatsapp_message_id
from service.domain.sending import GiveUp, Retry, SendPolicy, taken, wait_for_token
from service.errors import Rejected
from service.persistence.columns import DatabaseClock
from service.persistence.conversations import raise_status, take_receipts
from service.persistence.database import clock, on_sqlite
from service.persistence.records import Records, among, table_of
from service.persistence.tables import (
    AWAKE,
    EXPIRING,
    PENDING,
    LaneRecord,
    LaneRow,
    MessageRecord,
    MessageRow,
    SessionRecord,
    SessionRow,
    now,
)
from service.persistence.unpublished import Part
from whatsapp_qr_contracts.codes import FailureCode, RejectionCode
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus

_PENDING = DeliveryStatus.PENDING
BATCH = 200
_SOON = timedelta(milliseconds=1)
_ANOTHER_NUMBER = "the session was linked to another number while the message waited"
_MAY_HAVE_GONE = "; an earlier attempt, whose outcome is unknown, may have been sent"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that only this process may send until the claim ends."""

    message: MessageRecord
    claim: UUID
    deferrals: int
    """How many times in a row its session could not send at all."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for a claimed message: its WhatsApp id if the gateway accepted it, or the verdict after a failure."""

    claimed: Claimed
    result: str | Retry | GiveUp


async def wake(tx: AsyncSession, session_ids: Collection[str]) -> None:
    """Make lanes due now."""
    these = col(LaneRow.session_id).in_(session_ids)
    await tx.execute(select(col(LaneRow.session_id)).where(these).order_by(col(LaneRow.session_id)).with_for_update())
    await tx.execute(update(LaneRow).where(these).values(wake_at=clock(tx)))


async def make_void(tx: AsyncSession, session: SessionRecord) -> None:
    """Mark all waiting messages of a lane as void, so that they fail; the caller has locked the session."""
    lane = update(LaneRow).where(col(LaneRow.session_id) == session.session_id)
    await tx.execute(lane.values(void_to=session.lane_end, wake_at=clock(tx)))


async def due(tx: AsyncSession, part: Part, excluded: Collection[str] = ()) -> list[str]:
    """Return the due lanes of this process's partitions, the longest waiting first."""
    given = {"partitions": part.partitions, "owned": sorted(part.owned), "excluded": list(excluded), "most": BATCH}
    found = await (await tx.connection()).execute(_due(sqlite=on_sqlite(tx)), given)
    return list(found.scalars())


@cache
def _due(*, sqlite: bool) -> Select[Any]:
    lane = table_of(LaneRow).c
    partition = lane.key_hash % bindparam("partitions", type_=BigInteger)
    ours = among(partition, "owned", sqlite=sqlite), ~among(lane.session_id, "excluded", sqlite=sqlite)
    moment = DatabaseClock() if sqlite else func.statement_timestamp()
    query = select(lane.session_id).where(text(AWAKE), lane.wake_at <= moment, *ours).order_by(lane.wake_at)
    return query.limit(bindparam("most", type_=Integer))


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one transaction of the outbound consumer."""

    changed: list[MessageRecord]
    """Messages whose status has changed."""
    claimed: list[Claimed]
    """Messages to send now."""
    known: Collection[UUID]
    """The ids of those messages of jobs that exist."""
    due: Collection[str]
    """Lanes that jobs have woken and that are not handled yet."""
    next_at: datetime | None
    """When the next lane of these is due."""
    at: datetime
    """The time of the transaction, by the database's clock."""


async def send_round(
    tx: AsyncSession,
    *,
    answers: Sequence[Answer],
    due: Collection[str],
    policy: SendPolicy,
    jobs: Collection[UUID] = (),
    room: int = 0,
) -> Round:
    """Record the answers for claimed messages, fail expired messages, and claim the next message of each lane.

    From the lanes of answers that are not in `due`, nothing is claimed: they become due again.

    Args:
        tx: the transaction.
        answers: the results for claimed messages.
        due: lanes to handle now.
        policy: limits and delays of sending.
        jobs: messages whose lanes become due: now, or at the time for which they already wait.
        room: how many of those lanes may be claimed from now.
    """
    sent = [(answer.claimed.message, answer.result) for answer in answers if isinstance(answer.result, str)]
    if renamed := {message.session_id for message, taken_as in sent if taken_as != message.whatsapp_message_id}:
        # A receipt for an unknown id is stored under this lock too: so neither can miss the other.
        await Records(SessionRecord, SessionRow).lock(tx, renamed, by="session_id")
    answered, lanes_of = {answer.claimed.message.session_id for answer in answers}, await _lanes_of(tx, jobs)
    locked, at, stale = await _locked_lanes(tx, {*answered, *due, *lanes_of.values()})
    lanes = {lane.session_id: lane for lane in locked.all}
    woken = _wake(lanes, set(lanes_of.values()) - answered - set(due), at)
    claimable = {*due, *woken[:room]}
    expired, void = await _expired(tx, stale, lanes, at), await _void(tx, lanes, at)
    messages = Records(MessageRecord, MessageRow)
    ids = {answer.claimed.message.id for answer in answers} | expired | void
    rows = {message.id: message for message in await messages.lock(tx, ids)}
    changed = [row for answer in answers if (row := await _record(tx, answer, lanes, rows, at))]
    changed += [rows[row_id] for row_id in expired if _expire(rows[row_id], lanes, at)]
    changed += [rows[row_id] for row_id in void if _fail_void(rows[row_id], lanes, at)]
    await messages.write(tx)
    some_failed = {rows[row_id].session_id for row_id in expired | void}
    claimed = await _claim(tx, [lanes[name] for name in lanes if name in claimable], at, policy, some_failed)
    for session_id in answered - claimable:
        lanes[session_id].wake_at = at
    await locked.write(tx)
    waiting = [lane.wake_at for lane in lanes.values() if lane.wake_at is not None]
    return Round(changed, claimed, lanes_of.keys(), woken[room:], min(waiting, default=None), at)


async def _lanes_of(tx: AsyncSession, jobs: Collection[UUID]) -> dict[UUID, str]:
    """Return the session of each message that exists."""
    if not jobs:
        return {}
    found = await (await tx.connection()).execute(_session_of(sqlite=on_sqlite(tx)), {"given": list(jobs)})
    return {row.id: row.session_id for row in found}


@cache
def _session_of(*, sqlite: bool) -> Select[Any]:
    message = table_of(MessageRow).c
    return select(message.id, message.session_id).where(among(message.id, "given", sqlite=sqlite))


def _wake(lanes: Mapping[str, LaneRecord], session_ids: Collection[str], at: datetime) -> list[str]:
    """Wake sleeping lanes; return those that are due now.

    A lane that is awake already, because it waits for its pace or for the gateway, is handled when its time comes.
    """
    for session_id in session_ids:
        lanes[session_id].wake_at = lanes[session_id].wake_at or at
    return [name for name in session_ids if (wake_at := lanes[name].wake_at) is not None and wake_at <= at]


async def _locked_lanes(
    tx: AsyncSession, session_ids: Collection[str]
) -> tuple[Records[LaneRecord], datetime, list[str]]:
    """Return the locked lanes of sessions, the transaction's time, and the lanes that contain an expired message."""
    lanes, at, stale = Records(LaneRecord, LaneRow), now(), []
    query = _lanes(sqlite=on_sqlite(tx))
    for row in (await (await tx.connection()).execute(query, {"given": list(session_ids)})).mappings():
        lane, at = lanes.read(row), row["at"]
        stale += [lane.session_id] if row["stale"] else []
    return lanes, at, stale


@cache
def _lanes(*, sqlite: bool) -> Select[Any]:
    lane, message = table_of(LaneRow).c, table_of(MessageRow).c
    # The clock itself differs for each row, so that no index could be used.
    moment = DatabaseClock() if sqlite else func.statement_timestamp()
    too_old = (text(EXPIRING), message.expires_at <= moment)
    stale = exists().where(message.session_id == lane.session_id, *too_old)
    query = select(*lane, DatabaseClock().label("at"), stale.label("stale"))
    return query.where(among(lane.session_id, "given", sqlite=sqlite)).order_by(lane.session_id).with_for_update()


async def _expired(
    tx: AsyncSession, stale: Collection[str], lanes: Mapping[str, LaneRecord], at: datetime
) -> set[UUID]:
    """Return expired messages at any place of their lanes, except those that may be being sent."""
    if not stale:
        return set()
    query = select(col(MessageRow.id)).where(
        col(MessageRow.session_id).in_(stale), text(EXPIRING), col(MessageRow.expires_at) <= at
    )
    return set(await tx.scalars(query.limit(BATCH))) - _claimed_messages(lanes, at)


async def _void(tx: AsyncSession, lanes: Mapping[str, LaneRecord], at: datetime) -> set[UUID]:
    """Return messages that a change of number made void, except those that may be being sent."""
    some = [name for name, lane in lanes.items() if lane.void_to]
    if not some:
        return set()
    query = (
        select(col(MessageRow.id))
        .join(LaneRow, col(LaneRow.session_id) == col(MessageRow.session_id))
        .where(col(MessageRow.session_id).in_(some), text(PENDING), col(MessageRow.lane_number) <= col(LaneRow.void_to))
    )
    return set(await tx.scalars(query.limit(BATCH))) - _claimed_messages(lanes, at)


def _claimed_messages(lanes: Mapping[str, LaneRecord], at: datetime) -> set[UUID | None]:
    return {lane.claimed_message for lane in lanes.values() if _is_claimed(lane, at)}


def _is_claimed(lane: LaneRecord, at: datetime) -> bool:
    return lane.claimed_until is not None and lane.claimed_until > at


async def _record(
    tx: AsyncSession,
    answer: Answer,
    lanes: Mapping[str, LaneRecord],
    messages: Mapping[UUID, MessageRecord],
    at: datetime,
) -> MessageRecord | None:
    """Record an answer; return the message if its status has changed."""
    claimed, message = answer.claimed, messages[answer.claimed.message.id]
    lane = lanes[message.session_id]
    held = lane.claim == claimed.claim
    if held:
        lane.claim = lane.claimed_message = lane.claimed_until = lane.not_before = None
        lane.deferrals = 0
    if isinstance(answer.result, str):
        # The message was sent regardless of the claim, so the claim is not checked.
        return await _record_sent(tx, claimed.message, message, answer.result)
    is_anew = message.whatsapp_message_id != claimed.message.whatsapp_message_id
    if not held or is_anew or message.delivery_status is not _PENDING:
        return None  # the claim was lost meanwhile, and the newer state counts
    if isinstance(answer.result, GiveUp):
        message.attempts += answer.result.code == FailureCode.OUTCOME_UNKNOWN
        code, detail = answer.result.code, answer.result.detail
        return message if raise_status(message, DeliveryStatus.FAILED, now(), code=code, detail=detail) else None
    message.attempts += answer.result.counts
    lane.deferrals = 0 if answer.result.counts else claimed.deferrals + 1
    lane.not_before = at + timedelta(seconds=answer.result.delay)
    return None


async def _record_sent(
    tx: AsyncSession, claimed: MessageRecord, message: MessageRecord, whatsapp_id: str
) -> MessageRecord | None:
    if message.whatsapp_message_id not in {claimed.whatsapp_message_id, whatsapp_id}:
        return None  # it has another WhatsApp id meanwhile: it is to be sent again
    before = message.version
    if message.error_code != FailureCode.FAILED_BY_WHATSAPP:  # the receipt is newer than the answer
        raise_status(message, DeliveryStatus.SENT, now())
    if whatsapp_id != message.whatsapp_message_id:
        message.whatsapp_message_id = whatsapp_id  # the gateway assigns its own ids: its receipts will have this one
        await take_receipts(tx, message)
    return message if message.version > before else None


def _expire(message: MessageRecord, lanes: Mapping[str, LaneRecord], at: datetime) -> bool:
    # Checked again under its lock: WhatsApp may have failed it, and its sender may have retried it, meanwhile.
    if message.expires_at is None or message.expires_at > at:
        return False
    return fail_waiting(message, lanes.get(message.session_id), at, FailureCode.EXPIRED, "it waited too long")


def _fail_void(message: MessageRecord, lanes: Mapping[str, LaneRecord], at: datetime) -> bool:
    lane = lanes[message.session_id]
    if not _is_void(message, lane):  # retried meanwhile: it has a later place
        return False
    return fail_waiting(message, lane, at, FailureCode.NUMBER_CHANGED, _ANOTHER_NUMBER)


def _is_void(message: MessageRecord, lane: LaneRecord) -> bool:
    return message.lane_number is not None and message.lane_number <= lane.void_to


async def _claim(
    tx: AsyncSession, lanes: Collection[LaneRecord], at: datetime, policy: SendPolicy, some_failed: Collection[str]
) -> list[Claimed]:
    """Claim the first message of each lane that may send now; set for the others when they are due.

    `some_failed` are lanes in which messages have just failed: more of them may have to, even if none can be sent.
    """
    first = await _first_of_connected(tx, [lane.session_id for lane in lanes])
    claimed = []
    for lane in lanes:
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
    """Return the id of the first waiting message in the lane of a session of the enclosing statement.

    It reads lane by lane, by their index: a join may read all waiting messages if PostgreSQL's statistics are outdated.
    """
    # The status is a literal, not a bound parameter: otherwise the partial index is not used.
    waiting = aliased(MessageRow, name="waiting")
    query = select(col(waiting.id)).where(
        col(waiting.session_id) == col(SessionRow.session_id), text(f"waiting.{PENDING}")
    )
    return query.order_by(col(waiting.lane_number)).limit(1).correlate(SessionRow).scalar_subquery()


async def _first_of_connected(tx: AsyncSession, session_ids: Collection[str]) -> dict[str, MessageRecord]:
    if not session_ids:
        return {}
    found = await (await tx.connection()).execute(_first(sqlite=on_sqlite(tx)), {"given": list(session_ids)})
    return {row["session_id"]: MessageRecord(**row) for row in found.mappings()}


@cache
def _first(*, sqlite: bool) -> Select[Any]:
    session, message = table_of(SessionRow).c, table_of(MessageRow)
    is_connected = session.status == SessionStatus.CONNECTED
    first = select(first_pending()).where(among(session.session_id, "given", sqlite=sqlite), is_connected)
    return select(message).where(message.c.id.in_(first))


def _since(lane: LaneRecord, at: datetime) -> float:
    return 0.0 if lane.tokens_at is None else max(0.0, (at - lane.tokens_at).total_seconds())


def _ready_at(message: MessageRecord, lane: LaneRecord, at: datetime, policy: SendPolicy) -> datetime:
    if _is_claimed(lane, at) and lane.claimed_until is not None:
        return lane.claimed_until
    if _is_void(message, lane) or (message.expires_at is not None and message.expires_at <= at):
        return at + _SOON  # one of very many, it fails in the next round
    paced = at + timedelta(seconds=wait_for_token(lane.tokens, _since(lane, at), policy))
    return max(paced, lane.not_before or at)


def fail_waiting(message: MessageRecord, lane: LaneRecord | None, at: datetime, code: str, detail: str) -> bool:
    """Fail a waiting message; return whether that changed it."""
    begun = lane is not None and lane.claimed_message == message.id  # its process was killed during the send
    detail += _MAY_HAVE_GONE if message.attempts or begun else ""
    return raise_status(message, DeliveryStatus.FAILED, at, code=code, detail=detail)


def cancel(message: MessageRecord, lane: LaneRecord | None, at: datetime) -> None:
    """Fail a waiting message; one that was cancelled before stays cancelled. The caller has locked it and its lane.

    Raises:
        Rejected: it is not waiting any more, or it is being sent at this moment.
    """
    if message.error_code == FailureCode.CANCELLED:
        return
    if message.delivery_status is not _PENDING:
        detail = f"the message is {message.delivery_status}: only a PENDING message can be cancelled"
        raise Rejected(detail, code=RejectionCode.NOT_PENDING)
    if lane is not None and lane.claimed_message == message.id and _is_claimed(lane, at):
        detail = "the message is being sent at this moment: try again in some seconds"
        raise Rejected(detail, code=RejectionCode.BEING_SENT)
    fail_waiting(message, lane, at, FailureCode.CANCELLED, "it was cancelled")


def enqueue_again(session: SessionRecord, message: MessageRecord, *, expires_at: datetime, retry: str) -> None:
    """Put a failed message at the end of its lane; `retry` is the id of the command that requests it.

    The caller has locked it and its session.

    Raises:
        Rejected: it has not failed.
    """
    if message.delivery_status is not DeliveryStatus.FAILED:
        detail = f"the message is {message.delivery_status}: only a FAILED message can be retried"
        raise Rejected(detail, code=RejectionCode.NOT_FAILED)
    if message.error_code == FailureCode.FAILED_BY_WHATSAPP:
        # It did not arrive, so a new id cannot duplicate it. Under the old id a gateway may answer without sending, and
        # the old receipt, repeated, would fail it again.
        message.whatsapp_message_id = whatsapp_message_id(uuid5(message.id, retry))
    session.lane_end += 1
    message.lane_number = session.lane_end
    message.delivery_status, message.handed_over = _PENDING, False
    message.version += 1
    message.told_version = message.version  # the command's outcome reports that it waits again
    message.attempts = 0
    message.error_code = message.error_message = None
    message.failed_at = message.sent_at = None
    message.expires_at = expires_at

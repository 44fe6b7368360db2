"""A lane is sent in order, by one process at a time, and no stale claim overwrites what is newer."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.domain.sending import GiveUp, Retry, SendPolicy
from service.persistence import conversations, lanes
from service.persistence.database import Database
from service.persistence.lanes import Claimed, Expired, Idle, Wait
from service.persistence.tables import MessageRow, SessionRow
from tests.component.rows import (
    MAY_HAVE_GONE_OUT,
    a_session,
    all_of,
    change,
    claim,
    claimed,
    enqueue,
    receive,
    reread,
    sent,
)
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus

D = DeliveryStatus
PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


async def failure(database: Database, message: MessageRow, verdict: Retry | GiveUp) -> MessageRow | None:
    return await database.transact(lambda tx: lanes.record_failure(database, tx, claimed=message, verdict=verdict))


async def test_a_lane_is_claimed_in_order(database: Database) -> None:
    """One after another, by lane number, and nothing once it is empty."""
    session = await a_session(database)
    messages = [await enqueue(database, session, message=str(n)) for n in range(3)]
    for expected in messages:
        message = await claimed(database, session)
        assert message.id == expected.id
        await sent(database, message)
    assert await claim(database, session) == Idle()


async def test_racing_claims_have_one_winner(database: Database, other_process: Database) -> None:
    """Eight processes want the first message: one has it, the others wait until its claim ends; none gets the next."""
    session = await a_session(database)
    first = await enqueue(database, session)
    await enqueue(database, session)
    steps = await asyncio.gather(*(claim((database, other_process)[n % 2], session) for n in range(8)))
    [winner] = [step for step in steps if isinstance(step, Claimed)]
    assert winner.message.id == first.id
    waits = [step.seconds for step in steps if isinstance(step, Wait)]
    assert len(waits) == 7
    assert all(0 < seconds <= SendPolicy().claim_seconds for seconds in waits)


async def test_a_claim_that_ended_can_be_taken_over(database: Database) -> None:
    """A process that died with a claim holds its lane up until the claim ends, no longer."""
    session = await a_session(database)
    await enqueue(database, session)
    lost = await claimed(database, session)
    await change(database, lost, claimed_until=PAST)
    taken = await claimed(database, session)
    assert taken.id == lost.id
    assert taken.claim != lost.claim


@pytest.mark.parametrize("verdict", [Retry(1.0, counts=True), Retry(0.2, counts=False), GiveUp("outcome_unknown", "?")])
async def test_a_stale_claim_records_no_failure(database: Database, verdict: Retry | GiveUp) -> None:
    """Whoever lost his claim may not fail or delay the message that another one sends now."""
    session = await a_session(database)
    await enqueue(database, session)
    stale = await claimed(database, session)
    await change(database, stale, claimed_until=PAST)
    present = await claimed(database, session)
    assert await failure(database, stale, verdict) is None
    row = await reread(database, present)
    assert (row.claim, row.claimed_until, row.delivery_status) == (present.claim, present.claimed_until, D.PENDING)
    assert (row.attempts, row.not_before) == (0, None)


async def test_a_success_is_recorded_whoever_has_the_claim(database: Database) -> None:
    """The gateway took it: that is true also when the claim was lost, and after the message was given up."""
    session = await a_session(database)
    await enqueue(database, session)
    stale = await claimed(database, session)
    await change(database, stale, claimed_until=PAST)
    present = await claimed(database, session)
    assert (await sent(database, stale)).delivery_status is D.SENT
    assert await failure(database, present, GiveUp("refused", "no")) is None
    assert (await reread(database, present)).delivery_status is D.SENT


async def test_a_failed_attempt_is_counted_and_delays_the_lane(database: Database) -> None:
    """The next message does not overtake the one that is tried again."""
    session = await a_session(database)
    first = await enqueue(database, session)
    await enqueue(database, session)
    recorded = await failure(database, await claimed(database, session), Retry(3600.0, counts=True))
    assert recorded is not None
    assert (recorded.attempts, recorded.claimed_until) == (1, None)
    step = await claim(database, session)
    assert isinstance(step, Wait)
    assert 3500 < step.seconds <= 3600
    await change(database, first, not_before=PAST)
    message = await claimed(database, session)
    uncounted = await failure(database, message, Retry(0.2, counts=False))
    assert uncounted is not None
    assert (message.id, uncounted.attempts) == (first.id, 1)


async def test_a_message_that_is_given_up_frees_the_lane(database: Database) -> None:
    """It has failed with code and text, its event is still to be announced, and the next one's turn has come."""
    session = await a_session(database)
    await enqueue(database, session)
    second = await enqueue(database, session)
    failed = await failure(database, await claimed(database, session), GiveUp("outcome_unknown", "no answer"))
    assert failed is not None
    assert (failed.delivery_status, failed.announced, failed.attempts) == (D.FAILED, False, 1)
    assert (failed.error_code, failed.error_message) == ("outcome_unknown", "no answer")
    assert failed.failed_at is not None
    assert (await claimed(database, session)).id == second.id


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waited_too_long_expires(database: Database, status: SessionStatus) -> None:
    """Also while the session is not connected: its caller hears of it in time."""
    session = await a_session(database, status=status)
    message = await enqueue(database, session, expiry=timedelta(seconds=-1))
    step = await claim(database, session)
    assert isinstance(step, Expired)
    assert (step.message.id, step.message.error_code) == (message.id, "expired")
    assert (await reread(database, message)).delivery_status is D.FAILED


@pytest.mark.parametrize("trace", [{"attempts": 1}, {"claimed_until": PAST}])
async def test_what_may_have_gone_out_says_so(database: Database, trace: dict[str, Any]) -> None:
    """After an attempt whose outcome is unknown, or a claim that a killed process left, failing is not all of it."""
    session = await a_session(database)
    expired, waits = [await enqueue(database, session) for _ in range(2)]
    await change(database, expired, expires_at=PAST, **trace)
    assert isinstance(await claim(database, session), Expired)
    assert (await reread(database, expired)).error_message == f"it waited too long{MAY_HAVE_GONE_OUT}"
    await change(database, waits, **trace)
    await database.transact(
        lambda tx: lanes.fail_pending(tx, session.session_id, code="number_changed", detail="another number")
    )
    assert (await reread(database, waits)).error_message == f"another number{MAY_HAVE_GONE_OUT}"


async def test_what_is_being_sent_does_not_expire(database: Database) -> None:
    """Its outcome decides, not the clock."""
    session = await a_session(database)
    await enqueue(database, session)
    message = await claimed(database, session)
    await change(database, message, expires_at=PAST)
    assert isinstance(await claim(database, session), Wait)
    assert (await sent(database, message)).delivery_status is D.SENT


@pytest.mark.parametrize("status", [SessionStatus.DISCONNECTED, SessionStatus.CONNECTING, SessionStatus.QR_READY])
async def test_a_session_that_is_not_connected_parks_its_messages(database: Database, status: SessionStatus) -> None:
    """Nothing is claimed and nothing fails; a lane that nobody knows is empty."""
    session = await a_session(database, status=status)
    message = await enqueue(database, session)
    assert await claim(database, session) == Idle()
    assert (await reread(database, message)).delivery_status is D.PENDING
    assert (
        await claim(database, SessionRow(session_id="unknown", chatbot_id=session.chatbot_id, status=status)) == Idle()
    )


async def test_a_message_that_a_receipt_raised_is_not_claimed(database: Database, other_process: Database) -> None:
    """A receipt and a claim race for the first message: whichever comes first, a delivered one is never sent again."""
    session = await a_session(database)
    for n in range(6):
        message = await enqueue(database, session, message=str(n))

        async def deliver(message: MessageRow = message) -> Any:
            return await other_process.transact(
                lambda tx: conversations.apply_receipt(
                    tx,
                    session_id=session.session_id,
                    whatsapp_id=message.whatsapp_message_id,
                    status=D.DELIVERED,
                    at=PAST,
                    error=None,
                )
            )

        step, _ = await asyncio.gather(claim(database, session), deliver())
        assert isinstance(step, Claimed | Idle)
        assert (await reread(database, message)).delivery_status is D.DELIVERED
        assert await claim(database, session) == Idle()


async def test_all_that_waits_can_be_failed(database: Database) -> None:
    """A re-pairing with another number fails what waits, of that session alone, and nothing that was sent."""
    session, other = await a_session(database), await a_session(database)
    done = await sent(database, await enqueue(database, session))
    waiting = [await enqueue(database, session) for _ in range(3)]
    elsewhere = await enqueue(database, other)
    await database.transact(
        lambda tx: lanes.fail_pending(tx, session.session_id, code="number_changed", detail="another number")
    )
    for message in waiting:
        failed = await reread(database, message)
        assert (failed.delivery_status, failed.error_code) == (D.FAILED, "number_changed")
        assert failed.error_message == "another number"
    assert (await reread(database, done)).delivery_status is D.SENT
    assert (await reread(database, elsewhere)).delivery_status is D.PENDING


async def test_what_is_not_announced_is_found_in_order(database: Database) -> None:
    """After a crash: the statuses of sent messages, not customers' messages and not what still waits."""
    session = await a_session(database)
    messages = [await enqueue(database, session) for _ in range(3)]
    await receive(database, session)
    for message in messages[:2]:
        await sent(database, message)
    found = await database.read(lambda tx: lanes.unannounced(tx, session.session_id))
    assert [message.id for message in found] == [message.id for message in messages[:2]]


async def test_a_lane_can_be_postponed(database: Database) -> None:
    """The time to look again is written down by the database's clock, and taken back."""
    session = await a_session(database)
    for seconds in (3600.0, None):
        await database.transact(
            lambda tx, seconds=seconds: lanes.postpone(database, tx, session_id=session.session_id, seconds=seconds)
        )
        [row] = await all_of(database, SessionRow)
        assert (row.drain_at is None) == (seconds is None)
        if row.drain_at:
            assert abs(row.drain_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)

"""A lane is sent in order, by one process at a time, and no stale claim overwrites what is newer."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zlib import crc32

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.domain.sending import GiveUp, Retry, SendPolicy
from service.persistence import lanes, sweeping
from service.persistence.database import Database
from service.persistence.lanes import Answer, Claimed, Round
from service.persistence.tables import MessageRow, SessionRow
from service.persistence.unpublished import Part
from tests.component.conversing import a_receipt
from tests.component.racing import Beside, after, change_lane, lane_of
from tests.component.rows import (
    MAY_HAVE_GONE_OUT,
    POLICY,
    Outputs,
    a_session,
    change,
    claimed,
    enqueue,
    handle,
    reread,
    send_round,
    sent,
)
from whatsapp_qr_contracts.commands import CancelMessage, RetryMessage
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus

D = DeliveryStatus
PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
EVERYTHING = Part(1, {0: 0.0})
REFUSED = GiveUp("refused", "no")
ANOTHER_NUMBER = "the session was linked to another number while the message waited"


async def due(database: Database, part: Part = EVERYTHING) -> list[str]:
    return await database.read(lambda tx: lanes.due(tx, part))


async def make_void(database: Database, session: SessionRow) -> None:
    """Do what a change of number does to a lane."""

    async def work(tx: AsyncSession) -> None:
        await lanes.make_void(tx, await tx.get_one(SessionRow, session.id, with_for_update=True))

    await database.transact(work)


async def answered(
    database: Database, session: SessionRow, one: Claimed, result: str | Retry | GiveUp, policy: SendPolicy = POLICY
) -> Round:
    """Record the gateway's answer, and claim what may go out next."""
    return await send_round(database, session, answers=[Answer(one, result)], policy=policy)


async def cancel(database: Database, message: MessageRow) -> str:
    """Cancel a message; return the event that answers."""
    told = Outputs()
    command = CancelMessage(chatbot_id=message.chatbot_id, message_id=message.id)
    await handle(database, command, message_id=f"cancel {message.id}", announcer=told)
    return told.names[-1]


# Claims


async def test_a_lane_is_claimed_in_order(database: Database) -> None:
    """One after another, by lane number; once it is empty nothing is claimed, and the lane sleeps."""
    session = await a_session(database)
    messages = [await enqueue(database, session, message=str(n)) for n in range(3)]
    done, order = await send_round(database, session), []
    while done.claimed:
        [one] = done.claimed
        order.append(one.message.id)
        done = await answered(database, session, one, one.message.whatsapp_message_id)
    assert order == [message.id for message in messages]
    assert (await lane_of(database, session)).wake_at is None


async def test_racing_rounds_have_one_winner(database: Database, other_process: Database) -> None:
    """Eight processes want the first message: one has it, the others are told when its claim ends; none gets more."""
    session = await a_session(database)
    first, _ = await enqueue(database, session), await enqueue(database, session)
    rounds = await asyncio.gather(*(send_round((database, other_process)[n % 2], session) for n in range(8)))
    [winner] = [one for done in rounds for one in done.claimed]
    assert winner.message.id == first.id
    assert {done.next_at for done in rounds} == {(await lane_of(database, session)).claimed_until}


async def test_a_claim_that_ended_can_be_taken_over(database: Database) -> None:
    """A process that died with a claim holds its lane up until the claim ends, no longer: then its row is due."""
    session = await a_session(database)
    await enqueue(database, session)
    lost = await claimed(database, session)
    lane = await lane_of(database, session)
    assert lane.wake_at == lane.claimed_until
    assert (await send_round(database, session)).claimed == []
    assert await due(database) == []
    await change_lane(database, session, claimed_until=PAST, wake_at=PAST)
    assert await due(database) == [session.session_id]
    taken = await claimed(database, session)
    assert (taken.message.id, taken.claim == lost.claim) == (lost.message.id, False)


@pytest.mark.parametrize("status", [SessionStatus.DISCONNECTED, SessionStatus.CONNECTING, SessionStatus.QR_READY])
async def test_a_session_that_is_not_connected_parks_its_messages(database: Database, status: SessionStatus) -> None:
    """Nothing is claimed, nothing fails, and the lane sleeps; one that nobody knows is empty."""
    session = await a_session(database, status=status)
    message = await enqueue(database, session)
    nobody = SessionRow(session_id="unknown", chatbot_id=session.chatbot_id, status=status)
    assert (await send_round(database, session, nobody)).claimed == []
    assert (await reread(database, message)).delivery_status is D.PENDING
    assert (await lane_of(database, session)).wake_at is None


async def test_messages_have_a_pace(database: Database, other_process: Database) -> None:
    """A burst goes at once; then the row says when the next one may go, and no process claims anything before."""
    policy, session = SendPolicy(rate=0.01, burst=2, jitter=0.0), await a_session(database)
    for _ in range(3):
        await enqueue(database, session)
    done = await send_round(database, session, policy=policy)
    for _ in range(2):
        [one] = done.claimed
        done = await answered(database, session, one, one.message.whatsapp_message_id, policy)
    assert (done.claimed, await due(database)) == ([], [])
    assert done.next_at is not None
    assert done.next_at == (await lane_of(database, session)).wake_at
    assert 10 < (done.next_at - done.at).total_seconds() <= 100
    elsewhere = await send_round(other_process, session, policy=policy)
    assert elsewhere.claimed == []
    assert elsewhere.next_at is not None
    assert abs((elsewhere.next_at - done.next_at).total_seconds()) < 1


async def test_an_answer_leaves_its_lane_awake(database: Database) -> None:
    """It is recorded, nothing is claimed after it, and whoever may send next finds the lane at once."""
    session = await a_session(database)
    messages = [await enqueue(database, session) for _ in range(2)]
    done = await send_round(database, answers=[Answer(await claimed(database, session), "W1")])
    assert (done.claimed, done.next_at) == ([], done.at)
    assert [(await reread(database, row)).delivery_status for row in messages] == [D.SENT, D.PENDING]
    assert await due(database) == [session.session_id]


# Answers


@pytest.mark.parametrize("verdict", [Retry(1.0, counts=True), Retry(0.2, counts=False), GiveUp("outcome_unknown", "?")])
async def test_a_stale_claim_records_no_failure(database: Database, verdict: Retry | GiveUp) -> None:
    """Whoever lost his claim may not fail or delay the message that another one sends now, nor free its lane."""
    session = await a_session(database)
    message = await enqueue(database, session)
    stale = await claimed(database, session)
    await change_lane(database, session, claimed_until=PAST)
    present = await claimed(database, session)
    done = await answered(database, session, stale, verdict)
    assert (done.claimed, done.changed) == ([], [])
    row, lane = await reread(database, message), await lane_of(database, session)
    assert (row.delivery_status, row.attempts) == (D.PENDING, 0)
    assert (lane.claim, lane.claimed_message, lane.not_before) == (present.claim, message.id, None)


async def test_a_success_is_recorded_whoever_has_the_claim(database: Database) -> None:
    """The gateway took it: that is true also when the claim was lost, and the present claim's failure is not."""
    session = await a_session(database)
    message = await enqueue(database, session)
    stale = await claimed(database, session)
    await change_lane(database, session, claimed_until=PAST)
    present = await claimed(database, session)
    done = await answered(database, session, stale, message.whatsapp_message_id)
    assert [row.delivery_status for row in done.changed] == [D.SENT]
    assert (await lane_of(database, session)).claim == present.claim
    assert (await answered(database, session, present, REFUSED)).changed == []
    assert (await reread(database, message)).delivery_status is D.SENT


@pytest.mark.parametrize("verdict", [Retry(9.0, counts=True), GiveUp("outcome_unknown", "?")])
async def test_a_receipt_is_newer_than_a_failure(database: Database, verdict: Retry | GiveUp) -> None:
    """WhatsApp has delivered the message while the gateway did not answer: the failed call changes nothing."""
    session = await a_session(database)
    message = await enqueue(database, session)
    one = await claimed(database, session)
    await handle(database, a_receipt(session, message.whatsapp_message_id))
    assert (await answered(database, session, one, verdict)).changed == []
    row = await reread(database, message)
    assert (row.delivery_status, row.attempts, (await lane_of(database, session)).not_before) == (
        D.DELIVERED,
        0,
        None,
    )


@pytest.mark.parametrize("result", ["old id", Retry(9.0, counts=True), REFUSED])
async def test_an_answer_under_an_old_id_is_none(database: Database, result: str | Retry | GiveUp) -> None:
    """WhatsApp failed the message and it was tried again while the call was under way: it goes out anew."""
    session = await a_session(database)
    message = await enqueue(database, session)
    one = await claimed(database, session)
    await handle(database, a_receipt(session, message.whatsapp_message_id, "failed", error="blocked"))
    await handle(database, RetryMessage(chatbot_id=session.chatbot_id, message_id=message.id), message_id="retry")
    anew = await reread(database, message)
    assert anew.whatsapp_message_id != message.whatsapp_message_id
    done = await answered(database, session, one, message.whatsapp_message_id if result == "old id" else result)
    assert done.changed == []
    assert [(again.message.id, again.message.whatsapp_message_id) for again in done.claimed] == [
        (message.id, anew.whatsapp_message_id)
    ]
    row = await reread(database, message)
    assert (row.delivery_status, row.attempts) == (D.PENDING, 0)


async def test_a_failed_attempt_is_counted_and_delays_the_lane(database: Database) -> None:
    """The next message does not overtake the one that is tried again; deferrals in a row are counted beside it."""
    session = await a_session(database)
    first = await enqueue(database, session)
    await enqueue(database, session)
    done = await answered(database, session, await claimed(database, session), Retry(3600.0, counts=True))
    assert (done.claimed, done.changed) == ([], [])
    assert done.next_at is not None
    assert 3500 < (done.next_at - done.at).total_seconds() <= 3600
    for deferrals in (1, 2):
        await change_lane(database, session, not_before=PAST)
        one = await claimed(database, session)
        assert one.message.id == first.id
        await answered(database, session, one, Retry(3600.0, counts=False))
        assert (await lane_of(database, session)).deferrals == deferrals
    assert (await reread(database, first)).attempts == 1
    await change_lane(database, session, not_before=PAST)
    await answered(database, session, await claimed(database, session), first.whatsapp_message_id)
    assert (await lane_of(database, session)).deferrals == 0


async def test_a_message_that_is_given_up_frees_the_lane(database: Database) -> None:
    """It has failed with code and text, its event is still to be told, and the next one is claimed with the answer."""
    session = await a_session(database)
    await enqueue(database, session)
    second = await enqueue(database, session)
    done = await answered(database, session, await claimed(database, session), GiveUp("outcome_unknown", "no answer"))
    [failed] = done.changed
    assert (failed.delivery_status, failed.attempts, failed.version - failed.told_version) == (D.FAILED, 1, 1)
    assert (failed.error_code, failed.error_message) == ("outcome_unknown", "no answer")
    assert failed.failed_at is not None
    assert [one.message.id for one in done.claimed] == [second.id]


# What waits too long, and what others do to messages that wait


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waited_too_long_expires_wherever_it_stands(database: Database, status: SessionStatus) -> None:
    """Behind one that waits too, and while the session is not connected: its caller hears of it in time."""
    session = await a_session(database, status=status)
    first, expired = await enqueue(database, session), await enqueue(database, session, expiry=timedelta(seconds=-1))
    done = await send_round(database, session)
    assert [(row.id, row.error_code, row.error_message) for row in done.changed] == [
        (expired.id, "expired", "it waited too long")
    ]
    assert len(done.claimed) == (status is SessionStatus.CONNECTED)
    assert [(await reread(database, row)).delivery_status for row in (first, expired)] == [D.PENDING, D.FAILED]


async def test_more_than_a_batch_of_expired_messages_is_never_sent(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round fails some of them; the first of the others is not claimed, and the lane is looked at again at once."""
    monkeypatch.setattr(lanes, "BATCH", 1)
    session = await a_session(database)
    for _ in range(3):
        await enqueue(database, session, expiry=timedelta(seconds=-1))
    last = await enqueue(database, session)
    for _ in range(2):
        done = await send_round(database, session)
        assert (len(done.changed), done.claimed) == (1, [])
        assert done.next_at is not None
        assert done.next_at - done.at < timedelta(seconds=1)
    assert [one.message.id for one in (await send_round(database, session)).claimed] == [last.id]


@pytest.mark.parametrize("trace", ["attempt", "claim"])
async def test_what_may_have_gone_out_says_so(database: Database, trace: str) -> None:
    """After an attempt whose outcome is unknown, or a claim that a killed process left, failing is not all of it."""
    session = await a_session(database)
    expired, waits = [await enqueue(database, session) for _ in range(2)]

    async def leave_trace(message: MessageRow) -> None:
        if trace == "attempt":
            await change(database, message, attempts=1)
        else:
            await change_lane(database, session, claimed_message=message.id, claimed_until=PAST)

    await change(database, expired, expires_at=PAST)
    await leave_trace(expired)
    await send_round(database, session)
    assert (await reread(database, expired)).error_message == f"it waited too long{MAY_HAVE_GONE_OUT}"
    await change_lane(database, session, claimed_message=None, claimed_until=None)
    await leave_trace(waits)
    await make_void(database, session)
    await send_round(database, session)
    assert (await reread(database, waits)).error_message == f"{ANOTHER_NUMBER}{MAY_HAVE_GONE_OUT}"


async def test_what_is_being_sent_neither_expires_nor_is_cancelled(database: Database) -> None:
    """Its outcome decides, not the clock and not its sender; once the claim has ended both are possible."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await claimed(database, session)
    await change(database, message, expires_at=PAST)
    assert (await send_round(database, session)).changed == []
    assert await cancel(database, message) == "command.rejected"
    await change_lane(database, session, claimed_until=PAST)
    [expired] = (await send_round(database, session)).changed
    assert (expired.id, expired.error_message) == (message.id, f"it waited too long{MAY_HAVE_GONE_OUT}")


async def test_what_waits_for_another_number_fails(database: Database) -> None:
    """All that waited when the number changed, of that session alone; nothing that was sent or comes later."""
    session, other = await a_session(database), await a_session(database)
    await enqueue(database, session)
    done = await sent(database, session)
    waiting = [await enqueue(database, session) for _ in range(3)]
    elsewhere = await enqueue(database, other)
    await make_void(database, session)
    later = await enqueue(database, session)
    done_now = await send_round(database, session, other)
    assert {row.id for row in done_now.changed} == {row.id for row in waiting}
    assert {one.message.id for one in done_now.claimed} == {later.id, elsewhere.id}
    for message in waiting:
        failed = await reread(database, message)
        assert (failed.delivery_status, failed.error_code) == (D.FAILED, "number_changed")
        assert failed.error_message == ANOTHER_NUMBER
    assert (await reread(database, done)).delivery_status is D.SENT


async def test_very_many_void_messages_fail_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a round fails a batch of them, sends none, and is followed by the next at once."""
    monkeypatch.setattr(lanes, "BATCH", 2)
    session = await a_session(database)
    void = [await enqueue(database, session) for _ in range(5)]
    await make_void(database, session)
    last = await enqueue(database, session)
    failed: list[MessageRow] = []
    for _ in range(3):
        assert await due(database) == [session.session_id]
        found = await send_round(database, session)
        failed += found.changed
        assert found.next_at is not None
        assert (found.next_at - found.at < timedelta(seconds=1)) is (len(failed) < len(void))
        assert len(found.changed) <= 2
        await asyncio.sleep(0.002)  # so long a lane waits between two rounds
    assert {row.id for row in failed} == {row.id for row in void}
    assert [one.message.id for one in found.claimed] == [last.id]


@pytest.mark.parametrize("why", ["void", "expired"])
async def test_what_cannot_be_sent_fails_although_its_session_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Round after round, until nothing of it waits; then the lane sleeps."""
    monkeypatch.setattr(lanes, "BATCH", 2)
    session = await a_session(database, status=SessionStatus.DISCONNECTED)
    expiry = timedelta(seconds=-1) if why == "expired" else timedelta(hours=1)
    messages = [await enqueue(database, session, expiry=expiry) for _ in range(5)]
    if why == "void":
        await make_void(database, session)
    failed: list[MessageRow] = []
    while await due(database):
        failed += (await send_round(database, session)).changed
        await asyncio.sleep(0.002)
    assert {row.id for row in failed} == {row.id for row in messages}
    assert (await lane_of(database, session)).wake_at is None


async def test_a_void_message_that_may_be_under_way_fails_with_its_claim(database: Database) -> None:
    """The gateway's answer counts where there is one; without any it fails once the claim has ended."""
    session, answering = await a_session(database), await a_session(database)
    silent, sent_anyway = await enqueue(database, session), await enqueue(database, answering)
    await claimed(database, session)
    one = await claimed(database, answering)
    await make_void(database, session)
    await make_void(database, answering)
    assert (await send_round(database, session)).changed == []
    assert [row.id for row in (await answered(database, answering, one, "W1")).changed] == [sent_anyway.id]
    assert (await reread(database, sent_anyway)).delivery_status is D.SENT
    await change_lane(database, session, claimed_until=PAST)
    [failed] = (await send_round(database, session)).changed
    assert (failed.id, failed.error_message) == (silent.id, f"{ANOTHER_NUMBER}{MAY_HAVE_GONE_OUT}")


async def test_a_message_that_is_tried_again_is_void_no_more(database: Database) -> None:
    """It stands at the end of the lane then, and goes out from the number that is linked now."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await make_void(database, session)
    await send_round(database, session)
    await handle(database, RetryMessage(chatbot_id=session.chatbot_id, message_id=message.id), message_id="retry")
    assert (await claimed(database, session)).message.id == message.id


@pytest.mark.parametrize("dead", ["expired", "void"])
async def test_what_a_killed_process_had_claimed_is_waited_for(database: Database, dead: str) -> None:
    """A lane whose first message cannot go out any more is not looked at again and again while its claim lives."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await claimed(database, session)
    await (change(database, message, expires_at=PAST) if dead == "expired" else make_void(database, session))
    found = await send_round(database, session)
    assert found.next_at is not None
    assert found.next_at - found.at > timedelta(seconds=1)


# Waking


async def test_a_lane_that_is_woken_is_found_by_its_owner(
    database: Database, other_process: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its row: by the process that owns its partition alone, the longest waiting first, a page at a time."""
    sessions = [await a_session(database) for _ in range(4)]
    await other_process.transact(lambda tx: lanes.wake(tx, [session.session_id for session in sessions]))
    for at, session in enumerate(sessions):
        assert (await lane_of(database, session)).key_hash == crc32(str(session.chatbot_id).encode())
        await change_lane(database, session, wake_at=PAST - timedelta(days=at))
    expected = [session.session_id for session in reversed(sessions)]
    assert await due(database) == expected
    for number in range(3):
        mine = {one.session_id for one in sessions if crc32(str(one.chatbot_id).encode()) % 3 == number}
        assert await due(database, Part(3, {number: 0.0})) == [one for one in expected if one in mine]
    assert await database.read(lambda tx: lanes.due(tx, EVERYTHING, expected[:3])) == expected[3:]
    monkeypatch.setattr(lanes, "BATCH", 2)
    assert await due(database) == expected[:2]
    await change_lane(database, sessions[3], wake_at=FUTURE)
    await change_lane(database, sessions[2], wake_at=None)
    assert await due(database) == expected[2:]
    monkeypatch.undo()
    await database.transact(lambda tx: lanes.wake(tx, [sessions[3].session_id]))
    assert await due(database) == [*expected[2:], sessions[3].session_id]


# Races: something happens in the middle of a round. SQLite has one writer, so only PostgreSQL has them.


@pytest.fixture
async def here(migrated_postgres: str) -> AsyncIterator[Database]:
    """PostgreSQL, as this process sees it."""
    database = Database(migrated_postgres)
    yield database
    await database.close()


@pytest.fixture
async def there(migrated_postgres: str) -> AsyncIterator[Database]:
    """The same, as another process sees it."""
    database = Database(migrated_postgres)
    yield database
    await database.close()


async def test_a_round_that_finds_nothing_loses_no_wake(
    here: Database, there: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored, and its lane woken, after the round has looked: the lane does not fall asleep."""
    session = await a_session(here)
    await here.transact(lambda tx: lanes.wake(tx, [session.session_id]))
    woken = Beside(there, lambda: enqueue(there, session))
    after(monkeypatch, lanes, "_claim", woken.begin)
    assert (await send_round(here, session)).claimed == []
    await woken.result()
    assert await due(here) == [session.session_id]


async def test_a_message_that_is_tried_again_at_this_moment_does_not_expire(
    here: Database, there: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed, and got more time, since it was found to be too old: it is looked at again under its lock."""
    session = await a_session(here)
    message = await enqueue(here, session, expiry=timedelta(seconds=-1))

    async def try_again() -> None:
        await handle(there, a_receipt(session, message.whatsapp_message_id, "failed"))
        await handle(there, RetryMessage(chatbot_id=session.chatbot_id, message_id=message.id), message_id="retry")

    after(monkeypatch, lanes, "_expired", try_again)
    done = await send_round(here, session)
    assert (done.changed, [one.message.id for one in done.claimed]) == ([], [message.id])


async def test_a_message_that_is_tried_again_at_this_moment_is_not_void(
    here: Database, there: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found to be void, and stands further behind since: it is looked at again under its lock."""
    session = await a_session(here)
    message = await enqueue(here, session)
    await make_void(here, session)

    async def try_again() -> None:
        await handle(there, a_receipt(session, message.whatsapp_message_id, "failed"))
        await handle(there, RetryMessage(chatbot_id=session.chatbot_id, message_id=message.id), message_id="retry")

    after(monkeypatch, lanes, "_void", try_again)
    done = await send_round(here, session)
    assert (done.changed, [one.message.id for one in done.claimed]) == ([], [message.id])


async def test_a_receipt_for_an_id_of_the_gateways_own_is_not_missed(
    here: Database, there: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the answer with that id is recorded: it waits for that, and finds its message."""
    session = await a_session(here)
    message = await enqueue(here, session)
    one = await claimed(here, session)
    receipt = Beside(there, lambda: handle(there, a_receipt(session, "OWN")))
    after(monkeypatch, lanes, "take_receipts", receipt.begin)
    await answered(here, session, one, "OWN")
    await receipt.result()
    assert (await reread(here, message)).delivery_status is D.DELIVERED


async def test_a_message_that_is_claimed_at_this_moment_is_not_cancelled(
    here: Database, there: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation waits for the round, and is told that the message is being sent."""
    session = await a_session(here)
    message = await enqueue(here, session)
    cancelling = Beside(there, lambda: cancel(there, message))
    after(monkeypatch, lanes, "_claim", cancelling.begin)
    assert len((await send_round(here, session)).claimed) == 1
    assert await cancelling.result() == "command.rejected"
    assert (await reread(here, message)).delivery_status is D.PENDING


# Query plans

SESSIONS = 1000


async def fill(tx: AsyncSession, status: str, each: int) -> None:
    """Store messages in the lanes of all sessions."""
    await tx.execute(
        text(
            "INSERT INTO messages (id, conversation_id, chatbot_id, session_id, role, content, delivery_status,"
            " whatsapp_message_id, key_hash, correlation_id, caller_metadata, external_user_id, lane_number, attempts,"
            " version, told_version, handed_over, expires_at, changed_at, created_at)"
            " SELECT gen_random_uuid(), c.id, s.chatbot_id, s.session_id, 'ASSISTANT', 'hello', :status, 'x', 1, 'c',"
            " '{}', '549', n, 0, 1, 1, true, now() + interval '1 hour', now(), now()"
            " FROM sessions s JOIN conversations c USING (chatbot_id) CROSS JOIN generate_series(1, :each) n"
        ),
        {"status": status, "each": each},
    )


async def many_sessions(tx: AsyncSession, count: int) -> None:
    """Make sessions with one conversation and a lane that sleeps each."""
    chatbots = "INSERT INTO chatbots SELECT gen_random_uuid(), now() FROM generate_series(1, :count)"
    sessions = (
        "INSERT INTO sessions (id, chatbot_id, session_id, status, wanted, version, told_version, correlation_id,"
        " key_hash, lane_end, moved_at, created_at, updated_at) SELECT gen_random_uuid(), id, 'session_' || id,"
        " 'CONNECTED', true, 1, 1, '', 1, 0, now(), now(), now() FROM chatbots"
    )
    conversations = (
        "INSERT INTO conversations (id, chatbot_id, channel, external_user_id, status, last_message_at, sequence_end,"
        " version, told_version, correlation_id, key_hash, changed_at, created_at) SELECT gen_random_uuid(), id,"
        " 'WHATSAPP_QR', '549', 'ACTIVE', now(), 0, 1, 1, '', 1, now(), now() FROM chatbots"
    )
    lanes_of = "INSERT INTO lanes (session_id, key_hash, deferrals) SELECT {}, 1, 0 FROM {}"
    asleep = lanes_of.format("session_id", "sessions")
    # Most lanes of a platform have nothing to send; a table of a few lanes would be read as a whole.
    idle = lanes_of.format("'idle_' || n", "generate_series(1, 20000) n")
    await tx.execute(text(chatbots), {"count": count})
    for statement in (sessions, conversations, asleep, idle):
        await tx.execute(text(statement))


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_round_reads_the_first_message_of_its_lanes_alone(here: Database, mode: str) -> None:
    """By their indexes, also where PostgreSQL last looked when nothing waited: 20 000 messages are PENDING since."""
    await here.transact(lambda tx: many_sessions(tx, SESSIONS))
    await here.transact(lambda tx: fill(tx, "SENT", 20))
    await here.transact(lambda tx: tx.execute(text("ANALYZE")))
    await here.transact(lambda tx: fill(tx, "PENDING", 20))
    await here.transact(
        lambda tx: tx.execute(text("UPDATE lanes SET wake_at = now() WHERE session_id NOT LIKE 'idle%'"))
    )
    statements: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append((statement, parameters))

    async def explain(tx: AsyncSession, statement: str, parameters: Any) -> str:
        driver = (await (await tx.connection()).get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(f"SET LOCAL plan_cache_mode = {mode}")
        return "\n".join(row[0] for row in await driver.fetch(f"EXPLAIN ANALYZE {statement}", *parameters))

    event.listen(here._writer.sync_engine, "before_cursor_execute", keep)
    found = await due(here)
    for some in (found[:1], found[1:]):
        work = partial(lanes.send_round, answers=[], due=some, policy=SendPolicy())
        assert len((await here.transact(work)).claimed) == len(some)
    await here.transact(lambda tx: sweeping.wake_forgotten(tx, timedelta(minutes=1)))
    assert len(await here.read(partial(sweeping.tried_in_vain, session_ids=found))) == len(found)
    event.remove(here._writer.sync_engine, "before_cursor_execute", keep)

    plans = [await here.transact(partial(explain, statement=one, parameters=given)) for one, given in statements]
    assert "lanes_awake" in plans[0]
    of_messages = [plan for plan in plans if " on messages" in plan]
    assert len(of_messages) == 6  # what has expired and what is first, of two rounds; the two of the sweeper
    for plan in of_messages:
        assert "messages_lane" in plan or "messages_expiring" in plan, plan
        read = re.findall(r" on messages.*actual.*rows=(\d+) loops=(\d+)", plan)
        assert sum(int(rows) * int(loops) for rows, loops in read) <= 3 * SESSIONS, plan

"""The sweeper on both databases: rows as a crash leaves them, and what it makes of them."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service import metrics
from service.domain.identities import output_id
from service.errors import BrokerUnavailable
from service.persistence import sessions, sweeping
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, ReceiptRow, SessionRow
from service.upkeep import sweeper as sweeper_module
from service.upkeep.sweeper import Sweeper
from service.upkeep.watching import Watch
from tests.component.rows import (
    MAY_HAVE_GONE_OUT,
    a_session,
    all_of,
    change,
    claimed,
    enqueue,
    receive,
    reread,
    sent,
)
from tests.component.standins import Recorder, announcer, settled
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus

AGE = timedelta(seconds=60)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def broker() -> Recorder:
    return Recorder()


@pytest.fixture
def sweeper(database: Database, broker: Recorder) -> Sweeper:
    """A sweeper for which 3 s pass between two runs."""
    clock = itertools.count(0.0, sweeper_module.STILL_SECONDS)
    return Sweeper(database, announcer(database, broker), AGE, Watch(lambda: next(clock)))


def redriven(kind: str) -> float:
    return metrics.REDRIVEN.labels(kind)._value.get()


async def age(database: Database, row: Any) -> None:
    """Make a row look as if nobody had touched it for long."""
    await change(database, row, changed_at=LONG_AGO)


async def test_the_database_says_when_a_row_was_written(database: Database) -> None:
    """New and changed messages and sessions carry the database's time of the write, not the machine's idea of it."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await age(database, message)
    await change(database, session, moved_at=LONG_AGO)

    async def ages(tx: AsyncSession) -> list[float]:
        at = await database.present(tx)
        rows = (await tx.get_one(MessageRow, message.id), await tx.get_one(ConversationRow, message.conversation_id))
        row = await tx.get_one(SessionRow, session.id)
        return [(at - when).total_seconds() for when in (*(row.changed_at for row in rows), row.moved_at)]

    old, conversation, moved = await database.read(ages)
    assert old > 1e6
    assert moved > 1e6
    assert 0 <= conversation < 30
    await claimed(database, session)

    async def move(tx: AsyncSession) -> None:
        sessions.move(await tx.get_one(SessionRow, session.id), SessionStatus.CONNECTED, wanted=True)

    await database.transact(move)
    assert all(-1 < seconds < 30 for seconds in await database.read(ages))


async def test_unhanded_messages_are_handed_over_in_order(
    database: Database, sweeper: Sweeper, broker: Recorder
) -> None:
    """A customer's message that nobody handed over gets its job and its event, under the ids that they always have."""
    session = await settled(database)
    forgotten = [(await receive(database, session, f"A{number}")).message for number in (1, 2, 3)]
    for row in reversed(forgotten):
        await age(database, row)
    young = (await receive(database, session, "A4")).message
    before = redriven("unhanded")
    await sweeper.run()
    assert redriven("unhanded") == before + 3
    jobs = [message_id for message, message_id, _ in broker.out if message.name == "incoming-messages"]
    assert jobs == [output_id(row.id, "job") for row in forgotten]
    events = [(message_id, cause) for message, message_id, cause in broker.out if message.name == "message.received"]
    assert events == [(output_id(row.id, "received"), "report") for row in forgotten]
    assert [(await reread(database, row)).announced for row in (*forgotten, young)] == [True, True, True, False]
    broker.out.clear()
    await sweeper.run()
    assert broker.out == []


async def test_a_full_queue_stops_nothing_else(
    database: Database, sweeper: Sweeper, broker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job can be handed over: statuses are announced and old rows forgotten all the same, and the run says why."""
    session = await settled(database)
    await age(database, (await receive(database, session)).message)
    message = await enqueue(database, session)
    await claimed(database, session)
    await sent(database, message)
    await age(database, message)
    publish = broker.publish

    async def full(out: Any, **envelope: Any) -> None:
        if out.name == "incoming-messages":
            detail = "incoming-messages is full"
            raise BrokerUnavailable(detail)
        await publish(out, **envelope)

    monkeypatch.setattr(broker, "publish", full)
    with pytest.raises(BrokerUnavailable, match="is full"):
        await sweeper.run()
    assert "message.sent" in broker.names


async def test_more_than_a_batch_is_done_at_once(
    database: Database, sweeper: Sweeper, broker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an outage left does not wait for as many periods as it has batches."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    monkeypatch.setattr(sweeper_module, "BATCH", 2)
    session = await settled(database)
    for number in range(5):
        await age(database, (await receive(database, session, f"A{number}")).message)
    await sweeper.run()
    assert broker.names.count("incoming-messages") == 5


async def test_unannounced_statuses_are_announced(database: Database, sweeper: Sweeper, broker: Recorder) -> None:
    """A message whose new status nobody heard of is announced, in the order of its lane."""
    session = await settled(database)
    messages = [await enqueue(database, session) for _ in range(3)]
    for message in messages:
        await claimed(database, session)
        await sent(database, message)
    for message in reversed(messages[:2]):
        await age(database, message)
    await sweeper.run()
    assert [(out.name, out.message_id) for out, *_ in broker.out] == [("message.sent", row.id) for row in messages[:2]]
    assert [(await reread(database, row)).announced for row in messages] == [True, True, False]


async def test_unannounced_sessions_and_conversations_are_announced(
    database: Database, sweeper: Sweeper, broker: Recorder
) -> None:
    """A session's version and a conversation's start that nobody heard of are announced, old ones only."""
    session, young = await a_session(database), await a_session(database)
    conversation = (await receive(database, session)).conversation
    await change(database, session, moved_at=LONG_AGO)
    await change(database, conversation, changed_at=LONG_AGO)
    await sweeper.run()
    assert sorted(broker.names) == ["conversation.started", "session.connected"]
    assert (await all_of(database, SessionRow, id=session.id))[0].announced_version == 1
    assert (await all_of(database, SessionRow, id=young.id))[0].announced_version == 0
    assert (await all_of(database, ConversationRow))[0].announced
    broker.out.clear()
    await sweeper.run()
    assert broker.out == []


async def test_one_row_that_cannot_be_announced_does_not_stop_the_others(
    database: Database, sweeper: Sweeper, broker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that no event can be made of is logged and left; those behind it are done."""
    session = await settled(database)
    bad, good = [(await receive(database, session, whatsapp_id)).message for whatsapp_id in ("A1", "A2")]
    for row in (bad, good):
        await age(database, row)
    publish = broker.publish

    async def picky(message: Any, *, message_id: str, **envelope: Any) -> None:
        if message_id == output_id(bad.id, "received"):
            detail = "no event can be made of this"
            raise ValueError(detail)
        await publish(message, message_id=message_id, **envelope)

    monkeypatch.setattr(broker, "publish", picky)
    before = redriven("unhanded")
    await sweeper.run()
    assert redriven("unhanded") == before + 1
    assert [(await reread(database, row)).announced for row in (bad, good)] == [False, True]


async def test_an_unavailable_broker_ends_the_run(
    database: Database, sweeper: Sweeper, broker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing counts as mended that was not confirmed; the next run does it."""
    session = await settled(database)
    message = (await receive(database, session)).message
    await age(database, message)

    async def away(*_: object, **__: object) -> None:
        detail = "no broker"
        raise BrokerUnavailable(detail)

    before = redriven("unhanded")
    with monkeypatch.context() as patched:
        patched.setattr(broker, "publish", away)
        with pytest.raises(BrokerUnavailable):
            await sweeper.run()
    assert redriven("unhanded") == before
    assert not (await reread(database, message)).announced
    await sweeper.run()
    assert redriven("unhanded") == before + 1


async def rings(sweeper: Sweeper, broker: Recorder) -> int:
    """Count the doorbells of two runs: what stands still is seen at the second."""
    broker.out.clear()
    await sweeper.run()
    await sweeper.run()
    return broker.names.count("whatsapp-qr-send")


async def test_a_forgotten_lane_is_rung_for_once_a_minute(
    database: Database, sweeper: Sweeper, broker: Recorder
) -> None:
    """A PENDING message that nobody works on gets a doorbell with an id of its own, and not a second one at once."""
    session = await settled(database)
    message = await enqueue(database, session)
    assert await rings(sweeper, broker) == 0
    await age(database, message)
    before = redriven("pending")
    assert await rings(sweeper, broker) == 1
    assert redriven("pending") == before + 1
    [(job, ring_id, cause)] = broker.out
    assert (job.message_id, cause) == (message.id, "command")
    assert ring_id != output_id(message.id, "job")
    assert await rings(sweeper, broker) == 0
    sweeper._rung.clear()  # a minute later
    assert await rings(sweeper, broker) == 1
    assert broker.out[0][1] != ring_id


@pytest.mark.parametrize("why", ["claimed", "queued", "not_connected", "meant_to", "moves"])
async def test_a_lane_that_somebody_works_on_is_left_alone(
    database: Database, sweeper: Sweeper, broker: Recorder, why: str
) -> None:
    """A live claim, a doorbell in the queue, a session that waits, a later appointment: each explains a PENDING."""
    session = await settled(database, status=SessionStatus.CONNECTED)
    message = await enqueue(database, session)
    if why == "claimed":
        await claimed(database, session)
    await age(database, message)
    if why == "queued":
        broker.in_queue = 1
    if why == "not_connected":
        await change(database, session, status=SessionStatus.DISCONNECTED)
    if why == "meant_to":
        await change(database, session, drain_at=datetime.now(UTC) + timedelta(minutes=5))
    if why == "moves":
        await sweeper.run()
        await change(database, message, changed_at=LONG_AGO + timedelta(seconds=1))
        await sweeper.run()
        assert "whatsapp-qr-send" not in broker.names
        return
    assert await rings(sweeper, broker) == 0


async def test_an_overdue_appointment_is_kept(
    database: Database, sweeper: Sweeper, broker: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that should have been looked at 10 s ago is rung for, whatever waits in the queue."""
    assert sweeper_module.OVERDUE_SECONDS == 10
    monkeypatch.setattr(sweeper_module, "OVERDUE_SECONDS", 1000)  # so that no pause of the machine makes it overdue
    session = await settled(database)
    await enqueue(database, session)
    broker.in_queue = 7
    await change(database, session, drain_at=datetime.now(UTC) - timedelta(seconds=800))
    assert await rings(sweeper, broker) == 0
    await change(database, session, drain_at=datetime.now(UTC) - timedelta(seconds=1100))
    before = redriven("drain")
    assert await rings(sweeper, broker) == 1
    assert redriven("drain") == before + 1


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waited_too_long_expires_wherever_it_stands(
    database: Database, sweeper: Sweeper, broker: Recorder, status: SessionStatus
) -> None:
    """An expired message fails behind one that waits too, and while its session is down; it counts as no repair."""
    session = await settled(database, status=status)
    first = await enqueue(database, session)
    expired = await enqueue(database, session, expiry=timedelta(seconds=-1))
    await sweeper.run()
    assert [(out.name, out.message_id, out.error_code) for out, *_ in broker.out] == [
        ("message.failed", expired.id, "expired")
    ]
    assert (await reread(database, expired)).delivery_status is DeliveryStatus.FAILED
    assert (await reread(database, first)).delivery_status is DeliveryStatus.PENDING


@pytest.mark.parametrize(
    ("trace", "more"),
    [({}, ""), ({"attempts": 1}, MAY_HAVE_GONE_OUT), ({"claimed_until": LONG_AGO}, MAY_HAVE_GONE_OUT)],
)
async def test_what_expires_says_whether_it_may_have_gone_out(
    database: Database, sweeper: Sweeper, broker: Recorder, trace: dict[str, Any], more: str
) -> None:
    """After an attempt whose outcome is unknown, or a claim that a killed process left, it may have arrived."""
    message = await enqueue(database, await settled(database))
    await change(database, message, expires_at=LONG_AGO, **trace)
    await sweeper.run()
    [(event, _, _)] = broker.out
    assert event.error_message == f"it waited too long{more}"


async def test_a_claimed_message_does_not_expire(database: Database, sweeper: Sweeper) -> None:
    """Somebody may be sending it at this moment."""
    session = await settled(database)
    message = await enqueue(database, session)
    await claimed(database, session)
    await change(database, message, expires_at=LONG_AGO)
    await sweeper.run()
    assert (await reread(database, message)).delivery_status is DeliveryStatus.PENDING


async def test_commands_and_receipts_are_kept_for_a_day(
    database: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is older than 24 h is deleted, in batches; what is younger stays."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    monkeypatch.setattr(sweeper_module, "BATCH", 2)
    young, old = datetime.now(UTC) - timedelta(hours=23), datetime.now(UTC) - timedelta(hours=25)

    async def fill(tx: AsyncSession) -> None:
        for created_at in (young, old, old, old):
            tx.add(CommandRow(chatbot_id=uuid4(), command_id=uuid4().hex, name="x", created_at=created_at))
            receipt = {"session_id": "s", "status": DeliveryStatus.READ, "at": old, "created_at": created_at}
            tx.add(ReceiptRow(whatsapp_message_id=uuid4().hex, **receipt))

    await database.transact(fill)
    await sweeper.run()
    for table in (CommandRow, ReceiptRow):
        assert [abs((row.created_at - young).total_seconds()) < 1 for row in await all_of(database, table)] == [True]

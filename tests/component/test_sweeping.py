"""The sweeper on both databases: lanes as a crash leaves them, old rows, and what it makes of them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service import metrics
from service.persistence import lanes, sessions, sweeping
from service.persistence.database import Database, present
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, ReceiptRow, SessionRow
from service.persistence.unpublished import Part
from service.singletons import sweeper as sweeper_module
from service.singletons.sweeper import Sweeper
from tests.component.racing import change_lane
from tests.component.rows import a_session, all_of, change, claimed, enqueue, send_round, sent
from whatsapp_qr_contracts.message import DeliveryStatus, SessionStatus

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def sweeper(database: Database) -> Sweeper:
    return Sweeper(database, timedelta(seconds=60))


async def forgotten(database: Database, *, count: int = 1, asleep: bool = True, **fields: Any) -> SessionRow:
    """Make a lane with messages that have waited for long; it sleeps, as no lane should."""
    session = await a_session(database, **fields)
    for _ in range(count):
        await change(database, await enqueue(database, session), changed_at=LONG_AGO)
    if asleep:
        await change_lane(database, session, wake_at=None)
    return session


async def woken(database: Database, sweeper: Sweeper) -> set[str]:
    """Run once; return the lanes that are due."""
    await sweeper.run()
    return set(await database.read(lambda tx: lanes.due(tx, Part(1, {0: 0.0}))))


def redriven() -> float:
    return metrics.REDRIVEN.labels("pending")._value.get()


async def test_the_database_says_when_a_row_was_written(database: Database) -> None:
    """New and changed messages and sessions carry the database's time of the write, not the machine's idea of it."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await change(database, message, changed_at=LONG_AGO)
    await change(database, session, moved_at=LONG_AGO)

    async def ages(tx: AsyncSession) -> list[float]:
        at = await present(tx)
        rows = (await tx.get_one(MessageRow, message.id), await tx.get_one(ConversationRow, message.conversation_id))
        row = await tx.get_one(SessionRow, session.id)
        return [(at - when).total_seconds() for when in (*(row.changed_at for row in rows), row.moved_at)]

    old, conversation, moved = await database.read(ages)
    assert old > 1e6
    assert moved > 1e6
    assert 0 <= conversation < 30
    await sent(database, session)

    async def move(tx: AsyncSession) -> None:
        sessions.move(tx, await tx.get_one(SessionRow, session.id), SessionStatus.CONNECTED, wanted=True)

    await database.transact(move)
    assert all(-1 < seconds < 30 for seconds in await database.read(ages))


async def test_a_forgotten_lane_is_woken(database: Database, sweeper: Sweeper) -> None:
    """One that sleeps though its first message could be sent: it is counted, and sent."""
    one, other = await forgotten(database), await forgotten(database, count=2)
    before = redriven()
    assert await woken(database, sweeper) == {one.session_id, other.session_id}
    assert redriven() == before + 2
    assert len((await send_round(database, one, other)).claimed) == 2
    await woken(database, sweeper)
    assert redriven() == before + 2


@pytest.mark.parametrize("why", ["it is awake", "not connected", "young", "empty", "being sent"])
async def test_a_lane_that_sleeps_with_reason_is_left_alone(database: Database, sweeper: Sweeper, why: str) -> None:
    """A time that its row names, a session that waits, a young message, nothing to send: nobody has forgotten it."""
    status = SessionStatus.DISCONNECTED if why == "not connected" else SessionStatus.CONNECTED
    session = await forgotten(database, status=status)
    [message] = await all_of(database, MessageRow)
    if why == "it is awake":
        await change_lane(database, session, wake_at=FUTURE, not_before=FUTURE)
    if why == "young":
        await change(database, message, changed_at=datetime.now(UTC))
    if why == "empty":
        await change(database, message, delivery_status=DeliveryStatus.SENT)
    if why == "being sent":
        await claimed(database, session)
    before = redriven()
    assert await woken(database, sweeper) == set()
    assert redriven() == before


async def test_lanes_with_reason_do_not_use_up_the_batch(
    database: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many old messages wait with reason, behind each other and in other lanes: forgotten ones are found."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    for _ in range(2):
        await change_lane(database, await forgotten(database, count=3, asleep=False), wake_at=FUTURE)
        await forgotten(database, count=3, status=SessionStatus.DISCONNECTED)
    lost = {(await forgotten(database, count=3)).session_id for _ in range(3)}
    found = await woken(database, sweeper)
    assert (len(found), found < lost) == (2, True)
    assert await woken(database, sweeper) == lost


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waited_too_long_expires_wherever_it_stands(
    database: Database, sweeper: Sweeper, status: SessionStatus
) -> None:
    """Behind one that waits too, in a lane that sleeps because its session is down; it counts as no repair."""
    session = await a_session(database, status=status)
    first, expired = await enqueue(database, session), await enqueue(database, session, expiry=timedelta(seconds=-1))
    await change_lane(database, session, wake_at=None)
    before = redriven()
    assert await woken(database, sweeper) == {session.session_id}
    done = await send_round(database, session)
    assert [(row.id, row.error_code) for row in done.changed] == [(expired.id, "expired")]
    assert [row.id for row in await all_of(database, MessageRow, delivery_status="PENDING")] == [first.id]
    assert redriven() == before


async def test_commands_and_receipts_are_kept_for_a_day(
    database: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is older than 24 h is deleted, in batches; what is younger stays, and an answer that is still to be told."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    monkeypatch.setattr(sweeper_module, "BATCH", 2)
    young, old = datetime.now(UTC) - timedelta(hours=23), datetime.now(UTC) - timedelta(hours=25)
    read = DeliveryStatus.READ

    async def fill(tx: AsyncSession) -> None:
        for at in (young, old, old, old):
            tx.add(CommandRow(chatbot_id=uuid4(), command_id="told", name="x", created_at=at))
            tx.add(ReceiptRow(session_id="s", whatsapp_message_id=uuid4().hex, status=read, at=old, created_at=at))
        tx.add(CommandRow(chatbot_id=uuid4(), command_id="untold", name="x", created_at=old, version=1))

    await database.transact(fill)
    await sweeper.run()
    assert {(row.command_id, row.created_at) for row in await all_of(database, CommandRow)} == {
        ("told", young),
        ("untold", old),
    }
    assert [row.created_at for row in await all_of(database, ReceiptRow)] == [young]

"""Heartbeat rows on both databases: who is alive, who is forgotten, and that no two processes hinder each other."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from structlog.testing import capture_logs

from service.domain.sharing import Peer
from service.errors import DatabaseUnavailable
from service.persistence import database as database_module
from service.persistence import engines, heartbeats
from service.persistence.database import Database, clock
from service.persistence.heartbeats import Heartbeats
from service.persistence.sessions import session_by_id
from service.persistence.tables import ProcessRow
from tests.component.rows import a_session, all_of
from tests.system import eventually


async def aged(database: Database, process_id: str, seconds: float) -> None:
    """Let a row be as old as if its process had said nothing for so long."""
    row, by = ProcessRow, timedelta(seconds=-seconds)
    await database.transact(
        lambda tx: tx.execute(update(row).where(col(row.id) == process_id).values(seen_at=clock(tx, by)))
    )


async def test_processes_of_a_kind_see_each_other(database: Database, other_process: Database) -> None:
    """A beat tells what a process is active on now, and returns the others of its kind alone."""
    first, second = (
        Heartbeats(database, "a", "q", 15, partitions=4),
        Heartbeats(other_process, "b", "q", 15, partitions=4),
    )
    stranger = Heartbeats(database, "c", "other queue", 15, partitions=4)
    assert await first.beat([]) == []
    assert await stranger.beat([0]) == []
    assert await second.beat([3, 1]) == [Peer("a", frozenset())]
    assert await first.beat([0, 2]) == [Peer("b", frozenset({1, 3}))]
    assert await second.beat([1]) == [Peer("a", frozenset({0, 2}))]
    await second.remove()
    assert await first.beat([0]) == []


async def test_who_says_nothing_is_dead_and_then_forgotten(database: Database) -> None:
    """A row counts for a period and a half; after ten periods whoever comes by deletes it, whatever its kind."""
    mine, silent = Heartbeats(database, "a", "q", 10, partitions=4), Heartbeats(database, "b", "q", 10, partitions=4)
    await silent.beat([1])
    await aged(database, "b", 13)
    assert await mine.beat([]) == [Peer("b", frozenset({1}))]
    await aged(database, "b", 17)
    assert await mine.beat([]) == []
    await aged(database, "b", 97)
    await mine.beat([])
    assert len(await all_of(database, ProcessRow)) == 2
    await aged(database, "b", 103)
    await Heartbeats(database, "c", "other queue", 10, partitions=4).beat([])
    assert {row.id for row in await all_of(database, ProcessRow)} == {"a", "c"}
    assert await silent.beat([2]) == [Peer("a", frozenset())]  # it was only slow


async def test_many_beats_at_once(database: Database, other_process: Database) -> None:
    """Processes that beat at the same moment, and delete the same dead, all succeed."""
    for number in range(5):
        await Heartbeats(database, f"dead {number}", "q", 1, partitions=4).beat([])
        await aged(database, f"dead {number}", 100)
    beating = [
        Heartbeats(part, f"p{number}", "q", 1, partitions=4)
        for number in range(10)
        for part in (database, other_process)
    ]
    await asyncio.gather(*(heartbeats.beat([1]) for heartbeats in beating))
    assert {row.id for row in await all_of(database, ProcessRow)} == {f"p{number}" for number in range(10)}


async def test_a_transaction_whose_process_hangs_is_ended(
    migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its row locks no longer: whoever waited for them goes on, and its own process begins anew."""
    monkeypatch.setattr(heartbeats, "HANGING_SECONDS", 0.5)
    # Neither the server nor the driver ends anything before this test does.
    monkeypatch.setattr(engines, "_IDLE_MILLISECONDS", 600_000)
    monkeypatch.setattr(engines, "_STATEMENT_SECONDS", 600)
    monkeypatch.setattr(database_module, "_TRANSACTION_SECONDS", 600)
    hanging, other = Database(migrated_postgres), Database(migrated_postgres)
    session = await a_session(other)
    locked, go_on = asyncio.Event(), asyncio.Event()

    async def hang(tx: AsyncSession) -> None:
        await session_by_id(tx, session.session_id, lock=True)
        locked.set()
        await go_on.wait()

    task = asyncio.create_task(hanging.transact(hang))
    await locked.wait()
    waiting = asyncio.create_task(other.transact(lambda tx: session_by_id(tx, session.session_id, lock=True)))
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    await eventually(lambda: other.read(lambda tx: tx.scalar(query)))
    beats = Heartbeats(other, "a", "q", 15, partitions=4)

    async def ended() -> bool:
        with capture_logs() as logs:
            await beats.beat([])
        return "hanging_transactions_ended" in [entry["event"] for entry in logs]

    # No beat after that: a transaction that has just got its lock, and is slow to go on, would look as if it hung.
    await eventually(ended)
    assert (await waiting) is not None
    go_on.set()
    with pytest.raises(DatabaseUnavailable):
        await task
    for database in (hanging, other):
        await database.close()

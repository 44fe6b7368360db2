"""A transaction is committed or has not happened, on both databases, whatever happens around it."""

import asyncio
import json
import sqlite3
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence import engines, migrations, sessions
from service.persistence.database import Database, clock, on_sqlite, present
from service.persistence.tables import ChatbotRow, MessageRow, SessionRow
from tests.amqp import until
from tests.component.rows import a_session, all_of, receive
from tests.servers import Postgres
from tests.system import SECONDS


async def one(tx: AsyncSession) -> int:
    return int((await tx.execute(text("SELECT 1"))).scalar_one())


def raising(sqlstate: str) -> Callable[[AsyncSession], Awaitable[None]]:
    async def work(tx: AsyncSession) -> None:
        await tx.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"))

    return work


# SQLite's settings


async def test_sqlite_keeps_what_it_has_confirmed(sqlite_database: str) -> None:
    """WAL, synchronous=FULL and foreign keys are really on, on the connections that write and on those that read."""
    await asyncio.to_thread(migrations.upgrade, sqlite_database)
    database = Database(sqlite_database)

    async def pragmas(tx: AsyncSession) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [(await tx.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]

    assert await database.transact(pragmas) == await database.read(pragmas) == ["wal", 2, 1]
    await database.close()


async def test_foreign_keys_are_kept(database: Database) -> None:
    """A session of a chatbot that nobody registered is refused by both databases."""

    async def orphan(tx: AsyncSession) -> None:
        tx.add(SessionRow(chatbot_id=uuid4(), session_id="s", status="CONNECTED"))

    with pytest.raises(IntegrityError):
        await database.transact(orphan)


# All or nothing


async def test_an_exception_undoes_the_transaction(database: Database) -> None:
    """Nothing of it stays, the exception comes through, and the next transaction works."""
    chatbot_id = uuid4()

    async def fails(tx: AsyncSession) -> None:
        await sessions.register_chatbot(tx, chatbot_id)
        message = "in the middle"
        raise KeyError(message)

    with pytest.raises(KeyError):
        await database.transact(fails)
    assert await all_of(database, ChatbotRow) == []


async def test_a_cancelled_transaction_ends_what_it_began(database: Database) -> None:
    """Cancelled after a write, more often than the pool has connections: each is committed whole, the pool is too."""

    async def writes_and_waits(tx: AsyncSession, written: asyncio.Event, go_on: asyncio.Event) -> None:
        await sessions.register_chatbot(tx, uuid4())
        written.set()
        await go_on.wait()

    async with asyncio.timeout(SECONDS):
        for _ in range(12):
            written, go_on = asyncio.Event(), asyncio.Event()
            work = partial(writes_and_waits, written=written, go_on=go_on)
            task = asyncio.create_task(database.transact(work))
            await written.wait()
            task.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert len(await all_of(database, ChatbotRow)) == 12


async def test_a_transaction_cancelled_at_any_step_is_whole_or_absent(database: Database) -> None:
    """Cancelled after 0, 1, 2, … turns of the loop: both rows or none, and never a connection that is lost."""
    outcomes = []
    async with asyncio.timeout(60):
        for turns in range(40):
            chatbot_id = uuid4()
            task = asyncio.create_task(a_session(database, chatbot_id=chatbot_id))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            chatbots = await all_of(database, ChatbotRow, id=chatbot_id)
            outcomes.append((len(chatbots), len(await all_of(database, SessionRow, chatbot_id=chatbot_id))))
        assert await asyncio.gather(*(database.transact(one) for _ in range(12))) == [1] * 12
    assert set(outcomes) <= {(0, 0), (1, 1)}


async def test_a_slow_read_is_given_up(database: Database) -> None:
    """A caller who waits 2 s at most gets his answer in time, and the connection is usable afterwards."""

    async def hangs(_tx: AsyncSession) -> None:
        await asyncio.Event().wait()

    for _ in range(12):
        with pytest.raises(DatabaseUnavailable, match=r"within 0\.01 s"):
            await database.read(hangs, seconds=0.01)
    assert await database.read(one) == 1


# Trouble that passes


async def test_a_stopped_postgres_is_unavailable_and_comes_back(breakable_postgres: Postgres) -> None:
    """Every transaction says so at once, those under way too, and works again without a restart of ours."""
    url = await breakable_postgres.create_database()
    await asyncio.to_thread(migrations.upgrade, url)
    database = Database(url)
    session = await a_session(database)
    begun = asyncio.Event()

    async def under_way(tx: AsyncSession) -> None:
        await one(tx)
        begun.set()
        await stopped.wait()
        await one(tx)

    stopped = asyncio.Event()
    task = asyncio.create_task(database.transact(under_way))
    await begun.wait()
    await breakable_postgres.stop()
    stopped.set()
    with pytest.raises(DatabaseUnavailable):
        await task
    for attempt in (database.transact(one), database.read(one), database.ping()):
        with pytest.raises(DatabaseUnavailable):
            await attempt
    await breakable_postgres.start()
    assert (await receive(database, session)).session_id == session.session_id
    await database.close()


@pytest.mark.parametrize(
    ("sqlstate", "passes"),
    [
        *((code, True) for code in ("40001", "40P01", "55P03", "53300", "57P01", "57P03", "58030", "08006", "25006")),
        *(("42P01", True), ("22012", False), ("42601", False)),
    ],
)
async def test_which_errors_of_postgres_pass(postgres_database: str, sqlstate: str, passes: bool) -> None:  # noqa: FBT001
    """Deadlock, serialization, lock, shutdown, full disk, standby: try again. A mistake of ours: do not."""
    database = Database(postgres_database)
    with pytest.raises(DatabaseUnavailable if passes else DBAPIError):
        await database.transact(raising(sqlstate))
    assert await database.transact(one) == 1
    await database.close()


async def test_an_error_does_not_tell_what_customers_wrote(database_url: str) -> None:
    """It is logged, and kept with the dead letter."""
    database = Database(database_url)
    said = str(uuid4())

    async def wrong(tx: AsyncSession) -> None:
        await tx.execute(text("SELECT 1 WHERE :said = :said AND wrong syntax"), {"said": said})

    with pytest.raises((DBAPIError, DatabaseUnavailable)) as error:
        await database.transact(wrong)
    told = "".join(traceback.format_exception(error.value))
    assert said not in told
    await database.close()


async def test_a_database_without_tables_says_what_to_do(database_url: str) -> None:
    """Trying again alone would never help."""
    database = Database(database_url)
    with pytest.raises(DatabaseUnavailable, match="run whatsapp-qr migrate"):
        await a_session(database)
    await database.close()


async def test_a_deadlock_passes(postgres_database: str) -> None:
    """Two transactions that lock the same rows in opposite order: one is told to try again, the other commits."""
    await asyncio.to_thread(migrations.upgrade, postgres_database)
    database = Database(postgres_database)
    first, second = await a_session(database), await a_session(database)
    both_hold = asyncio.Barrier(2)

    async def crosswise(tx: AsyncSession, this: SessionRow, that: SessionRow) -> None:
        await sessions.session_of(tx, this.chatbot_id, lock=True)
        await both_hold.wait()
        await sessions.session_of(tx, that.chatbot_id, lock=True)

    ends = await asyncio.gather(
        database.transact(lambda tx: crosswise(tx, first, second)),
        database.transact(lambda tx: crosswise(tx, second, first)),
        return_exceptions=True,
    )
    assert sorted(map(type, ends), key=str) == sorted([DatabaseUnavailable, type(None)], key=str)
    await database.close()


async def test_a_database_that_is_not_there_yet_passes(shared_postgres: Postgres) -> None:
    """The service may be started before its database is created, or while nothing listens."""
    await shared_postgres.answers()
    for url in (
        f"postgresql+asyncpg://postgres@127.0.0.1:{shared_postgres.port}/none",
        "postgresql+asyncpg://127.0.0.1:9/x",
    ):
        database = Database(url)
        with pytest.raises(DatabaseUnavailable):
            await database.transact(one)
        await database.close()


async def test_a_schema_that_is_not_there_yet_passes(database_url: str) -> None:
    """A consumer that starts before the migration holds its messages."""
    database = Database(database_url)
    with pytest.raises(DatabaseUnavailable):
        await a_session(database)
    await asyncio.to_thread(migrations.upgrade, database_url)
    await a_session(database)
    await database.close()


async def test_a_locked_sqlite_file_is_unavailable(
    sqlite_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the write lock for longer than we wait: try again; reads go on meanwhile."""
    monkeypatch.setattr(engines, "_BUSY_SECONDS", 0.05)
    await asyncio.to_thread(migrations.upgrade, sqlite_database)
    database = Database(sqlite_database)
    await a_session(database)
    holder = sqlite3.connect(tmp_path / "whatsapp-qr.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable):
        await a_session(database)
    assert len(await all_of(database, SessionRow)) == 1
    holder.execute("ROLLBACK")
    holder.close()
    await a_session(database)
    await database.close()


async def test_a_process_that_writes_all_the_time_lets_others_in(sqlite_database: str, tmp_path: Path) -> None:
    """The lock is free for moments only: whoever waits for it finds one of the first."""
    await asyncio.to_thread(migrations.upgrade, sqlite_database)
    database, written, done = Database(sqlite_database), count(), asyncio.Event()

    def write_all_the_time() -> None:
        holder = sqlite3.connect(tmp_path / "whatsapp-qr.db", isolation_level=None, timeout=SECONDS)
        while not done.is_set():
            holder.execute("BEGIN IMMEDIATE")
            time.sleep(0.03)
            holder.execute("COMMIT")
            next(written)
            time.sleep(0.002)
        holder.close()

    writing = asyncio.create_task(asyncio.to_thread(write_all_the_time))
    for _ in range(20):
        await database.transact(one)
    done.set()
    await writing
    assert next(written) < 90
    await database.close()


async def test_a_connection_that_the_server_has_closed_is_not_used(postgres_database: str) -> None:
    """While it lay idle: nobody's transaction fails for it."""
    database, other = Database(postgres_database, 3), Database(postgres_database, 3)

    async def driver(tx: AsyncSession) -> Any:
        return (await (await tx.connection()).get_raw_connection()).driver_connection

    connection = await database.read(driver)
    end = text("SELECT pg_terminate_backend(:pid)")
    await other.transact(lambda tx: tx.execute(end, {"pid": connection.get_server_pid()}))
    await until(connection.is_closed)
    assert await database.read(driver) is not connection
    await database.close()
    await other.close()


WRITER = """
import asyncio, json, sys
from uuid import UUID
from service.persistence import engines, sessions
from service.persistence.database import Database

engines._BUSY_SECONDS = engines._CONNECT_SECONDS = 60  # a disk may stand still

async def main(url, chatbot_ids):
    database = Database(url)
    for chatbot_id in map(UUID, chatbot_ids):
        async def work(tx):
            assert not await sessions.chatbot_is_known(tx, chatbot_id)  # a read before the write is what SQLite refuses
            await sessions.register_chatbot(tx, chatbot_id)
            await sessions.open_session(tx, chatbot_id, f"session_{chatbot_id}_1")
        await database.transact(work)
    await database.close()

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


async def test_several_processes_write_one_database(migrated_url: str, database: Database) -> None:
    """Three processes write 40 transactions each into one file at once: every one of them is there, and none failed."""
    written = [[str(uuid4()) for _ in range(40)] for _ in range(3)]
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, migrated_url, json.dumps(ids))
        for ids in written
    ]
    async with asyncio.timeout(3 * SECONDS):
        assert [await process.wait() for process in processes] == [0] * 3
    found = {str(session.chatbot_id) for session in await all_of(database, SessionRow)}
    assert found == {chatbot_id for ids in written for chatbot_id in ids}


# Texts and times


async def test_cleaned_texts_are_stored_alike(database: Database) -> None:
    """NUL, half an emoji and every other character: both databases give back the same."""
    session = await a_session(database)
    await receive(database, session, message="a\x00b \ud83d 😀 \x01\x7f\u2028", pushName="\x00Ann\udc00")
    [message] = await all_of(database, MessageRow)
    assert (message.content, message.push_name) == ("ab \ufffd 😀 \x01\x7f\u2028", "Ann\ufffd")


async def test_a_time_comes_back_with_zone_and_microseconds(database: Database) -> None:
    """Whatever zone it was given in, it is the same moment, in UTC, on both databases."""
    given = datetime(2026, 2, 3, 4, 5, 6, 123_457, tzinfo=timezone(timedelta(hours=-3)))
    chatbot_id = uuid4()

    async def store(tx: AsyncSession) -> None:
        tx.add(ChatbotRow(id=chatbot_id, registered_at=given))

    await database.transact(store)
    [row] = await all_of(database, ChatbotRow)
    assert row.registered_at == given
    assert row.registered_at.utcoffset() == timedelta()
    assert await all_of(database, ChatbotRow, registered_at=given) != []


async def test_the_clock_can_be_compared_in_the_database(database: Database) -> None:
    """`clock` is close to now, its offset counts, and rows are found by comparing with it."""
    earlier, later = timedelta(hours=-1), timedelta(hours=1)
    chatbot_id = uuid4()

    async def compare(tx: AsyncSession) -> tuple[datetime, datetime, list[bool]]:
        tx.add(ChatbotRow(id=chatbot_id, registered_at=await present(tx)))
        await tx.flush()
        at = ChatbotRow.__table__.c.registered_at  # type: ignore[attr-defined]
        older = [(await tx.scalars(select(at).where(at < clock(tx, by)))).all() != [] for by in (earlier, later)]
        return await present(tx), await present(tx, later), older

    now, soon, older = await database.transact(compare)
    assert abs(datetime.now(UTC) - now) < timedelta(minutes=1)
    assert later <= soon - now < later + timedelta(minutes=1)
    assert older == [False, True]


async def test_who_hangs_in_a_transaction_loses_it(database: Database) -> None:
    """PostgreSQL ends a transaction whose process says nothing for 10 s: its locks do not outlive a take-over."""

    async def limit(tx: AsyncSession) -> str | None:
        return None if on_sqlite(tx) else await tx.scalar(text("SHOW idle_in_transaction_session_timeout"))

    assert await database.read(limit) in {None, "10s"}

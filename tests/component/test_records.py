"""Rows as plain values: read and locked together, and written where they are new or have changed."""

from datetime import datetime
from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence.columns import DatabaseClock
from service.persistence.database import Database
from service.persistence.records import Records
from service.persistence.tables import SessionRecord, SessionRow
from tests.component.rows import a_session
from tests.component.test_query_plans import heard


async def stored(database: Database, session: SessionRow) -> SessionRow:
    return await database.read(lambda tx: tx.get_one(SessionRow, session.id))


async def test_only_what_has_changed_is_written(database: Database) -> None:
    """Each row with its own columns; what nobody has touched is not written, nor written twice."""
    one, other, third = [await a_session(database) for _ in range(3)]

    async def work(tx: AsyncSession) -> None:
        rows = Records(SessionRecord, SessionRow)
        found = {row.id: row for row in await rows.lock(tx, [one.id, other.id, third.id])}
        found[one.id].lane_end = 7
        found[other.id].lane_end, found[other.id].qr_code = 8, "code"
        await rows.write(tx)
        await rows.write(tx)

    with heard(database) as statements:
        await database.transact(work)
    assert len([statement for statement, _ in statements if statement.startswith("UPDATE")]) == 2
    now = [await stored(database, row) for row in (one, other, third)]
    assert [(row.lane_end, row.qr_code) for row in now] == [(7, None), (8, "code"), (0, None)]


async def test_a_time_may_be_the_databases(database: Database) -> None:
    """A column that is set to the database's clock is written by it."""
    session = await a_session(database)
    before = await stored(database, session)

    async def work(tx: AsyncSession) -> None:
        rows = Records(SessionRecord, SessionRow)
        [row] = await rows.lock(tx, [session.session_id], by="session_id")
        row.moved_at, row.version = cast("datetime", DatabaseClock()), 9
        await rows.write(tx)

    await database.transact(work)
    after = await stored(database, session)
    assert after.version == 9
    assert after.moved_at >= before.moved_at
    assert isinstance(after.moved_at, datetime)

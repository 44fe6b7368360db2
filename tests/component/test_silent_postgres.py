"""A PostgreSQL that falls silent, as behind a broken network: work on it ends, and ends as unavailable."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service import tasks
from service.errors import DatabaseUnavailable
from service.persistence import database as module
from service.persistence import engines
from service.persistence.database import Database
from tests.proxy import Proxy
from tests.servers import Postgres
from tests.system import SECONDS, eventually


@pytest.fixture
async def silenced(
    shared_postgres: Postgres, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Database, Callable[[], None]]]:
    """A database with a connection in its pool, and how to make everything between it and us vanish."""
    monkeypatch.setattr(engines, "_STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr(module, "_TRANSACTION_SECONDS", 1.5)
    async with Proxy(shared_postgres.url) as proxy:
        name = postgres_database.rpartition("/")[2]
        url = proxy.url.replace("postgresql:", "postgresql+asyncpg:").rpartition("/")[0]
        database = Database(f"{url}/{name}")

        async def answers() -> bool:
            with suppress(DatabaseUnavailable):  # within the short limit above
                await database.ping()
                return True
            return False

        await eventually(answers)
        yield database, proxy.lose
        proxy.heal()
        await database.close()


@pytest.mark.parametrize("when", ["before", "in the middle", "at the commit"])
async def test_work_on_a_silent_database_ends(silenced: tuple[Database, Callable[[], None]], when: str) -> None:
    """Whenever the silence begins; the driver alone would wait for ever for the end of a statement that it gave up."""
    database, lose = silenced

    async def work(tx: AsyncSession) -> None:
        await tx.execute(text("SELECT 1"))
        if when != "before":
            lose()
        if when == "in the middle":
            await tx.execute(text("SELECT 2"))

    if when == "before":
        lose()
    with pytest.raises(DatabaseUnavailable):
        await database.transact(work)


async def test_a_transaction_that_loses_its_cancellation_is_cut_off(
    migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As drivers do with one that comes together with an error: nobody waits for ever, and its turn is free again."""
    monkeypatch.setattr(module, "_TRANSACTION_SECONDS", 0.5)
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.1)
    database = Database(migrated_postgres, pool=1)

    async def loses(tx: AsyncSession) -> None:
        await tx.execute(text("SELECT 1"))
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with asyncio.timeout(SECONDS):
        with pytest.raises(DatabaseUnavailable, match="longer than"):
            await database.transact(loses)
    monkeypatch.setattr(database, "_longest", SECONDS)
    assert await database.transact(lambda tx: tx.scalar(text("SELECT 2"))) == 2
    await database.close()

"""The schema's history: it ends at the models, can be repeated and raced, and happens wholly or not at all."""

import asyncio
import sqlite3
import sys
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy.exc import OperationalError

from service.persistence import migrations, sessions
from service.persistence.database import Database
from service.settings import Settings
from tests.component.rows import a_session, receive

UPGRADE = "import sys; from service.persistence import migrations; migrations.upgrade(sys.argv[1])"


async def upgrade_in_a_process(url: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UPGRADE, url, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(60):
        _, error = await process.communicate()
    return error.decode()[-500:] if process.returncode else ""


async def test_the_schema_is_that_of_the_models(migrated_url: str) -> None:
    """Alembic finds nothing to add: no table, column, index or type was forgotten in a migration."""
    await asyncio.to_thread(command.check, migrations.configuration(migrated_url))


async def test_upgrading_again_changes_nothing(migrated_url: str, database: Database) -> None:
    """Every start of the service may migrate; the rows stay."""
    session = await a_session(database)
    stored = await receive(database, session)
    await asyncio.to_thread(migrations.upgrade, migrated_url)
    assert (await receive(database, session)).message.id == stored.message.id


async def test_a_session_is_young_after_the_upgrade(migrated_url: str, database: Database) -> None:
    """One that was CONNECTING before it is not taken for one that hangs: nobody knows since when it is."""
    await a_session(database)
    await asyncio.to_thread(command.downgrade, migrations.configuration(migrated_url), "0001")
    await asyncio.to_thread(migrations.upgrade, migrated_url)
    [one] = await database.read(partial(sessions.survey, database))
    assert abs(one.known.age) < 300


async def test_racing_upgrades_all_succeed(database_url: str) -> None:
    """Several processes that start at once may all migrate: each finds the schema complete afterwards."""
    assert await asyncio.gather(*(upgrade_in_a_process(database_url) for _ in range(3))) == [""] * 3
    database = Database(database_url)
    await a_session(database)
    await database.close()


async def test_a_broken_off_migration_leaves_nothing(sqlite_database: str, tmp_path: Path) -> None:
    """SQLite's driver would commit each table by itself: then a crash in between would block every later upgrade."""
    with sqlite3.connect(tmp_path / "whatsapp-qr.db") as file:
        file.execute("CREATE TABLE receipts (in_the_way)")
    with pytest.raises(OperationalError, match="already exists"):
        await asyncio.to_thread(migrations.upgrade, sqlite_database)
    assert [name for (name,) in file.execute("SELECT name FROM sqlite_master")] == ["receipts"]
    file.execute("DROP TABLE receipts")
    file.close()
    await asyncio.to_thread(migrations.upgrade, sqlite_database)


async def test_a_url_as_platforms_give_it_is_accepted(shared_postgres: object, postgres_database: str) -> None:
    """`postgresql://` in DATABASE_URL reaches the database through the asynchronous driver."""
    assert shared_postgres
    plain = postgres_database.replace("+asyncpg", "")
    url = Settings(database_url=plain).database_url
    await asyncio.to_thread(migrations.upgrade, url)
    database = Database(url)
    await database.ping()
    await database.close()


async def test_a_folder_is_made_for_a_new_file(tmp_path: Path) -> None:
    """The default database lies in `.local/`, which a fresh checkout does not have."""
    await asyncio.to_thread(migrations.upgrade, f"sqlite+aiosqlite:///{tmp_path / 'new' / 'folder' / 'x.db'}")
    assert (tmp_path / "new" / "folder" / "x.db").exists()

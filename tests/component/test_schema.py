"""Whether the database has the schema that this version needs, and what is said where it has not."""

import asyncio
from functools import partial
from typing import Any

import httpx
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from service import apps
from service.errors import ConfigurationError
from service.persistence import migrations, schema
from service.persistence.database import Database
from service.persistence.schema import Schema
from service.settings import Settings
from tests.schema_before import bring_back

CONSUMERS = ("session_consumer_app", "conversation_consumer_app", "outbound_consumer_app")


def test_the_head_is_that_of_the_migrations() -> None:
    """It is read from the names of the files: they have to be in order, and hold what they say."""
    scripts = ScriptDirectory.from_config(migrations.configuration("sqlite+aiosqlite://"))
    assert scripts.get_current_head() == schema.head()
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)
    assert {len(revision) for revision in revisions} == {4}


async def test_the_present_schema_is_believed_for_a_while(database: Database) -> None:
    """Probes come every few seconds from every pod: the database is asked once in a while."""
    asked: list[str] = []
    event.listen(database._reader.sync_engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    one = Schema(database)
    assert [await one.fault() for _ in range(3)] == ["", "", ""]
    assert sum("alembic_version" in statement for statement in asked) == 1


async def test_an_older_schema_is_a_fault_until_it_is_migrated(migrated_url: str, database: Database) -> None:
    """The sentence names both revisions and the command; nothing bad is believed for a while."""
    await bring_back(migrated_url)
    one = Schema(database)
    assert await one.fault() == (f"the database has the schema 0004, not {schema.head()}: run whatsapp-qr migrate")
    await asyncio.to_thread(migrations.upgrade, migrated_url)
    assert await one.fault() == ""


async def test_no_schema_is_a_fault(database_url: str) -> None:
    """An empty database: the migration has not run yet."""
    database = Database(database_url)
    assert "run whatsapp-qr migrate" in await Schema(database).fault()
    await database.close()


async def test_a_newer_schema_is_none(database: Database) -> None:
    """While a new version is rolled out, or taken back, old processes go on: migrations only add."""
    await database.transact(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    assert await Schema(database).fault() == ""


@pytest.fixture
async def behind(migrated_sqlite: str) -> Settings:
    """The settings of a process whose database is a revision behind; its broker is away."""
    await bring_back(migrated_sqlite)
    return Settings(database_url=migrated_sqlite, amqp_url="amqp://127.0.0.1:1/")


@pytest.mark.parametrize("name", CONSUMERS)
async def test_readiness_tells(behind: Settings, name: str) -> None:
    """A pod on a database without its tables takes no work, lives, and says what to run."""
    app = getattr(apps, name)(behind)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
    async with app.router.lifespan_context(app), client as http:
        answer = (await http.get("/readyz")).json()
        assert (answer["checks"]["database"], answer["checks"]["schema"]) == (True, False)
        assert "run whatsapp-qr migrate" in answer["detail"]
        await asyncio.to_thread(migrations.upgrade, behind.database_url)
        answer = (await http.get("/readyz")).json()
        assert answer["checks"]["schema"]
        assert "detail" not in answer


async def test_a_newer_database_is_left_as_it_is(migrated_url: str, database: Database) -> None:
    """`migrate` of a version that is rolled back to succeeds, and changes nothing."""
    await database.transact(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    await asyncio.to_thread(migrations.upgrade_or_explain, migrated_url)
    [found] = await database.read(lambda tx: tx.execute(text("SELECT version_num FROM alembic_version")))
    assert found.version_num == "9999"


async def test_a_database_that_is_too_old_is_left_as_it_is(migrated_url: str, database: Database) -> None:
    """No migration leads from there any more: the sentence says what to do instead."""
    await database.transact(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '0003'")))
    with pytest.raises(ConfigurationError, match=r"schema 0003, too old .* Bring it to 0004 first, .* or start"):
        await asyncio.to_thread(migrations.upgrade_or_explain, migrated_url)


async def test_a_user_who_may_not_is_told_who_may(postgres_database: str) -> None:
    """The services' user owns no table; whoever runs the migration as that one reads what to do instead."""
    owner = Database(postgres_database)
    name = f"role_{postgres_database.rpartition('_')[2]}"
    for statement in (f"CREATE ROLE {name} LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC"):
        await owner.transact(lambda tx, statement=statement: tx.execute(text(statement)))
    url = postgres_database.replace("postgres@", f"{name}@")
    with pytest.raises(ConfigurationError, match="Run it as the user that owns the tables; nothing was changed"):
        await asyncio.to_thread(migrations.upgrade_or_explain, url)
    await owner.transact(lambda tx: tx.execute(text(f"DROP ROLE {name}")))
    await owner.close()


async def test_a_table_in_use_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, migrated_postgres: str) -> None:
    """Everybody would wait behind the migration: it gives up, changes nothing, and says to run it again."""
    await bring_back(migrated_postgres)
    database = Database(migrated_postgres)

    async def while_in_use(tx: AsyncSession) -> None:
        await tx.execute(text("SELECT * FROM sessions"))
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "LOCK_SECONDS", 0.1)
            with pytest.raises(ConfigurationError, match="nothing was changed: run it again when there is less load"):
                await asyncio.to_thread(migrations.upgrade_or_explain, migrated_postgres)

    await database.transact(while_in_use)
    await asyncio.to_thread(migrations.upgrade_or_explain, migrated_postgres)
    assert await Schema(database).fault() == ""
    await database.close()


async def test_something_in_the_way_is_named(postgres_database: str) -> None:
    """A table that no migration made: nothing is changed, and the sentence says which one it is."""
    database = Database(postgres_database)
    await database.transact(lambda tx: tx.execute(text("CREATE TABLE receipts (in_the_way int)")))
    with pytest.raises(
        ConfigurationError, match=r'"receipts" already exists.*no migration created.*nothing was changed'
    ):
        await asyncio.to_thread(migrations.upgrade_or_explain, postgres_database)
    await database.close()


async def test_a_database_that_does_not_exist_is_to_be_created(postgres_database: str) -> None:
    """The sentence says with what."""
    with pytest.raises(ConfigurationError, match="Create it first, for example with createdb"):
        await asyncio.to_thread(migrations.upgrade_or_explain, f"{postgres_database}_not")


async def test_the_pool_has_the_size_that_is_set(migrated_postgres: str) -> None:
    """The sum over all processes has to stay below PostgreSQL's max_connections: one more has to wait its turn."""
    database = Database(migrated_postgres, 3)
    begun: asyncio.Queue[int] = asyncio.Queue()
    release = asyncio.Event()

    async def wait(tx: AsyncSession, number: int) -> None:
        await tx.execute(text("SELECT 1"))
        begun.put_nowait(number)
        await release.wait()

    first = [asyncio.create_task(database.read(partial(wait, number=number), seconds=60)) for number in range(3)]
    assert {await begun.get() for _ in first} == {0, 1, 2}
    pool: Any = database._reader.pool
    assert (pool.checkedout(), pool.size(), pool.overflow()) == (3, 3, 0)
    fourth = asyncio.create_task(database.read(partial(wait, number=3), seconds=60))
    release.set()
    assert await begun.get() == 3
    await asyncio.gather(*first, fourth)
    await database.close()

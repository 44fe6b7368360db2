"""A migrated database of each kind for the tests of single parts."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.persistence import database as database_module
from service.persistence import engines, migrations, schema
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from tests.component.ingress_app import Ingress
from tests.component.rows import a_session
from tests.servers import Postgres
from tests.system import SECONDS


@pytest.fixture(scope="session")
async def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the present schema, to be copied."""
    file = tmp_path_factory.mktemp("template") / "whatsapp-qr.db"
    await asyncio.to_thread(migrations.upgrade, f"sqlite+aiosqlite:///{file}")
    return file


@pytest.fixture(scope="session")
async def postgres_template(shared_postgres: Postgres) -> AsyncIterator[str]:
    """The name of a PostgreSQL database with the present schema, to be copied."""
    url = await shared_postgres.create_database()
    await asyncio.to_thread(migrations.upgrade, url)
    yield url.rpartition("/")[2]
    await shared_postgres.drop_database(url)


@pytest.fixture
def migrated_sqlite(sqlite_database: str, sqlite_template: Path, tmp_path: Path) -> str:
    """URL of a SQLite file with the present schema."""
    shutil.copy(sqlite_template, tmp_path)
    return sqlite_database


@pytest.fixture
async def migrated_postgres(shared_postgres: Postgres, postgres_template: str) -> AsyncIterator[str]:
    """URL of a PostgreSQL database with the present schema."""
    url = await shared_postgres.create_database(template=postgres_template)
    yield url
    await shared_postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgres"])
def migrated_url(request: pytest.FixtureRequest) -> str:
    """URL of a database with the present schema: the test runs once on each kind."""
    url: str = request.getfixturevalue(f"migrated_{request.param}")
    return url


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A database with the present schema, as one process sees it."""
    database = Database(migrated_url)
    yield database
    await database.close()


@pytest.fixture
async def other_process(migrated_url: str) -> AsyncIterator[Database]:
    """The same database as another process sees it: with connections of its own."""
    database = Database(migrated_url)
    yield database
    await database.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything wait for the database: a machine that stands still for some seconds is no finding."""
    for module in ("commands", "reads", "streams"):
        monkeypatch.setattr(f"service.ingress.{module}.READ_SECONDS", SECONDS)
    for name in ("_BUSY_SECONDS", "_CONNECT_SECONDS", "_STATEMENT_SECONDS"):
        monkeypatch.setattr(engines, name, SECONDS)
    monkeypatch.setattr(database_module, "_TRANSACTION_SECONDS", SECONDS)
    monkeypatch.setattr(schema, "_LOOK_SECONDS", SECONDS)


@pytest.fixture
async def ingress(migrated_sqlite: str) -> AsyncIterator[Ingress]:
    ingress = Ingress(Database(migrated_sqlite))
    yield ingress
    await ingress.http.aclose()
    await ingress.database.close()


@pytest.fixture
async def session(ingress: Ingress) -> SessionRow:
    return await a_session(ingress.database)

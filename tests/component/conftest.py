"""A migrated database of each kind for the tests of single parts."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.persistence import migrations
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from tests.component.doors import Ingress
from tests.component.rows import a_session


@pytest.fixture
async def migrated_url(database_url: str) -> str:
    """URL of a database with the present schema."""
    await asyncio.to_thread(migrations.upgrade, database_url)
    return database_url


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


@pytest.fixture
async def ingress(sqlite_database: str) -> AsyncIterator[Ingress]:
    await asyncio.to_thread(migrations.upgrade, sqlite_database)
    ingress = Ingress(Database(sqlite_database))
    yield ingress
    await ingress.http.aclose()
    await ingress.database.close()


@pytest.fixture
async def session(ingress: Ingress) -> SessionRow:
    return await a_session(ingress.database)

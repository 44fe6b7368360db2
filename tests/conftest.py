"""Fixtures of all tests: real servers, and an empty broker and database for each test that asks for one."""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before any helper is imported: a failure in one says too what was seen.
pytest.register_assert_rewrite(*(f"tests.{path.stem}" for path in Path(__file__).parent.iterdir()))

from tests.servers import Broker, Postgres  # noqa: E402
from tests.system import NewSystem, System, running  # noqa: E402

hypothesis.settings.register_profile("without a time limit", deadline=None)
hypothesis.settings.load_profile("without a time limit")


NEW_SERVERS = os.environ.get("SERVERS") == "new"
"""Whether the servers are those of deploy/local/newer-servers.sh."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a test with the mark `one_database` to `make faults` on the other database: it takes long.

    With new servers only those tests run that use a server.
    """
    if NEW_SERVERS:
        left = [item for item in items if not _uses_a_server(item)]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    for item in items:
        mark = item.get_closest_marker("one_database")
        if mark is not None and mark.args[0] not in item.name.partition("[")[2]:
            item.add_marker(pytest.mark.long)


def _uses_a_server(item: pytest.Item) -> bool:
    names = set(getattr(item, "fixturenames", ()))
    kind = item.name.partition("[")[2]
    on_sqlite = "sqlite" in kind and not names & {"shared_broker", "breakable_broker", "new_system"}
    return not on_sqlite and bool(names & {"shared_broker", "shared_postgres", "breakable_broker", "database_url"})


@pytest.fixture(scope="session")
async def shared_broker() -> AsyncIterator[Broker]:
    """The RabbitMQ of all tests; none may stop it."""
    broker = Broker()
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


@pytest.fixture(scope="session")
async def shared_postgres() -> AsyncIterator[Postgres]:
    """The PostgreSQL of all tests; none may stop it."""
    postgres = Postgres()
    try:
        await postgres.start()
        yield postgres
    finally:
        await postgres.close()


@pytest.fixture(scope="session")
def amqp_url(shared_broker: Broker) -> str:
    """URL of the shared broker's default virtual host, which other tests use too."""
    return f"amqp://guest:guest@127.0.0.1:{shared_broker.port}/"


@pytest.fixture(scope="session")
def postgres_url(shared_postgres: Postgres) -> str:
    """URL of the shared PostgreSQL's maintenance database."""
    return shared_postgres.url


@pytest.fixture
async def clean_broker(shared_broker: Broker) -> str:
    """URL of an empty virtual host on the shared broker, of this test alone."""
    return await shared_broker.renew()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """SQLAlchemy URL of a new SQLite file."""
    return f"sqlite+aiosqlite:///{tmp_path / 'whatsapp-qr.db'}"


@pytest.fixture
async def postgres_database(shared_postgres: Postgres) -> AsyncIterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database, dropped after the test."""
    url = await shared_postgres.create_database()
    yield url
    await shared_postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy URL of an empty database: the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_database")
    return url


@pytest.fixture(scope="session")
def new_system(shared_broker: Broker, shared_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> NewSystem:
    """Runs the whole service on an empty broker and a new database, `sqlite` or `postgres`, with settings."""

    @asynccontextmanager
    async def run(kind: str = "sqlite", **settings: Any) -> AsyncIterator[System]:
        folder = tmp_path_factory.mktemp("system")
        postgres = await shared_postgres.create_database() if kind == "postgres" else None
        database = postgres or f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
        async with running(await shared_broker.renew(), database, folder, **settings) as system:
            yield system
        if postgres:
            await shared_postgres.drop_database(postgres)

    return run


@pytest.fixture(scope="session")
async def _second_broker() -> AsyncIterator[Broker]:
    broker = Broker()
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


@pytest.fixture
async def breakable_broker(_second_broker: Broker) -> AsyncIterator[Broker]:
    """A broker beside the shared one, on an empty virtual host, to stop and start; it runs again after the test."""
    await _second_broker.renew()
    yield _second_broker
    if not await _second_broker.answers():
        await _second_broker.start()


@pytest.fixture(scope="session")
async def _second_postgres() -> AsyncIterator[Postgres]:
    postgres = Postgres()
    try:
        await postgres.start()
        yield postgres
    finally:
        await postgres.close()


@pytest.fixture
async def breakable_postgres(_second_postgres: Postgres) -> AsyncIterator[Postgres]:
    """A PostgreSQL beside the shared one, to stop and start; it runs again after the test."""
    yield _second_postgres
    if not await _second_postgres.answers():
        await _second_postgres.start()


@dataclass
class Breakable:
    """A database that can be made unavailable."""

    url: str
    away: Callable[[], Any]


@pytest.fixture(params=["sqlite", "postgres"])
async def breakable_database(
    request: pytest.FixtureRequest, tmp_path: Path, breakable_postgres: Postgres
) -> AsyncIterator[Breakable]:
    """A database, and how to take it away for a while: PostgreSQL is stopped, a SQLite file is locked."""
    if request.param == "sqlite":
        file = tmp_path / "whatsapp-qr.db"

        @asynccontextmanager
        async def locked() -> AsyncIterator[None]:
            connection = sqlite3.connect(file, isolation_level=None, timeout=30)
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
            connection.close()

        yield Breakable(f"sqlite+aiosqlite:///{file}", locked)
        return
    url = await breakable_postgres.create_database()

    @asynccontextmanager
    async def stopped() -> AsyncIterator[None]:
        await breakable_postgres.stop()
        yield
        await breakable_postgres.start()

    yield Breakable(url, stopped)
    await breakable_postgres.drop_database(url)

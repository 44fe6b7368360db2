"""Alembic's entry: runs the migrations of one database in one transaction."""

import asyncio
from pathlib import Path

from alembic import context
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from service.persistence import tables  # noqa: F401  # fills the metadata
from service.persistence.engines import WRITE, begin_with
from service.persistence.migrations import LOCK_KEY, LOCK_SECONDS


def _migrate(connection: Connection) -> None:
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        # A transaction that waits for a table lock makes all others wait behind it: fail after a while instead.
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=is_sqlite)
    with context.begin_transaction():
        context.run_migrations()


async def _run() -> None:
    url = make_url(context.config.attributes["url"])
    if url.drivername.startswith("sqlite") and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        begin_with(engine, WRITE)  # one migration at a time, applied completely or not at all
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


asyncio.run(_run())

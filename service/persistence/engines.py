"""Engines: how a connection to each of the two databases is made and what it is told."""

import time
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

WRITE, READ = "BEGIN IMMEDIATE", "BEGIN"
_BUSY_SECONDS = 5
# SQLite asks for its write lock at growing intervals, and misses the short gaps between the transactions of a process
# that writes all the time. So each BEGIN gives up after this time, and is repeated.
_PATIENCE_MILLISECONDS = 5
APPLICATION = "whatsapp-qr"
_CONNECT_SECONDS = 3
_STATEMENT_SECONDS = 10
# A process that hangs in the middle of a transaction loses it, and its locks, before another takes its partitions.
_IDLE_MILLISECONDS = 10_000


def sqlite_engine(url: str, begin: str, *, pool_size: int) -> AsyncEngine:
    """Return an engine for a SQLite file whose transactions begin with a statement of ours."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        hide_parameters=True,  # an error is logged, and they are what customers wrote
        connect_args={"timeout": _BUSY_SECONDS},
    )
    begin_with(engine, begin)
    return engine


def begin_with(engine: AsyncEngine, statement: str) -> None:
    """Let SQLite's transactions begin with a statement of ours: its driver begins late, and never before DDL.

    The migration, which is alone, turns the write-ahead log on: processes that start together would be in each other's
    way.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        if statement != READ:
            cursor.execute(f"PRAGMA busy_timeout={_PATIENCE_MILLISECONDS}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                connection.exec_driver_sql(statement)
            except OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            else:
                return


def postgres_engine(url: str, pool: int) -> AsyncEngine:
    """Return an engine for PostgreSQL with so many connections, at most."""
    engine = create_async_engine(
        url,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=10,
        pool_use_lifo=True,  # the server has the plans of the last one's statements ready, and its cache is warm
        hide_parameters=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _STATEMENT_SECONDS,
            "server_settings": {
                "application_name": APPLICATION,
                "idle_in_transaction_session_timeout": str(_IDLE_MILLISECONDS),
            },
        },
    )

    # The pool's own ping asks the server three times before each transaction. A connection that the server has closed
    # is known to be; one that has fallen silent is found by the time limit of the first statement.
    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, *_: object) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine

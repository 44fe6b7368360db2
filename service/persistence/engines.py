"""Engines: connections to each of the two databases and their settings."""

import time
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

WRITE, READ = "BEGIN IMMEDIATE", "BEGIN"
_BUSY_SECONDS = 5
# SQLite polls for its write lock at growing intervals, and misses the short gaps between the transactions of a process
# that writes continuously. So each BEGIN gives up after this time, and is repeated.
_PATIENCE_MILLISECONDS = 5
APPLICATION = "whatsapp-qr"
_CONNECT_SECONDS = 3
_STATEMENT_SECONDS = 10
# A process that hangs during a transaction loses it, and its locks, before another process takes its partitions.
_IDLE_MILLISECONDS = 10_000


def sqlite_engine(url: str, begin: str, *, pool_size: int) -> AsyncEngine:
    """Return an engine for a SQLite file whose transactions begin with the given statement."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        hide_parameters=True,  # errors are logged, and the parameters contain customers' messages
        connect_args={"timeout": _BUSY_SECONDS},
    )
    begin_with(engine, begin)
    return engine


def begin_with(engine: AsyncEngine, statement: str) -> None:
    """Begin SQLite's transactions with the given statement: the driver's own BEGIN comes late, and never before DDL.

    Also turn the write-ahead log on. The migration, which runs alone, does it first: processes that start together
    would block each other.
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
        pool_use_lifo=True,  # the most recently used connection has prepared statements and a warm cache
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

    # The pool's own ping needs three round trips before each transaction. A connection that the server has closed is
    # detected here; a dead connection is detected by the time limit of its first statement.
    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, *_: object) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine

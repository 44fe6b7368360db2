"""Transactions: engines, the database's clock, and the translation of driver errors."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, cast

import structlog
from opentelemetry.trace import SpanKind
from sqlalchemy import ColumnElement, func, literal, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlmodel import SQLModel

from service import tracing
from service.errors import DatabaseUnavailable
from service.metrics import TRANSACTION_SECONDS
from service.persistence.columns import UtcDateTime
from service.persistence.engines import APPLICATION, READ, WRITE, postgres_engine, sqlite_engine
from service.tasks import let_end, within

log = structlog.get_logger()

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]

_POOL_SIZE = 10
_KEPT_FREE = 2  # connections to PostgreSQL, for urgent work
_SQLITE_READERS = 4
_CLOSE_SECONDS = 6.0
# On a dead connection the driver waits for ever for the end of a statement that was abandoned: a transaction that takes
# longer is cancelled, and its connection is closed.
_TRANSACTION_SECONDS = 12.0

# SQLSTATE classes and codes of transient errors, which end without action or by an operator's: connection, resources,
# operator intervention, system, rollback (deadlock, serialization), password; lock not available, read-only standby,
# idle for too long in a transaction, no such database; a table, column or permission that a pending migration adds.
_PASSING_CLASSES = frozenset({"08", "53", "57", "58", "40", "28"})
_PASSING_CODES = frozenset({"55P03", "25006", "25P03", "3D000", "42P01", "42703", "42501"})

_SECONDS = {kind: TRANSACTION_SECONDS.labels(kind) for kind in ("read", "write")}


class Database:
    """A database with transactions that are committed completely or not at all.

    Args:
        pool: connections to PostgreSQL, at most; SQLite has its own few.
    """

    def __init__(self, url: str, pool: int = _POOL_SIZE) -> None:
        is_sqlite = url.startswith("sqlite")
        if is_sqlite:
            # One writer per process: SQLite allows only one, and a queue here is fairer than its busy loop.
            self._writer = sqlite_engine(url, WRITE, pool_size=1)
            self._reader = sqlite_engine(url, READ, pool_size=_SQLITE_READERS)
            self._turns = {self._writer: asyncio.Semaphore(1), self._reader: asyncio.Semaphore(_SQLITE_READERS - 1)}
        else:
            # Each statement has its own snapshot anyway, so BEGIN and COMMIT around reads would have no effect.
            self._writer = postgres_engine(url, pool)
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")
            self._turns = dict.fromkeys((self._writer, self._reader), asyncio.Semaphore(max(1, pool - _KEPT_FREE)))
        self._reading: set[asyncio.Task[Any]] = set()
        self._longest = None if is_sqlite else _TRANSACTION_SECONDS  # SQLite's driver must never be cancelled

    async def transact(self, work: Work[T], *, urgent: bool = False) -> T:
        """Run `work` in one transaction and commit it.

        Args:
            work: the operations of the transaction.
            urgent: do not wait behind the transactions of a backlog: they are many, and a heartbeat must not be late.

        Raises:
            DatabaseUnavailable: as far as is known, nothing was committed; running it again must do no harm.
        """
        async with self._turn(self._writer, urgent=urgent):
            # A cancelled driver call may keep SQLite's lock on the whole file.
            return await let_end(asyncio.create_task(self._observed("write", self._writer, work)))

    def _turn(self, engine: AsyncEngine, *, urgent: bool) -> AbstractAsyncContextManager[None]:
        # In the pool's own queue, hundreds of lanes would reach its time limit, as if the database were unavailable.
        return nullcontext() if urgent else self._turns[engine]

    async def read(self, work: Work[T], *, seconds: float | None = None) -> T:
        """Run `work`, which only reads; with a time limit it is urgent.

        Raises:
            DatabaseUnavailable: no answer, or none within `seconds`.
        """
        reading = asyncio.create_task(self._read(work, urgent=seconds is not None))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        try:
            done, _ = await asyncio.wait({reading}, timeout=seconds)
        except asyncio.CancelledError:
            reading.cancel()
            raise
        if done:
            return reading.result()
        # Do not wait for its end: on a dead connection that takes as long as a transaction may.
        reading.cancel()
        raise DatabaseUnavailable(f"the database did not answer within {seconds} s")

    async def _read(self, work: Work[T], *, urgent: bool) -> T:
        async with self._turn(self._reader, urgent=urgent):
            return await self._observed("read", self._reader, work)

    async def _observed(self, kind: Literal["read", "write"], engine: AsyncEngine, work: Work[T]) -> T:
        began = time.perf_counter()

        def describe() -> tracing.Attributes:
            return {"db.system.name": engine.dialect.name, "db.operation.name": kind}

        try:
            with tracing.part(f"{kind} transaction", SpanKind.CLIENT, describe, current=False):
                running = _run(engine, work)
                return await (running if self._longest is None else _cut_off(running, self._longest))
        finally:
            _SECONDS[kind].observe(time.perf_counter() - began)

    async def ping(self) -> None:
        """Check that the database answers.

        Raises:
            DatabaseUnavailable: it does not.
        """

        async def select_one(tx: AsyncSession) -> None:
            await tx.execute(text("SELECT 1"))

        await self.read(select_one, seconds=2)

    async def close(self) -> None:
        """Close all connections; if the database does not answer, they stay open until the process ends."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._writer.dispose()
                await self._reader.dispose()
        except TimeoutError:
            log.warning("database_silent_while_closing")


def on_sqlite(tx: AsyncSession) -> bool:
    """Return whether a transaction runs on SQLite; otherwise it runs on PostgreSQL."""
    return tx.get_bind().dialect.name == "sqlite"


def clock(tx: AsyncSession, offset: timedelta = timedelta()) -> ColumnElement[datetime]:
    """Return the present time, shifted by `offset`, as an expression.

    It is the database's time, so that processes with wrong clocks agree; SQLite implies one machine and one clock.
    """
    if on_sqlite(tx):
        return literal(datetime.now(UTC) + offset, UtcDateTime())
    return func.clock_timestamp() + literal(offset)


async def present(tx: AsyncSession, offset: timedelta = timedelta()) -> datetime:
    """Return the time of `clock`."""
    return (await tx.execute(select(clock(tx, offset)))).scalar_one()


def upsert(tx: AsyncSession, table: type[SQLModel]) -> postgresql.Insert:
    """Return an INSERT that supports ON CONFLICT, which has the same syntax in both dialects."""
    return postgresql.insert(table) if not on_sqlite(tx) else cast("postgresql.Insert", sqlite.insert(table))


async def insert_new(tx: AsyncSession, table: type[SQLModel], **values: Any) -> bool:
    """Insert a row unless one with the same key exists; return whether it was inserted."""
    # The other columns have their defaults.
    given = {name: value for name, value in values.items() if value is not None}
    result = await tx.execute(upsert(tx, table).values(given).on_conflict_do_nothing())
    return bool(result.rowcount)  # type: ignore[attr-defined]


async def end_hanging(tx: AsyncSession, seconds: float) -> int:
    """End transactions that have waited too long for the next statement of one of our processes; return how many.

    A process that hangs between the parts of one statement keeps its row locks, and before version 17 no time limit of
    PostgreSQL covers that. A process that loses a transaction this way retries it. On SQLite this does nothing: the
    write lock cannot be taken from the process that has it.
    """
    if on_sqlite(tx):
        return 0
    hanging = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = current_user AND application_name = :name AND wait_event = 'ClientRead'"
        " AND xact_start < clock_timestamp() - make_interval(secs => :seconds)"
    )
    return int((await tx.execute(hanging, {"name": APPLICATION, "seconds": seconds})).scalar_one())


async def _cut_off(running: Coroutine[Any, Any, T], seconds: float) -> T:
    try:
        # A process that was suspended may meet an error, a time limit and a lost connection at once. Then the driver
        # may lose one cancellation, and a caller that awaited it directly would wait for ever.
        return await within(seconds, running)
    except TimeoutError as error:
        raise DatabaseUnavailable(f"the database is not available: it took longer than {seconds} s") from error


async def _run(engine: AsyncEngine, work: Work[T]) -> T:
    try:
        async with AsyncSession(engine, expire_on_commit=False) as tx, tx.begin():
            return await work(tx)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        if (message := _passing(error)) is None:
            raise
        raise DatabaseUnavailable(message) from error


def _passing(error: Exception) -> str | None:
    """Return the description of a transient error; None if the error is the statement's own."""
    match error:
        case DBAPIError() if not _passes(error):
            return None
        case DBAPIError() if _lacks_tables(error):
            return "the database lacks tables or columns: run whatsapp-qr migrate"
        case DBAPIError(orig=sqlite3.Error() as reason):  # SQLite's texts contain no values; those of others may
            return f"the database is not available: {reason}"
        case DBAPIError():
            return f"the database is not available: {type(error.orig).__name__}"
        case PoolTimeoutError() | OSError() | TimeoutError():
            return f"the database is not available: {type(error).__name__}"
    lost = isinstance(error.__cause__, OSError)
    return f"the database is not available: {type(error.__cause__).__name__}" if lost else None


def _lacks_tables(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in {"42P01", "42703"} or "no such " in str(error.orig)


def _passes(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if state is None:
        # SQLite: locked, busy, disk full, I/O error; with asyncpg: a lost connection.
        return type(error).__name__ in {"OperationalError", "InterfaceError"}
    return state[:2] in _PASSING_CLASSES or state in _PASSING_CODES

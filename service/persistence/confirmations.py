"""Collects the outputs that the broker has confirmed, and stores the confirmations, many in one transaction.

They are stored with a delay: after a crash in between, an output is published once more, under the same id.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Integer, Update, bindparam, case, func, true, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from service.domain.sending import backoff
from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, SessionRow
from service.tasks import Loop, within

log = structlog.get_logger()

_LAG_SECONDS = 0.2
_MOST = 10_000
_AT_ONCE = 100
"""Rows that one transaction locks, at most: a handler that needs one of them waits until it ends."""
_NO_JOB = -1


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A confirmed output of a row: the event of a version, or the job of a message.

    Args:
        key: the row's primary key.
        version: of the event.
        place: for a job, the message's lane number, 0 outside of a lane: a retried message needs another job.
    """

    table: type[SQLModel]
    key: tuple[UUID | str, ...]
    version: int = 0
    place: int = _NO_JOB


def _statement(table: type[SQLModel]) -> Update:
    """Return the statement that stores confirmations for many rows of a table; it leaves `changed_at` as it is."""
    columns, primary = table.__table__.c, table.__table__.primary_key  # type: ignore[attr-defined]
    told, version = columns.told_version, bindparam("reached", type_=Integer)
    values: dict[str, Any] = {"told_version": case((told < version, version), else_=told)}
    if "changed_at" in columns:
        values["changed_at"] = columns.changed_at
    if "handed_over" in columns:
        same = func.coalesce(columns.lane_number, 0) == bindparam("place", type_=Integer)
        values["handed_over"] = case((same, true()), else_=columns.handed_over)
    where = (column == bindparam(f"key{number}") for number, column in enumerate(primary))
    return update(table).where(*where).values(values)


# In the order in which rows are locked.
_STATEMENTS = {table: _statement(table) for table in (SessionRow, ConversationRow, MessageRow, CommandRow)}


def merged(marks: Iterable[Confirmation]) -> list[Confirmation]:
    """Return one confirmation for each row, sorted by its key: the order in which rows are locked."""
    rows: dict[Any, Confirmation] = {}
    for mark in marks:
        known = rows.get((mark.table, mark.key), mark)
        most = max(known.version, mark.version), max(known.place, mark.place)
        rows[mark.table, mark.key] = Confirmation(mark.table, mark.key, *most)
    return sorted(rows.values(), key=lambda mark: [str(part) for part in mark.key])


def _parameters(mark: Confirmation, table: type[SQLModel]) -> dict[str, Any]:
    job = {"place": mark.place} if table is MessageRow else {}
    return {"reached": mark.version, **job, **{f"key{number}": part for number, part in enumerate(mark.key)}}


async def _write(tx: AsyncSession, *, rows: Sequence[Confirmation]) -> None:
    connection = await tx.connection()
    for table, statement in _STATEMENTS.items():
        if parameters := [_parameters(row, table) for row in rows if row.table is table]:
            await connection.execute(statement, parameters)


class Confirmations(Loop):
    """Collects confirmations and stores them shortly after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._confirmed: set[Confirmation] = set()
        self._some = asyncio.Event()

    def note(self, confirmation: Confirmation) -> None:
        """Record that an output is confirmed."""
        if len(self._confirmed) >= _MOST:
            self._confirmed.clear()  # they cannot be stored: their outputs are published once more
        self._confirmed.add(confirmation)
        self._some.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._some.wait()
            await asyncio.sleep(backoff(failures) if failures else _LAG_SECONDS)
            try:
                await self.flush()
                failures = 0
            except Exception as error:  # any failure is retried
                failures += 1
                foreseen = isinstance(error, DatabaseUnavailable)
                log.warning("confirmations_not_written", reason=str(error), exc_info=None if foreseen else error)

    async def flush(self) -> None:
        """Store the collected confirmations now, without the delay.

        Raises:
            DatabaseUnavailable: they are stored later.
        """
        self._some.clear()
        waiting = list(self._confirmed)
        try:
            for first in range(0, len(waiting), _AT_ONCE):
                portion = waiting[first : first + _AT_ONCE]
                await self._database.transact(partial(_write, rows=merged(portion)), urgent=True)
                self._confirmed.difference_update(portion)
        except BaseException:
            self._some.set()
            raise

    async def settle(self, seconds: float) -> None:
        """Store the remaining confirmations, if the database is available soon."""
        try:
            await within(seconds, self.flush())
        except Exception as error:  # noqa: BLE001  # outputs whose confirmations are not stored are published once more
            log.warning("confirmations_not_written", reason=str(error))

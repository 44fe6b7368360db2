"""Remembers which outputs the broker has confirmed, and writes it down, many in one transaction.

It may lag: after a crash in between an output is published once more, under the same id.
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
"""Rows that one transaction locks, at most: a handler that needs one of them waits for its end."""
_NO_JOB = -1


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What is known to be confirmed of a row: the event of a version, or the job of a message.

    Args:
        key: the row's primary key.
        version: of the event.
        place: for a job, where the message stood in its lane, 0 outside of one: tried again, it needs another job.
    """

    table: type[SQLModel]
    key: tuple[UUID | str, ...]
    version: int = 0
    place: int = _NO_JOB


def _statement(table: type[SQLModel]) -> Update:
    """Return the statement that notes what is confirmed of many rows of a table; no time of a change moves by that."""
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
    """Return one mark for each row, sorted by its key: the order in which rows are locked."""
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
    """Collects what is confirmed and writes it down shortly after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._confirmed: set[Confirmation] = set()
        self._some = asyncio.Event()

    def note(self, confirmation: Confirmation) -> None:
        """Note that an output is confirmed."""
        if len(self._confirmed) >= _MOST:
            self._confirmed.clear()  # they cannot be written: what is forgotten is published once more
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
            except Exception as error:  # whatever it is, it is tried again
                failures += 1
                foreseen = isinstance(error, DatabaseUnavailable)
                log.warning("confirmations_not_written", reason=str(error), exc_info=None if foreseen else error)

    async def flush(self) -> None:
        """Write what is collected now, without the delay.

        Raises:
            DatabaseUnavailable: it is written later.
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
        """Write what is left, if the database lets us soon."""
        try:
            await within(seconds, self.flush())
        except Exception as error:  # noqa: BLE001  # whatever it is, what is not written is told once more
            log.warning("confirmations_not_written", reason=str(error))

"""Remembers which outputs the broker has confirmed, and writes it down, many in one transaction.

It may lag: after a crash in between an output is published once more, under the same id.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import structlog
from sqlalchemy import Boolean, Update, and_, bindparam, case, or_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.domain.sending import backoff
from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, SessionRow
from service.tasks import end

log = structlog.get_logger()

_LAG_SECONDS = 0.05
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class SessionTold:
    """The event of a version of a session is confirmed."""

    row_id: UUID
    version: int
    statement: ClassVar[Update] = (
        update(SessionRow)
        .where(col(SessionRow.id) == bindparam("row"), col(SessionRow.announced_version) < bindparam("reached"))
        .values(announced_version=bindparam("reached"))
    )

    def parameters(self) -> dict[str, Any]:
        """Return what the statement needs."""
        return {"row": self.row_id, "reached": self.version}


@dataclass(frozen=True, slots=True)
class ConversationTold:
    """conversation.started is confirmed."""

    row_id: UUID
    statement: ClassVar[Update] = (
        update(ConversationRow).where(col(ConversationRow.id) == bindparam("row")).values(announced=True)
    )

    def parameters(self) -> dict[str, Any]:
        """Return what the statement needs."""
        return {"row": self.row_id}


@dataclass(frozen=True, slots=True)
class CommandTold:
    """The event that answers a command is confirmed."""

    row_id: UUID
    command_id: str
    statement: ClassVar[Update] = (
        update(CommandRow)
        .where(col(CommandRow.chatbot_id) == bindparam("row"), col(CommandRow.command_id) == bindparam("command"))
        .values(told=True)
    )

    def parameters(self) -> dict[str, Any]:
        """Return what the statement needs."""
        return {"row": self.row_id, "command": self.command_id}


_SAME_PLACE = or_(
    col(MessageRow.lane_number) == bindparam("place"),
    col(MessageRow.lane_number).is_(None),
)


@dataclass(frozen=True, slots=True)
class MessageTold:
    """The event of a version of a message is confirmed, or its job is, or both."""

    row_id: UUID
    version: int = 0
    place: int | None = None
    """Where it stood in its lane when its job was made: tried again, it needs another job."""
    statement: ClassVar[Update] = (
        update(MessageRow)
        .where(col(MessageRow.id) == bindparam("row"))
        .values(
            told_version=case(
                (col(MessageRow.told_version) < bindparam("reached"), bindparam("reached")),
                else_=col(MessageRow.told_version),
            ),
            handed_over=case(
                (and_(_SAME_PLACE, bindparam("is_job", type_=Boolean)), True), else_=col(MessageRow.handed_over)
            ),
            changed_at=col(MessageRow.changed_at),
        )
    )

    def parameters(self) -> dict[str, Any]:
        """Return what the statement needs."""
        is_job = self.place is not None
        return {"row": self.row_id, "reached": self.version, "place": self.place or 0, "is_job": is_job}


Told = SessionTold | ConversationTold | CommandTold | MessageTold
_IN_LOCK_ORDER: tuple[type[Told], ...] = (SessionTold, ConversationTold, MessageTold, CommandTold)


def merged(marks: Iterable[Told]) -> dict[type[Told], list[dict[str, Any]]]:
    """Return the parameters of each statement, one set for each row, sorted by the row: the order in which it locks."""
    rows: dict[type[Told], dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)
    for mark in marks:
        given = mark.parameters()
        known = rows[type(mark)].setdefault((str(given["row"]), given.get("command", "")), given)
        for name in known.keys() & {"reached", "place", "is_job"}:
            known[name] = max(known[name], given[name])
    return {kind: [given for _, given in sorted(rows[kind].items())] for kind in _IN_LOCK_ORDER}


class Marks:
    """Collects what is confirmed and writes it down shortly after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._confirmed: set[Told] = set()
        self._some = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def note(self, told: Told) -> None:
        """Note that an output is confirmed."""
        if len(self._confirmed) >= _MOST:
            self._confirmed.clear()  # they cannot be written: what is forgotten is published once more
        self._confirmed.add(told)
        self._some.set()

    def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._keep_writing())

    @property
    def alive(self) -> bool:
        """Whether its task is there."""
        return self._writing is not None and not self._writing.done()

    async def _keep_writing(self) -> None:
        failures = 0
        while True:
            await self._some.wait()
            await asyncio.sleep(backoff(failures) if failures else _LAG_SECONDS)
            try:
                await self.flush()
            except DatabaseUnavailable as error:
                failures += 1
                log.warning("confirmations_not_written", reason=error.detail)
            except Exception:
                failures += 1
                log.exception("confirmations_not_written")
            else:
                failures = 0

    async def flush(self) -> None:
        """Write what is collected now, without the delay.

        Raises:
            DatabaseUnavailable: it is written later.
        """
        self._some.clear()
        writing = set(self._confirmed)
        if not writing:
            return

        async def mark(tx: AsyncSession) -> None:
            connection = await tx.connection()
            for kind, rows in merged(writing).items():
                if rows:
                    await connection.execute(kind.statement, rows)

        try:
            await self._database.transact(mark, urgent=True)
        except BaseException:
            self._some.set()
            raise
        self._confirmed -= writing

    async def close(self) -> None:
        """Write what is left, if the database lets us."""
        if self._writing is not None:
            await end([self._writing])
        try:
            await self.flush()
        except DatabaseUnavailable as error:
            log.warning("confirmations_not_written", reason=error.detail)

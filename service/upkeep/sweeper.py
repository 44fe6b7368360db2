"""The sweeper: what our own rows say is unfinished, and no running work explains, is done after all.

Everything goes out under the ids that it would have had, so that doing it twice shows nobody anything new.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from service import metrics
from service.consumers.announcing import Announcer
from service.errors import Unavailable
from service.messaging.topology import SENDS
from service.persistence import lanes, sweeping
from service.persistence.database import Database
from service.persistence.sweeping import BATCH, Head
from service.persistence.tables import SessionRow
from service.privacy import shown
from service.upkeep.watching import Watch
from whatsapp_qr_contracts.partitions import chatbot_key, partition_of

log = structlog.get_logger()
T = TypeVar("T")
Find = Callable[[Database, AsyncSession, timedelta], Awaitable[Sequence[T]]]

OVERDUE_SECONDS = 10.0
"""How much later than it was meant to a lane may be looked at."""
_ENOUGH_TROUBLE = 3
"""Rings that fail before the rest waits for the next run: each may take seconds."""
STILL_SECONDS = 3.0
"""A drain touches the first message of its lane more often than this."""


@dataclass
class Sweeper:
    """A duty of one process at a time.

    Args:
        database: the rows.
        announcer: publishes.
        age: how long something may be unfinished; also the least time between two rings for one session.
    """

    database: Database
    announcer: Announcer
    age: timedelta
    _heads: Watch = field(default_factory=Watch)
    _rung: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Look at everything once.

        Raises:
            Unavailable: the database or the broker is away; the next run goes on.
        """
        start = partial(self.announcer.conversation, caused_by=str(uuid7()))
        trouble: Unavailable | None = None
        for step in (
            self._expire,
            self._forget,
            partial(self._redrive, "unhanded", sweeping.unhanded, self.announcer.received),
            partial(self._redrive, "unannounced_status", sweeping.unannounced_statuses, self.announcer.status),
            partial(self._redrive, "unannounced_conversation", sweeping.unannounced_conversations, start),
            partial(self._redrive, "unannounced_session", sweeping.unannounced_sessions, self._announce_session),
            self._ring,
        ):
            try:
                await step()
            except Unavailable as error:  # one queue may be full, and the others not
                trouble = trouble or error
        if trouble is not None:
            raise trouble

    async def _expire(self) -> None:
        while True:
            expired = await self.database.transact(partial(sweeping.expire, self.database))
            for message in expired:
                metrics.SENDS.labels("expired").inc()
                await self.announcer.status(message)
            if len(expired) < BATCH:
                return

    async def _redrive(self, kind: str, find: Find[T], do: Callable[[T], Awaitable[object]]) -> None:
        done, more = 0, True
        while more:
            found = await self.database.read(lambda tx: find(self.database, tx, self.age))
            did = sum([await self._try(kind, row, do) for row in found])
            done += did
            # Where it cannot be written down the same rows would be found again.
            more = await self.announcer.confirmations.flush() and did == BATCH
        if done:
            log.warning("redriven", kind=kind, count=done)

    async def _try(self, kind: str, row: T, do: Callable[[T], Awaitable[object]]) -> bool:
        try:
            await do(row)
        except Unavailable:
            raise
        except Exception:
            log.exception("not_redriven", kind=kind, row=str(getattr(row, "id", "")))  # the others come all the same
            return False
        metrics.REDRIVEN.labels(kind).inc()
        return True

    async def _announce_session(self, session: SessionRow) -> None:
        await self.announcer.session(session, caused_by=str(uuid7()))

    async def _ring(self) -> None:
        heads = await self.database.read(partial(sweeping.heads, self.database))
        still = self._heads.look({head.session_id: (head.message_id, head.changed_at) for head in heads})
        at, seconds = time.monotonic(), self.age.total_seconds()
        self._rung = {session_id: rung for session_id, rung in self._rung.items() if at - rung < seconds}
        kinds = {head.session_id: forgotten(head, still[head.session_id], seconds) for head in heads}
        due = [head for head in heads if kinds[head.session_id] and head.session_id not in self._rung]
        if not due:
            return
        waiting = await self.announcer.publisher.waiting(SENDS)
        trouble: list[Unavailable] = []
        for head in due[:BATCH]:
            kind = kinds[head.session_id]
            if kind == "pending" and waiting[partition_of(chatbot_key(head.chatbot_id), len(waiting))]:
                continue  # its doorbell may be among them
            try:
                rung = await self._try(kind, head, self._ring_for)
            except Unavailable as error:  # one partition may be full, and the others not
                trouble.append(error)
                if len(trouble) == _ENOUGH_TROUBLE:
                    break
                continue
            if rung:
                self._rung[head.session_id] = at
                log.warning("redriven", kind=kind, session_id=shown(head.session_id))
        if trouble:
            raise trouble[0]

    async def _ring_for(self, head: Head) -> None:
        first = await self.database.read(lambda tx: lanes.first_pending(tx, head.session_id))
        if first is not None:
            await self.announcer.ring(first, ring_id=str(uuid7()))

    async def _forget(self) -> None:
        while await self.database.transact(partial(sweeping.forget_old, self.database)) >= BATCH:
            pass


def forgotten(head: Head, still: float, seconds: float) -> str:
    """Return the kind of a lane that nobody works on, or nothing where somebody does or will.

    Args:
        head: the first message of the lane.
        still: seconds for which it has looked the same.
        seconds: how long it may be left alone where nobody means to come back to it.
    """
    if head.claimed or still < STILL_SECONDS:
        return ""
    if head.overdue is not None:
        return "drain" if head.overdue >= OVERDUE_SECONDS else ""
    return "pending" if head.idle >= seconds else ""

"""Heartbeat rows: who is alive and what it is active on. They only balance; the broker decides who is active."""

from collections.abc import Collection
from datetime import timedelta

import structlog
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.domain.sharing import Peer
from service.persistence import deployment
from service.persistence.database import Database, end_hanging, insert_new, present
from service.persistence.tables import ProcessRow

# A period and a half, so that one late beat at most makes a process look dead, which costs a needless look.
_LIVE_PERIODS = 1.5
_KEPT_PERIODS = 10
_CUT_OFF = " (cut off)"
HANGING_SECONDS = 15.0
"""Age of a transaction whose process hangs: longer than any statement may take."""

log = structlog.get_logger()


def kept_seconds(period: float) -> float:
    """Return for how long a process may still be there that has not deleted its row."""
    return period * _KEPT_PERIODS


class Heartbeats:
    """The rows of the processes that consume one queue, seen from one of them.

    Args:
        process_id: of this process.
        kind: the queue.
        period: seconds between two beats.
        partitions: the value of PARTITIONS in this process.
    """

    def __init__(self, database: Database, process_id: str, kind: str, period: float, *, partitions: int) -> None:
        self._database = database
        self._id = process_id
        self._kind = kind
        self._partitions = partitions
        self._live = timedelta(seconds=period * _LIVE_PERIODS)
        self._kept = timedelta(seconds=kept_seconds(period))

    async def beat(self, active: Collection[int]) -> list[Peer]:
        """Tell that this process lives and what it is active on; return the other live ones.

        Raises:
            DatabaseUnavailable: it may have been told.
            ConfigurationError: the database has another number of partitions; this process must not consume.
        """

        async def work(tx: AsyncSession) -> list[Peer]:
            await deployment.agree(tx, self._partitions)
            at = await present(tx)
            if ended := await end_hanging(tx, HANGING_SECONDS):
                log.warning("hanging_transactions_ended", count=ended)
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id) == self._id))
            await insert_new(tx, ProcessRow, id=self._id, kind=self._kind, partitions=sorted(active), seen_at=at)
            # Rows of the dead go; one that another process deletes at this moment is not waited for.
            dead = select(col(ProcessRow.id)).where(col(ProcessRow.seen_at) < at - self._kept)
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id).in_(dead.with_for_update(skip_locked=True))))
            others = select(ProcessRow).where(
                col(ProcessRow.kind) == self._kind,
                col(ProcessRow.id) != self._id,
                col(ProcessRow.seen_at) > at - self._live,
            )
            return [Peer(row.id, frozenset(row.partitions)) for row in await tx.scalars(others)]

        return await self._database.transact(work, urgent=True)

    async def stand_by(self) -> None:
        """Tell that this process lives and takes nothing: the others share without it, and PARTITIONS must not change.

        Also tells whether the database can be written.

        Raises:
            DatabaseUnavailable: it cannot.
            ConfigurationError: the database has another number of partitions; this process must not consume.
        """

        async def work(tx: AsyncSession) -> None:
            await deployment.agree(tx, self._partitions)
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id) == self._id))
            kind = f"{self._kind}{_CUT_OFF}"
            await insert_new(tx, ProcessRow, id=self._id, kind=kind, partitions=[], seen_at=await present(tx))

        await self._database.transact(work, urgent=True)

    async def remove(self) -> None:
        """Delete the row of this process: it ends.

        Raises:
            DatabaseUnavailable: it may still be there.
        """

        async def work(tx: AsyncSession) -> None:
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id) == self._id))

        await self._database.transact(work, urgent=True)

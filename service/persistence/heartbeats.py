"""Heartbeat rows of live processes and their active partitions. They only balance; the broker decides."""

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

# One and a half periods: one late beat at most makes a process look dead, which costs an unnecessary look.
_LIVE_PERIODS = 1.5
_KEPT_PERIODS = 10
_CUT_OFF = " (cut off)"
HANGING_SECONDS = 15.0
"""Age in seconds of a transaction whose process hangs: longer than any statement may take."""

log = structlog.get_logger()


def kept_seconds(period: float) -> float:
    """Return for how many seconds a process that has not deleted its row may still run."""
    return period * _KEPT_PERIODS


class Heartbeats:
    """The rows of the processes that consume one queue, as one of them uses them.

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
        """Record that this process is live and its active partitions; return the other live processes.

        Raises:
            DatabaseUnavailable: it may have been recorded.
            ConfigurationError: the database has another number of partitions; this process must not consume.
        """

        async def work(tx: AsyncSession) -> list[Peer]:
            await deployment.agree(tx, self._partitions)
            at = await present(tx)
            if ended := await end_hanging(tx, HANGING_SECONDS):
                log.warning("hanging_transactions_ended", count=ended)
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id) == self._id))
            await insert_new(tx, ProcessRow, id=self._id, kind=self._kind, partitions=sorted(active), seen_at=at)
            # Delete rows of ended processes; do not wait for a row that another process deletes at this moment.
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
        """Record that this process is live without partitions: others share without it; PARTITIONS must not change.

        This also checks that the database can be written.

        Raises:
            DatabaseUnavailable: it cannot be written.
            ConfigurationError: the database has another number of partitions; this process must not consume.
        """

        async def work(tx: AsyncSession) -> None:
            await deployment.agree(tx, self._partitions)
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id) == self._id))
            kind = f"{self._kind}{_CUT_OFF}"
            await insert_new(tx, ProcessRow, id=self._id, kind=kind, partitions=[], seen_at=await present(tx))

        await self._database.transact(work, urgent=True)

    async def remove(self) -> None:
        """Delete the row of this process: it is stopping.

        Raises:
            DatabaseUnavailable: the row may still exist.
        """

        async def work(tx: AsyncSession) -> None:
            await tx.execute(delete(ProcessRow).where(col(ProcessRow.id) == self._id))

        await self._database.transact(work, urgent=True)

"""The number of partitions that all processes of a deployment must have. It is stored in the database."""

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.errors import ConfigurationError
from service.persistence.database import insert_new, present
from service.persistence.tables import DeploymentRow, ProcessRow

PARTITIONS_DIFFER = "partitions_differ"
CONSUMERS_LIVE = "consumers_live"


async def agree(tx: AsyncSession, partitions: int) -> None:
    """Check that the database has this number of partitions; the first process stores it.

    The number cannot change before the transaction ends.

    Raises:
        ConfigurationError: the database has another one.
    """
    found = await _number(tx, read=True)
    if found is None:
        await insert_new(tx, DeploymentRow, id=1, partitions=partitions)
        found = await _number(tx, read=True)
    _compare(partitions, found)


async def check(tx: AsyncSession, partitions: int) -> None:
    """Check the same without writing; if no number is stored yet, any is accepted.

    Raises:
        ConfigurationError: the database has another one.
    """
    _compare(partitions, (await tx.scalars(select(DeploymentRow.partitions))).one_or_none())


async def repartition(tx: AsyncSession, partitions: int, *, live_seconds: float) -> None:
    """Change the number, unless a consumer is live: one with a heartbeat within so many seconds.

    Raises:
        ConfigurationError: a consumer is live.
    """
    await _lock(tx, partitions)
    at = await present(tx)
    seen = select(ProcessRow).where(col(ProcessRow.seen_at) > at - timedelta(seconds=live_seconds))
    if live := sorted(f"{row.kind} ({(at - row.seen_at).total_seconds():.0f} s ago)" for row in await tx.scalars(seen)):
        raise ConfigurationError(
            f"PARTITIONS cannot be changed while consumers live. Last seen: {', '.join(live)}. Stop them all, wait"
            f" until they have ended, and run it again; one that was killed counts for {live_seconds:.0f} s",
            code=CONSUMERS_LIVE,
        )
    (await tx.get_one(DeploymentRow, 1)).partitions = partitions


async def _lock(tx: AsyncSession, partitions: int) -> None:
    """Lock the number; if there is none, store this one."""
    if await _number(tx) is None:
        await insert_new(tx, DeploymentRow, id=1, partitions=partitions)
        await _number(tx)


async def _number(tx: AsyncSession, *, read: bool = False) -> int | None:
    """Return the number and lock it; with `read`, other transactions may read it, but not change it."""
    return (await tx.scalars(select(DeploymentRow.partitions).with_for_update(read=read))).one_or_none()


def _compare(partitions: int, found: int | None) -> None:
    if found is not None and found != partitions:
        raise ConfigurationError(
            f"PARTITIONS is {partitions} here, and {found} in the database: all processes need the same. Set"
            f" PARTITIONS={found}, or change the number as described in docs/operations.md (Changing PARTITIONS)",
            code=PARTITIONS_DIFFER,
        )

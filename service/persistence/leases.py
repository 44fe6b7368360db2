"""Leases: the right to run a singleton job, which one process runs at a time, by the database's clock."""

from datetime import timedelta

from sqlalchemy import delete, or_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.persistence.database import clock, upsert
from service.persistence.tables import LeaseRow


async def take(tx: AsyncSession, *, job: str, holder: str, seconds: float) -> bool:
    """Take a free or expired lease, or renew one's own, in one statement; return whether this process has it now."""
    until = clock(tx, timedelta(seconds=seconds))
    statement = (
        upsert(tx, LeaseRow)
        .values(duty=job, holder=holder, until=until)
        .on_conflict_do_update(
            index_elements=["duty"],
            set_={"holder": holder, "until": until},
            where=or_(col(LeaseRow.holder) == holder, col(LeaseRow.until) <= clock(tx)),
        )
        .returning(col(LeaseRow.holder))
    )
    return (await tx.execute(statement)).one_or_none() is not None


async def release(tx: AsyncSession, *, job: str, holder: str) -> None:
    """Delete one's own lease, so that no process has to wait until it expires."""
    await tx.execute(delete(LeaseRow).where(col(LeaseRow.duty) == job, col(LeaseRow.holder) == holder))

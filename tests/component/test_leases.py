"""Leases on both databases: one holder at a time, whoever races, by the database's clock."""

import asyncio
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence import leases
from service.persistence.database import Database, present
from service.persistence.tables import LeaseRow
from tests.component.rows import all_of


async def take(database: Database, holder: str, *, seconds: float = 600, job: str = "sweeper") -> bool:
    return await database.transact(lambda tx: leases.take(tx, job=job, holder=holder, seconds=seconds))


async def test_one_of_many_takes_a_free_lease(database: Database, other_process: Database) -> None:
    """Ten processes that reach for the lease at once: one has it, and it stays that one."""
    for _ in range(3):
        databases = [database, other_process] * 5
        taken = await asyncio.gather(*(take(one, str(number)) for number, one in enumerate(databases)))
        assert sum(taken) == 1
        [row] = await all_of(database, LeaseRow)
        assert taken[int(row.holder)]
        assert [await take(one, str(number)) for number, one in enumerate(databases)] == taken
        await database.transact(lambda tx, row=row: leases.release(tx, job="sweeper", holder=row.holder))


async def test_a_lease_that_has_run_out_is_taken_by_one(database: Database, other_process: Database) -> None:
    """A killed holder's lease runs out and goes to exactly one of those who wait for it."""
    assert await take(database, "killed")
    assert not await take(other_process, "early")

    async def run_out(tx: AsyncSession) -> None:
        (await tx.get_one(LeaseRow, "sweeper")).until = await present(tx, timedelta(milliseconds=-1))

    await database.transact(run_out)
    taken = await asyncio.gather(*(take(other_process, str(number)) for number in range(5)))
    assert sum(taken) == 1
    assert not await take(database, "killed")


async def test_the_holder_renews_and_gives_back(database: Database, other_process: Database) -> None:
    """Renewing prolongs the lease; given back it is free at once; nobody can give back another's."""
    assert await take(database, "a", seconds=1)
    [before] = await all_of(database, LeaseRow)
    assert await take(database, "a", seconds=60)
    [after] = await all_of(database, LeaseRow)
    assert (after.until - before.until).total_seconds() > 50
    await other_process.transact(lambda tx: leases.release(tx, job="sweeper", holder="b"))
    assert not await take(other_process, "b")
    await database.transact(lambda tx: leases.release(tx, job="sweeper", holder="a"))
    assert await take(other_process, "b")


async def test_singleton_jobs_have_leases_of_their_own(database: Database) -> None:
    """Whoever has one job's lease does not stand in the way of another's."""
    assert await take(database, "a", job="sweeper")
    assert await take(database, "b", job="reconciler")


async def test_the_lease_runs_by_the_databases_clock(database: Database) -> None:
    """`until` is the database's time plus the seconds, whatever this machine's clock says."""

    async def work(tx: AsyncSession) -> float:
        assert await leases.take(tx, job="d", holder="a", seconds=3600)
        at = await present(tx)
        return ((await tx.get_one(LeaseRow, "d")).until - at).total_seconds()

    assert 3500 < await database.transact(work) <= 3600

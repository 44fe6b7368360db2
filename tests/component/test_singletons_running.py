"""Duties on both databases: one process does each, failures end nothing, a lost lease ends the run."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from service import metrics
from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.tables import LeaseRow
from service.singletons import running as hosting_module
from service.singletons.running import SingletonJob, SingletonJobs
from tests.component.rows import all_of
from tests.system import SECONDS, eventually

LEASE = 0.6
STEADY = 60.0
"""A lease that no pause of a busy machine lets run out."""


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes processes look at a steady lease, and renew it, twice a second."""
    monkeypatch.setattr(hosting_module, "_RENEWALS", 2 * STEADY)


@asynccontextmanager
async def hosting(
    database: Database,
    run: Callable[[], Awaitable[None]],
    *,
    period: float = 0.01,
    stop: bool = True,
    seconds: float = STEADY,
) -> AsyncIterator[SingletonJobs]:
    singletons = SingletonJobs(database, [SingletonJob("test", period, run)], seconds=seconds)
    singletons.start()
    try:
        yield singletons
    finally:
        if stop:
            await singletons.stop()


class Work:
    """Counts runs, and fails as it is told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: BaseException | None = None

    async def run(self) -> None:
        self.runs += 1
        if self.error is not None:
            raise self.error

    async def ran(self, more: int = 3) -> None:
        wanted = self.runs + more

        async def runs() -> int:
            return self.runs

        await eventually(runs, lambda runs: runs >= wanted)


class LongRun:
    """Goes on until it is cancelled."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def run(self) -> None:
        self.events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            self.events.append("ended")

    async def seen(self) -> list[str]:
        return self.events


async def renewed(database: Database) -> None:
    """Wait until the lease was renewed some times; who has it not has looked at it as often."""

    async def until() -> Any:
        return [row.until for row in await all_of(database, LeaseRow)]

    [first] = await eventually(until)
    await eventually(until, lambda rows: rows[0] >= first + timedelta(seconds=2))


@pytest.mark.usefixtures("eager")
async def test_one_process_runs_a_singleton_job_and_hands_it_over(database: Database, other_process: Database) -> None:
    """The second process does nothing while the first is there, and goes on at once when that one stops."""
    first, second = Work(), Work()
    async with hosting(other_process, second.run, stop=False) as singletons:
        await second.ran()
        async with hosting(database, first.run):
            await renewed(database)
            assert first.runs == 0
            await singletons.stop()
            done = second.runs
            await first.ran()
            assert second.runs == done
    assert await all_of(database, LeaseRow) == []


async def test_a_dead_holder_is_replaced(database: Database, other_process: Database) -> None:
    """A holder that does not renew any more, as after kill -9, loses the job when its lease has run out."""
    first, second = Work(), Work()
    async with hosting(database, first.run, stop=False, seconds=LEASE) as killed:
        await first.ran()
        for task in killed._tasks:
            task.cancel()
        async with hosting(other_process, second.run, seconds=LEASE):
            await second.ran()


async def test_a_failing_singleton_job_is_run_again_and_logged_once(database: Database) -> None:
    """Whatever a run raises is counted, logged once while it stays the same, and never the end."""
    work = Work()
    failed = metrics.SINGLETON_JOB_RUNS.labels("test", "failed")
    before = failed._value.get()
    with capture_logs() as logs:
        async with hosting(database, work.run):
            work.error = DatabaseUnavailable("no database")
            await work.ran(5)
            work.error = RuntimeError("a bug")
            await work.ran(5)
            work.error = asyncio.CancelledError("by nobody")  # aiormq does that to what waits for a stuck connection
            await work.ran(5)
            work.error = None
            await work.ran()
    told = [entry["reason"] for entry in logs if entry["event"] == "singleton_job_failed"]
    assert told == ["DatabaseUnavailable: no database", "RuntimeError", "CancelledError"]
    assert [entry["event"] for entry in logs].count("singleton_job_works_again") == 1
    assert failed._value.get() >= before + 13


@pytest.mark.usefixtures("eager")
async def test_a_long_run_keeps_its_lease_and_ends_with_it(database: Database, other_process: Database) -> None:
    """A run may last: the lease is renewed meanwhile; when somebody else has it, the run is cancelled."""
    long, second = LongRun(), Work()
    async with hosting(database, long.run):
        await eventually(long.seen, lambda found: found == ["begun"])
        async with hosting(other_process, second.run):
            await renewed(database)
            assert (long.events, second.runs) == (["begun"], 0)

            async def steal(tx: Any) -> None:
                (await tx.get_one(LeaseRow, "test")).holder = "a thief"

            await other_process.transact(steal)
            await eventually(long.seen, lambda found: found[:2] == ["begun", "ended"])


@pytest.mark.usefixtures("eager")
async def test_a_lease_that_ran_out_ends_the_run(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """While this process stood still another may have run the job: it begins anew, though nobody has the lease."""
    long, stood_still = LongRun(), 0.0
    monkeypatch.setattr(hosting_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + stood_still))
    async with hosting(database, long.run):
        await eventually(long.seen)
        stood_still = STEADY
        await eventually(long.seen, lambda found: found[:3] == ["begun", "ended", "begun"])


async def test_a_run_ends_when_the_database_does_not_say_that_the_lease_is_ours(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away another process may take the lease: the run is cancelled in time, and begun again."""
    work, begun = Work(), asyncio.Event()
    now, ended_at = 0.0, []
    monkeypatch.setattr(hosting_module, "time", SimpleNamespace(monotonic=lambda: now))

    async def long() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended_at.append(now)
            work.runs += 1

    async with hosting(database, long, seconds=LEASE):
        await begun.wait()

        async def away(*_: object, **_options: object) -> None:
            nonlocal now
            now += 0.35 * LEASE  # a little late for each renewal
            detail = "no database"
            raise DatabaseUnavailable(detail)

        with monkeypatch.context() as patched:
            patched.setattr(database, "transact", away)
            await work.ran(1)
            assert ended_at[0] < LEASE
        begun.clear()
        await asyncio.wait_for(begun.wait(), SECONDS)

"""Who works through a backlog takes turns; what is urgent does not wait behind it: beats, leases, probes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Self

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence.confirmations import Confirmation, Confirmations
from service.persistence.database import Database
from service.persistence.heartbeats import Heartbeats
from service.persistence.tables import MessageRow
from service.singletons.running import SingletonJob, SingletonJobs
from tests.component.rows import a_session, enqueue
from tests.system import eventually

MANY = 20


class Backlog:
    """Many who want to write: the first has begun and waits for `go_on`, the others wait for their turns."""

    def __init__(self, database: Database) -> None:
        self.done: list[str] = []
        self.go_on = asyncio.Event()
        self._begun = asyncio.Event()
        self._database = database
        self._tasks = [asyncio.create_task(self._write(str(number))) for number in range(MANY)]

    async def _write(self, name: str) -> None:
        async def work(tx: AsyncSession) -> None:
            await tx.execute(text("SELECT 1"))
            self._begun.set()
            await self.go_on.wait()

        await self._database.transact(work)
        self.done.append(name)

    async def __aenter__(self) -> Self:
        await self._begun.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on.set()
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def narrow(migrated_url: str) -> AsyncIterator[Database]:
    """A database with so few connections that one alone may work through a backlog."""
    database = Database(migrated_url, 3)
    yield database
    await database.close()


@pytest.fixture
def one_writer(migrated_url: str) -> bool:
    """Whether one alone writes at a time, also what is urgent."""
    return migrated_url.startswith("sqlite")


async def ended(work: asyncio.Future[Any]) -> None:
    """Wait for its end; what stands behind the backlog never ends, and then this fails."""

    async def done() -> bool:
        return work.done()

    await eventually(done)
    await work


async def test_what_is_urgent_comes_next(narrow: Database, *, one_writer: bool) -> None:
    """Before all who wait; on PostgreSQL, where connections are kept free for it, even before those who have begun."""
    async with Backlog(narrow) as backlog:

        async def urgent() -> None:
            await narrow.transact(lambda tx: tx.execute(text("SELECT 1")), urgent=True)
            backlog.done.append("urgent")

        task = asyncio.create_task(urgent())
        if not one_writer:
            await ended(task)
        backlog.go_on.set()
        await task
    assert backlog.done.index("urgent") == (1 if one_writer else 0)


async def test_probes_are_answered_beside_a_backlog(narrow: Database) -> None:
    """A process that has much to do is ready."""

    async def answered() -> bool:
        with suppress(DatabaseUnavailable):  # within the 2 s of a probe
            await narrow.ping()
            return True
        return False

    async with Backlog(narrow):
        await eventually(answered)


async def test_beats_leases_and_marks_are_urgent(narrow: Database, *, one_writer: bool) -> None:
    """Late ones would look like a process that has died, or repeat what was confirmed."""
    message = await enqueue(narrow, await a_session(narrow))
    confirmations = Confirmations(narrow)
    confirmations.note(Confirmation(MessageRow, (message.id,), place=message.lane_number))
    ran = asyncio.Event()

    async def run() -> None:
        ran.set()

    singletons = SingletonJobs(narrow, [SingletonJob("sweeper", 60.0, run)])
    async with Backlog(narrow) as backlog:
        singletons.start()
        beats = asyncio.gather(
            Heartbeats(narrow, "one", "queue", 5.0, partitions=4).beat([]), confirmations.flush(), ran.wait()
        )
        if one_writer:  # it has begun
            backlog.go_on.set()
            await beats  # without looking up: the backlog works on meanwhile
        else:
            await ended(beats)
        assert len(backlog.done) < MANY
    await singletons.stop()


async def test_one_who_waits_for_a_turn_can_be_cancelled(narrow: Database) -> None:
    """A process that ends does not wait for the turns of hundreds."""
    async with Backlog(narrow) as backlog:
        waiting = backlog._tasks[-1]
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
        backlog._tasks.remove(waiting)

        async def done() -> int:
            return len(backlog.done)

        backlog.go_on.set()
        assert await eventually(done, lambda count: count == MANY - 1)

"""How tasks that go on for ever are ended."""

import asyncio

import pytest

from service import tasks
from service.tasks import end, let_end, raise_if_cancelled, within


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a loop does that outlives errors, where the driver turns a cancellation into one."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)
    lost: list[str] = []

    async def go_on_for_ever() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if len(lost) == 3:
                    raise
                lost.append("once more")

    task = asyncio.create_task(go_on_for_ever())
    await asyncio.sleep(0)
    await end([task])
    assert (lost, task.cancelled()) == (["once more"] * 3, True)


async def test_what_a_task_raises_at_its_end_is_not_told() -> None:
    """Nor is there anything to end where there is no task, or one that has ended."""

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("gone")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end([task])
    await end([task])
    await end([])
    assert task.done()


async def test_a_cancellation_that_is_not_ours_is_none() -> None:
    """The client library raises CancelledError also where nobody has cancelled the task."""
    raise_if_cancelled(asyncio.CancelledError())
    raise_if_cancelled(OSError())
    ours: list[bool] = []

    async def look() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise_if_cancelled(OSError())
            with pytest.raises(asyncio.CancelledError):
                raise_if_cancelled(error)
            ours.append(True)
            raise

    task = asyncio.create_task(look())
    await asyncio.sleep(0)
    await end([task])
    assert ours == [True]


async def test_what_must_not_be_cut_off_ends_first() -> None:
    """However often whoever waits for it is cancelled; then he is."""
    go_on, ended = asyncio.Event(), list[str]()

    async def work() -> None:
        await go_on.wait()
        ended.append("work")
        raise OSError("told to nobody: who waited is gone")

    async def wait() -> None:
        try:
            await let_end(asyncio.create_task(work()))
        finally:
            ended.append("waiting")

    waiting = asyncio.create_task(wait())
    for _ in range(3):
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
    assert ended == []
    go_on.set()
    await asyncio.wait([waiting])
    assert (ended, waiting.cancelled()) == (["work", "waiting"], True)


async def test_what_takes_too_long_is_ended_though_it_loses_its_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told again; what was in time returns or raises as it does alone."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)
    told = []

    async def loses() -> None:
        while len(told) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append("once")

    async def fails() -> None:
        raise LookupError

    with pytest.raises(TimeoutError):
        await within(0.01, loses())
    assert len(told) == 3
    assert await within(60, asyncio.sleep(0, "in time")) == "in time"
    with pytest.raises(LookupError):
        await within(60, fails())


async def test_who_is_cancelled_ends_what_he_limits() -> None:
    """And hears of it once it has ended."""
    events = list[str]()

    async def work() -> None:
        events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ended")

    task = asyncio.create_task(within(60, work()))
    while not events:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (events, task.cancelled()) == (["begun", "ended"], True)

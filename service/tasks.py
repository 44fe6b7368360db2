"""Helpers to end tasks that last too long or for ever, and to wait for tasks that must not be interrupted."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

AGAIN_SECONDS = 6.0
"""Between two cancellations of one task."""


def raise_if_cancelled(error: BaseException) -> None:
    """Raise an error again if it is the cancellation of the running task.

    aiormq also raises CancelledError if a connection was stuck: that is an error like any other.
    """
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0:
        raise error


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks repeatedly until they have ended; their exceptions are discarded.

    Once is not enough: up to Python 3.11 `asyncio.wait_for`, which the drivers use to connect, loses a cancellation
    that arrives together with an error, and a loop that survives errors continues.
    """
    all_of_them = left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
    await asyncio.gather(*all_of_them, return_exceptions=True)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; if it takes longer, cancel it until it ends, even if it loses cancellations.

    Raises:
        TimeoutError: it took longer; work that it had begun may have been done.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        await end([task])
        raise
    if done:
        return task.result()
    await end([task])
    raise TimeoutError


async def let_end(task: asyncio.Task[T]) -> T:
    """Return a task's result without ever cancelling it: a caller that is cancelled meanwhile waits for its end."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        await asyncio.gather(task, return_exceptions=True)  # its exception is discarded
        raise


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, for at most so many seconds; return whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class Loop(ABC):
    """A loop that runs in its own task, from `start` until `end`."""

    _task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _run(self) -> None: ...

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run())

    @property
    def alive(self) -> bool:
        """Whether its task runs."""
        return self._task is not None and not self._task.done()

    async def end(self) -> None:
        """Cancel its task, if there is one, and wait for its end."""
        await end([self._task] if self._task is not None else [])

"""How tasks that go on for ever are ended."""

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_SECONDS = 6.0
"""Longer than SQLite waits for its lock: a transaction that has begun is let end."""


def is_cancelled() -> bool:
    """Say whether the running task was cancelled; aiormq raises CancelledError also where a connection was stuck."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, again and again, until they have ended; what they raise is not told.

    Once is not enough: up to Python 3.11 `asyncio.wait_for`, in which the drivers connect, loses a cancellation that
    comes together with an error, and a loop that outlives errors goes on.
    """
    all_of_them = left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
    await asyncio.gather(*all_of_them, return_exceptions=True)

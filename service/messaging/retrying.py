"""Retries operations while the database or the broker is unavailable, and counts the waiting ones for readiness."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from service.domain.sending import backoff
from service.errors import Unavailable
from service.metrics import RETRYING
from service.tasks import happens

log = structlog.get_logger()
T = TypeVar("T")

_LONGEST_PAUSE = 10.0


class Stopping(Exception):  # noqa: N818  # not an error: the process stops, or releases its partitions, during a retry
    """The message is left unacknowledged, for the process that becomes active next."""


class RetryWhileUnavailable:
    """Repeats an operation until the database and the broker let it succeed.

    Args:
        patience: seconds after which an operation has been retried for too long.
    """

    def __init__(self, patience: float = 60.0) -> None:
        self.patience = patience
        self.waiting = 0
        """Operations that are being retried at this moment; the process is not ready while there are any."""
        self.too_long = asyncio.Event()
        """Is set when an operation has been retried for too long."""
        self._leaving = asyncio.Event()
        self.stopped = False
        """Whether the process is stopping."""
        self._told: set[str] = set()

    async def __call__(self, operation: Callable[[], Awaitable[T]], *, longest: float = _LONGEST_PAUSE) -> T:
        """Run the operation until it does not raise Unavailable any more, with 0.1 to 10 s between the attempts.

        Each reason is logged once, regardless of the number of operations, and once more when no operation waits any
        more.

        Raises:
            Stopping: the retries were ended, and the operation has not succeeded.
        """
        # An operation that began before a release must not wait on after it, regardless of how long its last attempt
        # took.
        leaving = self._leaving
        try:
            return await operation()
        except Unavailable as error:
            self._tell(error)
        self._count(1)
        too_long = asyncio.get_running_loop().call_later(self.patience, self.too_long.set)
        try:
            answer = await self._repeat(operation, leaving, longest)
        finally:
            too_long.cancel()
            self._count(-1)
            if not self.waiting:
                self._told.clear()
        if not self.waiting:
            log.info("available_again")
        return answer

    async def _repeat(self, operation: Callable[[], Awaitable[T]], leaving: asyncio.Event, longest: float) -> T:
        failures = 1
        while True:
            await _pause(min(longest, backoff(failures)), leaving)
            try:
                return await operation()
            except Unavailable as error:
                failures += 1
                self._tell(error)

    def _count(self, more: int) -> None:
        self.waiting += more
        RETRYING.inc(more)

    def _tell(self, error: Unavailable) -> None:
        if error.detail not in self._told:
            self._told.add(error.detail)
            log.warning("retrying_while_unavailable", code=error.code, reason=error.detail)

    async def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopping: the retries were ended; no operation may begin any more.
        """
        await _pause(seconds, self._leaving)

    def leave(self) -> None:
        """End the retries, and do not retry operations that fail from now on, until `resume`."""
        self._leaving.set()

    def resume(self) -> None:
        """Retry failing operations again, unless the process is stopping."""
        if not self.stopped:
            self._leaving = asyncio.Event()

    def stop(self) -> None:
        """End the retries permanently: the process is stopping."""
        self.stopped = True
        self.leave()


async def _pause(seconds: float, leaving: asyncio.Event) -> None:
    if await happens(leaving, seconds):
        raise Stopping

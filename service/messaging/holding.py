"""Holds work while a part that the service stands on is away, and tells readiness about it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from service.domain.sending import backoff
from service.errors import Unavailable

log = structlog.get_logger()
T = TypeVar("T")


class Stopping(Exception):  # noqa: N818  # not an error: the process ends while work is held
    """The process ends: held work is left unacknowledged, for the next process."""


class Hold:
    """Repeats an operation until the database and the broker let it succeed."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self.held = 0
        """Operations that wait at this moment; the process is not ready while there are any."""

    async def __call__(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run the operation until it does not raise Unavailable any more, with 0.2 to 10 s between the attempts.

        Raises:
            Stopping: the process ends and the operation has not succeeded.
        """
        try:
            return await operation()
        except Unavailable as error:
            log.warning("held", code=error.code, reason=error.detail)
        self.held += 1
        try:
            return await self._repeat(operation)
        finally:
            self.held -= 1

    async def _repeat(self, operation: Callable[[], Awaitable[T]]) -> T:
        failures = 1
        while True:
            await self._pause(backoff(failures))
            try:
                return await operation()
            except Unavailable as error:
                failures += 1
                log.debug("still_held", code=error.code, failures=failures)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
        raise Stopping

    def stop(self) -> None:
        """Let nothing wait any longer."""
        self._stop.set()

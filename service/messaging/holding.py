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
        self._told: set[str] = set()

    async def __call__(self, operation: Callable[[], Awaitable[T]], *, longest: float = 10.0) -> T:
        """Run the operation until it does not raise Unavailable any more, with 0.2 to `longest` s between the attempts.

        However many operations wait, each reason is logged once, and once that none waits any more.

        Raises:
            Stopping: the process ends and the operation has not succeeded.
        """
        try:
            return await operation()
        except Unavailable as error:
            self._tell(error)
        self.held += 1
        try:
            answer = await self._repeat(operation, longest)
        finally:
            self.held -= 1
            if not self.held:
                self._told.clear()
        if not self.held:
            log.info("held_no_longer")
        return answer

    async def _repeat(self, operation: Callable[[], Awaitable[T]], longest: float) -> T:
        failures = 1
        while True:
            await self._pause(min(longest, backoff(failures)))
            try:
                return await operation()
            except Unavailable as error:
                failures += 1
                self._tell(error)

    def _tell(self, error: Unavailable) -> None:
        if error.detail not in self._told:
            self._told.add(error.detail)
            log.warning("held", code=error.code, reason=error.detail)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
        raise Stopping

    def stop(self) -> None:
        """Let nothing wait any longer."""
        self._stop.set()

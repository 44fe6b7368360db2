"""Reads metrics from the database: on a request to /metrics, at most every 5 s."""

import asyncio
import math
import time

import structlog

from service import metrics
from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.observing import Observed, observe

log = structlog.get_logger()

FRESH_SECONDS = 5.0


class Gauges:
    """The gauges that are read from the database. While it is unavailable they have no value, instead of an old one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._one = asyncio.Lock()
        self._looked_at = -math.inf

    async def refresh(self) -> None:
        """Read the values again, unless that was done within the last 5 s; takes 2 s at most."""
        async with self._one:
            if time.monotonic() - self._looked_at < FRESH_SECONDS:
                return
            try:
                _show(await observe(self._database))
            except DatabaseUnavailable as error:
                log.info("gauges_cleared", reason=error.detail)
                _clear()
            self._looked_at = time.monotonic()


def _show(observed: Observed) -> None:
    metrics.STORED_DEAD_LETTERS.clear()
    for reason, count in observed.dead_letters.items():
        metrics.STORED_DEAD_LETTERS.labels(metrics.dead_letter_reason(reason)).inc(count)
    for status, count in observed.sessions.items():
        metrics.SESSIONS.labels(status).set(count)
    metrics.OLDEST_PENDING.labels("connected").set(observed.oldest_pending)
    metrics.OLDEST_PENDING.labels("away").set(observed.oldest_pending_away)
    metrics.OLDEST_UNHANDLED.set(observed.oldest_unhandled)


def _clear() -> None:
    metrics.STORED_DEAD_LETTERS.clear()
    metrics.SESSIONS.clear()
    metrics.OLDEST_PENDING.clear()
    metrics.OLDEST_UNHANDLED.set(math.nan)

"""Checks once that the database has the same PARTITIONS as this ingress, as soon as the database answers."""

import asyncio
from functools import partial

import structlog

from service.domain.sending import backoff
from service.ending import Ending
from service.errors import ConfigurationError, DatabaseUnavailable
from service.persistence import deployment
from service.persistence.database import Database
from service.tasks import Loop

log = structlog.get_logger()

_SECONDS = 5.0


class Agreement(Loop):
    """Stops the process if the numbers differ. Requests are accepted meanwhile: consumers reroute their messages."""

    def __init__(self, database: Database, partitions: int, ending: Ending) -> None:
        self._database, self._partitions, self._ending = database, partitions, ending

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._database.read(partial(deployment.check, partitions=self._partitions), seconds=_SECONDS)
            except ConfigurationError as error:
                self._ending.because(error)
                return
            except Exception as error:  # any failure is retried
                failures += 1
                if failures == 1:
                    foreseen = isinstance(error, DatabaseUnavailable)
                    log.warning("partitions_not_compared_yet", reason=str(error), exc_info=None if foreseen else error)
                await asyncio.sleep(backoff(failures))
            else:
                return

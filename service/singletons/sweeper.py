"""The sweeper: wakes lanes that nobody means to look at although something could be done, and forgets what is old.

Outputs that were not confirmed are no matter of his: the relays of the consumers tell them from their rows.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog

from service import metrics
from service.persistence import sweeping
from service.persistence.database import Database
from service.persistence.sweeping import BATCH
from service.privacy import shown

log = structlog.get_logger()


@dataclass(frozen=True)
class Sweeper:
    """A singleton job.

    Args:
        database: the rows.
        age: how long a message that could be sent may wait in a lane that sleeps.
    """

    database: Database
    age: timedelta

    async def run(self) -> None:
        """Look at everything once.

        Raises:
            DatabaseUnavailable: the next run goes on.
        """
        await self.database.transact(sweeping.wake_expired)
        for session_id in await self.database.transact(partial(sweeping.wake_forgotten, age=self.age)):
            metrics.REDRIVEN.labels("pending").inc()
            log.warning("redriven", kind="pending", session_id=shown(session_id))
        while await self.database.transact(sweeping.forget_old) >= BATCH:
            pass

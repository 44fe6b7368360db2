"""The sweeper: wakes lanes that sleep although they have work, and deletes old rows.

It does not publish unconfirmed outputs: the relays of the consumers publish them from their rows.
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
        age: how long a message that could be sent may wait in a sleeping lane.
    """

    database: Database
    age: timedelta

    async def run(self) -> None:
        """Check all rows once.

        Raises:
            DatabaseUnavailable: the next run continues.
        """
        await self.database.transact(sweeping.wake_expired)
        for session_id in await self.database.transact(partial(sweeping.wake_forgotten, age=self.age)):
            metrics.REDRIVEN.labels("pending").inc()
            log.warning("redriven", kind="pending", session_id=shown(session_id))
        while await self.database.transact(sweeping.forget_old) >= BATCH:
            pass

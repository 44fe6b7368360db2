"""The dead-letter store: moves what lies in the dead letters' queue into the table."""

from dataclasses import dataclass, replace
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.domain.dead_letters import DeadLetter
from service.messaging.dead_letter_queue import DeadLetterQueue
from service.persistence import dead_letters
from service.persistence.database import Database

log = structlog.get_logger()


@dataclass(frozen=True)
class DeadLetterStore:
    """A duty of one process at a time; two at once would do no harm.

    Args:
        database: the table.
        queue: the dead letters' queue.
    """

    database: Database
    queue: DeadLetterQueue

    async def run(self) -> None:
        """Move dead letters until cancelled; what has begun is finished."""
        await self.queue.consume(self.keep)

    async def keep(self, dead: DeadLetter) -> None:
        """Store one dead letter; what the database refuses of it is left out, the bytes never are.

        Raises:
            DatabaseUnavailable: try again later.
        """
        try:
            await self.database.transact(partial(dead_letters.store, self.database, dead=dead))
        except (SQLAlchemyError, ValueError, TypeError) as error:
            log.exception("dead_letter_stored_without_headers", id=str(dead.id))
            bare = replace(
                dead,
                original=replace(dead.original, headers={}),
                detail=f"{dead.detail}\n(stored without its headers: {type(error).__name__})",
            )
            await self.database.transact(partial(dead_letters.store, self.database, dead=bare))

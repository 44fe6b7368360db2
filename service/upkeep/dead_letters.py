"""The dead-letter store: moves what lies in the dead letters' queue into the table."""

from dataclasses import dataclass, replace
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.domain.dead_letters import DeadLetter
from service.messaging.dead_letter_queue import DeadLetterQueue
from service.persistence import dead_letters
from service.persistence.database import Database
from whatsapp_qr_contracts.message import storable

log = structlog.get_logger()

_KEPT_PROPERTIES = ("messageId", "correlationId", "type")


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
        except (SQLAlchemyError, ValueError, TypeError, RecursionError) as error:
            bare = _bare(dead, error)
            log.exception("dead_letter_stored_bare", id=str(bare.id))
            await self.database.transact(partial(dead_letters.store, self.database, dead=bare))


def _bare(dead: DeadLetter, error: Exception) -> DeadLetter:
    """Return what any database takes of a dead letter; with the message's id, so that it stays the same one."""
    original = dead.original
    return replace(
        dead,
        original=replace(
            original,
            properties={name: storable(text) for name in _KEPT_PROPERTIES if (text := original.text(name))},
            headers={},
        ),
        detail=f"{dead.detail}\n(stored without headers and most properties: {type(error).__name__})",
        burial=storable(dead.burial),
    )

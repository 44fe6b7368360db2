"""Rows of which something has still to be told, a page at a time, for the process that owns their partitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from service.domain.identities import key_hash
from service.persistence.database import clock
from service.persistence.tables import (
    TO_ENQUEUE,
    TO_HAND_OVER,
    UNTOLD,
    CommandRow,
    ConversationRow,
    MessageRow,
    SessionRow,
)

PAGE = 200


@dataclass(frozen=True, slots=True)
class Part:
    """What a process may tell: the rows of its partitions that have not changed for a while.

    Args:
        owned: its own, and since when: what was taken over anew is looked through.
        age: seconds for which a row has not changed; less, and whoever wrote it may be telling it.
        busy: keys whose messages are being handled: their sessions are told at the end of that.
        page: rows at once, at most.
    """

    partitions: int
    owned: Mapping[int, float]
    age: float = 0.0
    busy: frozenset[str] = frozenset()
    page: int = PAGE


@dataclass(frozen=True, slots=True)
class Untold:
    """Rows of one table of which something is untold.

    Args:
        condition: which they are; written out, for the partial index.
        changed: the column that says when a row was last written.
        order: the columns by which they are told.
    """

    table: type[SQLModel]
    condition: str
    changed: str
    order: tuple[str, ...]

    async def page(self, tx: AsyncSession, part: Part) -> Sequence[Any]:
        """Return the first rows that a process may tell."""
        columns = self.table.__table__.c  # type: ignore[attr-defined]
        mine = (columns.key_hash % part.partitions).in_(sorted(part.owned))
        query = select(self.table).where(text(self.condition), mine)
        if part.age:
            query = query.where(columns[self.changed] <= clock(tx, -timedelta(seconds=part.age)))
        if part.busy and self.table is SessionRow:
            query = query.where(columns.key_hash.not_in(map(key_hash, part.busy)))
        order = (columns[name] for name in self.order)
        return (await tx.scalars(query.order_by(*order).limit(part.page))).all()


SESSIONS = Untold(SessionRow, UNTOLD, "moved_at", ("session_id",))
CONVERSATIONS = Untold(ConversationRow, UNTOLD, "changed_at", ("chatbot_id",))
COMMANDS = Untold(CommandRow, f"{UNTOLD} AND name NOT LIKE 'message.%'", "created_at", ("created_at",))
MESSAGE_COMMANDS = Untold(CommandRow, f"{UNTOLD} AND name LIKE 'message.%'", "created_at", ("created_at",))
RECEIVED = Untold(MessageRow, f"{UNTOLD} AND role = 'USER'", "changed_at", ("conversation_id", "created_at"))
STATUSES = Untold(MessageRow, f"{UNTOLD} AND role = 'ASSISTANT'", "changed_at", ("conversation_id", "created_at"))
TO_THE_WORKERS = Untold(MessageRow, TO_HAND_OVER, "changed_at", ("conversation_id", "sequence"))
TO_THE_LANES = Untold(MessageRow, TO_ENQUEUE, "changed_at", ("session_id", "lane_number"))

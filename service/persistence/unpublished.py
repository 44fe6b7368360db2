"""Rows with unpublished outputs, a page at a time, for the process that owns their partitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Integer, Interval, Select, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from service.domain.identities import key_hash
from service.persistence.columns import DatabaseClock, UtcDateTime
from service.persistence.database import on_sqlite
from service.persistence.records import among, table_of
from service.persistence.tables import (
    TO_ENQUEUE,
    TO_HAND_OVER,
    UNPUBLISHED,
    CommandRecord,
    CommandRow,
    ConversationRecord,
    ConversationRow,
    MessageRecord,
    MessageRow,
    SessionRecord,
    SessionRow,
)

PAGE = 200


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that a process may publish: those of its partitions that have not changed for a while.

    Args:
        owned: its partitions, and since when: the rows of a newly owned one are read at once.
        age: seconds for which a row has not changed; if less, the process that wrote it may be publishing it.
        busy: keys whose messages are being handled: their sessions are published after that.
        page: rows at once, at most.
    """

    partitions: int
    owned: Mapping[int, float]
    age: float = 0.0
    busy: frozenset[str] = frozenset()
    page: int = PAGE


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Rows of one table with unpublished outputs.

    Args:
        row: their class.
        record: the class of the values that are returned.
        condition: of these rows; a literal, for the partial index.
        changed: the column with the time of the last write.
        order: the columns by which they are published.
    """

    row: type[SQLModel]
    record: type[SQLModel]
    condition: str
    changed: str
    order: tuple[str, ...]

    async def page(self, tx: AsyncSession, part: Part) -> Sequence[Any]:
        """Return the first rows that a process may publish."""
        given: dict[str, Any] = {"partitions": part.partitions, "owned": sorted(part.owned), "page": part.page}
        sqlite, age = on_sqlite(tx), timedelta(seconds=part.age)
        if part.age:
            given |= {"before": datetime.now(UTC) - age} if sqlite else {"age": age}
        if busy := part.busy if self.row is SessionRow else ():
            given["busy"] = [key_hash(key) for key in busy]
        statement = _page(self, settled=bool(part.age), some_busy=bool(busy), sqlite=sqlite)
        found = await (await tx.connection()).execute(statement, given)
        return [self.record(**row) for row in found.mappings()]


@cache
def _page(unpublished: Unpublished, *, settled: bool, some_busy: bool, sqlite: bool) -> Select[Any]:
    table = table_of(unpublished.row)
    columns, partition = table.c, table.c.key_hash % bindparam("partitions", type_=BigInteger)
    query = select(table).where(text(unpublished.condition), among(partition, "owned", sqlite=sqlite))
    if settled:
        before = DatabaseClock() - bindparam("age", type_=Interval)
        query = query.where(
            columns[unpublished.changed] <= (bindparam("before", type_=UtcDateTime) if sqlite else before)
        )
    if some_busy:
        query = query.where(~among(columns.key_hash, "busy", sqlite=sqlite))
    return query.order_by(*(columns[name] for name in unpublished.order)).limit(bindparam("page", type_=Integer))


SESSIONS = Unpublished(SessionRow, SessionRecord, UNPUBLISHED, "moved_at", ("session_id",))
CONVERSATIONS = Unpublished(ConversationRow, ConversationRecord, UNPUBLISHED, "changed_at", ("chatbot_id",))
COMMANDS = Unpublished(
    CommandRow, CommandRecord, f"{UNPUBLISHED} AND name NOT LIKE 'message.%'", "created_at", ("created_at",)
)
MESSAGE_COMMANDS = Unpublished(
    CommandRow, CommandRecord, f"{UNPUBLISHED} AND name LIKE 'message.%'", "created_at", ("created_at",)
)
RECEIVED = Unpublished(
    MessageRow, MessageRecord, f"{UNPUBLISHED} AND role = 'USER'", "changed_at", ("conversation_id", "created_at")
)
STATUSES = Unpublished(
    MessageRow, MessageRecord, f"{UNPUBLISHED} AND role = 'ASSISTANT'", "changed_at", ("conversation_id", "created_at")
)
TO_THE_WORKERS = Unpublished(MessageRow, MessageRecord, TO_HAND_OVER, "changed_at", ("conversation_id", "sequence"))
TO_THE_LANES = Unpublished(MessageRow, MessageRecord, TO_ENQUEUE, "changed_at", ("session_id", "lane_number"))

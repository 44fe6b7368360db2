"""Remembers which outputs the broker has confirmed, many in one transaction.

It may lag: after a crash in between an output is published once more, under the same id.
"""

import asyncio
from typing import NamedTuple, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import bindparam, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.domain.sending import backoff
from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.tables import ConversationRow, MessageRow
from service.tasks import end
from whatsapp_qr_contracts.message import DeliveryStatus

log = structlog.get_logger()
T = TypeVar("T")

_LAG_SECONDS = 0.05
_MOST = 10_000


class Reached(NamedTuple):
    """A status that a message has come to: after a retry it may come to the same one again, at another place."""

    message_id: UUID
    status: DeliveryStatus
    place: int | None
    """In its lane."""

    @classmethod
    def by(cls, message: MessageRow) -> "Reached":
        """Return a message's present status."""
        return cls(message.id, message.delivery_status, message.lane_number)


_MARK = (
    update(MessageRow)
    .where(
        col(MessageRow.id) == bindparam("message_id"),
        col(MessageRow.delivery_status) == bindparam("status"),
        col(MessageRow.lane_number).is_not_distinct_from(bindparam("place")),
    )
    .values(announced=True)
)


class Confirmations:
    """Collects confirmations and writes them down shortly after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._messages: set[Reached] = set()
        self._conversations: set[UUID] = set()
        self._some = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def message(self, message: MessageRow) -> None:
        """Note that everything that follows from a message's present status is confirmed."""
        self._note(self._messages, Reached.by(message))

    def conversation(self, conversation: ConversationRow) -> None:
        """Note that conversation.started is confirmed."""
        self._note(self._conversations, conversation.id)

    def _note(self, known: set[T], one: T) -> None:
        if len(known) >= _MOST:
            known.clear()  # they cannot be written: what is forgotten is published once more, under the same id
        known.add(one)
        self._some.set()

    def has_message(self, message: MessageRow) -> bool:
        """Say whether that is known, written down or about to be."""
        return message.announced or Reached.by(message) in self._messages

    def has_conversation(self, conversation: ConversationRow) -> bool:
        """Say whether that is known, written down or about to be."""
        return conversation.announced or conversation.id in self._conversations

    def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._keep_writing())

    @property
    def alive(self) -> bool:
        """Whether its task is there."""
        return self._writing is not None and not self._writing.done()

    async def _keep_writing(self) -> None:
        failures = 0
        while True:
            await self._some.wait()
            await asyncio.sleep(backoff(failures) if failures else _LAG_SECONDS)
            failures = 0 if await self._write() else failures + 1

    async def _write(self) -> bool:
        self._some.clear()
        messages, conversations = set(self._messages), set(self._conversations)
        rows = [one._asdict() for one in sorted(messages, key=lambda one: one.message_id)]

        async def mark(tx: AsyncSession) -> None:
            if rows:
                await (await tx.connection()).execute(_MARK, rows)
            if conversations:
                known = col(ConversationRow.id).in_(sorted(conversations))
                await tx.execute(update(ConversationRow).where(known).values(announced=True))

        try:
            await self._database.transact(mark, urgent=True)
        except DatabaseUnavailable as error:
            log.warning("confirmations_not_written", reason=str(error))
        except Exception:
            log.exception("confirmations_not_written")
        else:
            self._messages -= messages
            self._conversations -= conversations
            return True
        self._some.set()
        return False

    async def flush(self) -> bool:
        """Write what is collected now, without the delay, and say whether that went well; else it is tried again."""
        return await self._write()

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            await end([self._writing])
        if self._messages or self._conversations:
            await self._write()

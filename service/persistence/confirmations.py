"""Remembers which outputs the broker has confirmed, many in one transaction.

It may lag: after a crash in between an output is published once more, under the same id.
"""

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.domain.sending import backoff
from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.tables import ConversationRow, MessageRow

if TYPE_CHECKING:
    from uuid import UUID

    from whatsapp_qr_contracts.message import DeliveryStatus

log = structlog.get_logger()

_LAG_SECONDS = 0.05


class Confirmations:
    """Collects confirmations and writes them down shortly after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._messages: set[tuple[UUID, DeliveryStatus]] = set()
        self._conversations: set[UUID] = set()
        self._some = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def message(self, message: MessageRow) -> None:
        """Note that everything that follows from a message's present status is confirmed."""
        self._messages.add((message.id, message.delivery_status))
        self._some.set()

    def conversation(self, conversation: ConversationRow) -> None:
        """Note that conversation.started is confirmed."""
        self._conversations.add(conversation.id)
        self._some.set()

    def has_message(self, message: MessageRow) -> bool:
        """Say whether that is known, written down or about to be."""
        return message.announced or (message.id, message.delivery_status) in self._messages

    def has_conversation(self, conversation: ConversationRow) -> bool:
        """Say whether that is known, written down or about to be."""
        return conversation.announced or conversation.id in self._conversations

    def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._keep_writing())

    async def _keep_writing(self) -> None:
        failures = 0
        while True:
            await self._some.wait()
            await asyncio.sleep(backoff(failures) if failures else _LAG_SECONDS)
            failures = 0 if await self._write() else failures + 1

    async def _write(self) -> bool:
        self._some.clear()
        messages, conversations = set(self._messages), set(self._conversations)
        by_status: dict[DeliveryStatus, list[UUID]] = defaultdict(list)
        for message_id, status in sorted(messages):
            by_status[status].append(message_id)

        async def mark(tx: AsyncSession) -> None:
            for status, ids in by_status.items():
                unchanged = (col(MessageRow.id).in_(ids), col(MessageRow.delivery_status) == status)
                await tx.execute(update(MessageRow).where(*unchanged).values(announced=True))
            if conversations:
                known = col(ConversationRow.id).in_(sorted(conversations))
                await tx.execute(update(ConversationRow).where(known).values(announced=True))

        try:
            await self._database.transact(mark)
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            log.warning("confirmations_not_written", reason=str(error))
            self._some.set()
            return False
        self._messages -= messages
        self._conversations -= conversations
        return True

    async def flush(self) -> bool:
        """Write what is collected now, without the delay, and say whether that went well; else it is tried again."""
        return await self._write()

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._messages or self._conversations:
            await self._write()

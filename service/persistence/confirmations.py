"""Remembers which outputs the broker has confirmed, many in one transaction.

It may lag: after a crash in between an output is published once more, under the same id.
"""

import asyncio
from collections import defaultdict
from uuid import UUID

import structlog
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.tables import ConversationRow, MessageRow
from whatsapp_qr_contracts.message import DeliveryStatus

log = structlog.get_logger()

_LAG_SECONDS = 0.05


class Confirmations:
    """Collects confirmations and writes them down shortly after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._messages: dict[DeliveryStatus, set[UUID]] = defaultdict(set)
        self._conversations: set[UUID] = set()
        self._some = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def message(self, message: MessageRow) -> None:
        """Note that everything that follows from a message's present status is confirmed."""
        self._messages[message.delivery_status].add(message.id)
        self._some.set()

    def conversation(self, conversation: ConversationRow) -> None:
        """Note that conversation.started is confirmed."""
        self._conversations.add(conversation.id)
        self._some.set()

    def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._keep_writing())

    async def _keep_writing(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(_LAG_SECONDS)
            await self._write()

    async def _write(self) -> None:
        self._some.clear()
        messages, self._messages = self._messages, defaultdict(set)
        conversations, self._conversations = self._conversations, set()

        async def mark(tx: AsyncSession) -> None:
            for status, ids in messages.items():
                unchanged = (col(MessageRow.id).in_(sorted(ids)), col(MessageRow.delivery_status) == status)
                await tx.execute(update(MessageRow).where(*unchanged).values(announced=True))
            if conversations:
                known = col(ConversationRow.id).in_(sorted(conversations))
                await tx.execute(update(ConversationRow).where(known).values(announced=True))

        try:
            await self._database.transact(mark)
        except DatabaseUnavailable as error:
            log.warning("confirmations_not_written", reason=error.detail)
            for status, ids in messages.items():
                self._messages[status] |= ids
            self._conversations |= conversations
            self._some.set()

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._some.is_set():
            await self._write()

"""The rows that a batch of messages needs, locked in one order: sessions, lanes, conversations, messages.

Every transaction that changes rows of several kinds locks them in this order, each kind sorted by id, and changes
commands last: no deadlocks.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, tuple_
from sqlalchemy import select as select_columns
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, or_, select

from service.persistence.database import locked, present
from service.persistence.tables import (
    ChatbotRow,
    CommandRow,
    ConversationRow,
    LaneRow,
    MessageRow,
    ReceiptRow,
    SessionRow,
)
from whatsapp_qr_contracts.message import Role

WhatsappId = tuple[str, str]
"""A session's public id and an id at WhatsApp."""
CommandKey = tuple[UUID, str]


@dataclass(slots=True)
class Needs:
    """What the messages of a batch name."""

    conversations: set[UUID] = field(default_factory=set)
    messages: set[UUID] = field(default_factory=set)
    sent_as: set[WhatsappId] = field(default_factory=set)
    lanes_of: set[UUID] = field(default_factory=set)
    """Chatbots whose lanes are needed."""
    commands: set[CommandKey] = field(default_factory=set)


@dataclass(slots=True)
class Intake:
    """Rows of one transaction. New ones are put in here too, so that a batch finds what it has just made."""

    tx: AsyncSession
    at: datetime
    """The time of the transaction, by the database's clock."""
    sessions: dict[str, SessionRow]
    chatbots: dict[UUID, SessionRow]
    """The session of each chatbot."""
    removed: set[UUID]
    """Chatbots that were removed."""
    lanes: dict[str, LaneRow] = field(default_factory=dict)
    conversations: dict[UUID, ConversationRow] = field(default_factory=dict)
    messages: dict[UUID, MessageRow] = field(default_factory=dict)
    sent_as: dict[WhatsappId, MessageRow] = field(default_factory=dict)
    commands: dict[CommandKey, CommandRow] = field(default_factory=dict)
    kept: dict[Any, ReceiptRow | CommandRow] = field(default_factory=dict)
    """Rows that may exist already; they are written last."""

    def add(self, row: MessageRow | ConversationRow | CommandRow) -> None:
        """Put a new row in; it is written with the transaction."""
        match row:
            case MessageRow():
                self.tx.add(row)
                self.messages[row.id] = row
                if row.role is Role.ASSISTANT:
                    self.sent_as[row.session_id, row.whatsapp_message_id] = row
            case ConversationRow():
                self.tx.add(row)
                self.conversations[row.id] = row
            case CommandRow():
                key = (row.chatbot_id, row.command_id)
                self.commands[key] = self.kept[key] = row

    async def load(self, needs: Needs) -> None:
        """Lock and read what the batch names, as far as it exists."""
        tx = self.tx
        of = [self.chatbots[chatbot].session_id for chatbot in needs.lanes_of if chatbot in self.chatbots]
        self.lanes = {row.session_id: row for row in await locked(tx, LaneRow, LaneRow.session_id, of)}
        if needs.commands:
            key = tuple_(col(CommandRow.chatbot_id), col(CommandRow.command_id))
            found = await tx.scalars(select(CommandRow).where(key.in_(list(needs.commands))))
            self.commands = {(row.chatbot_id, row.command_id): row for row in found}
        began = await locked(tx, ConversationRow, ConversationRow.id, needs.conversations)
        self.conversations = {row.id: row for row in began}
        ids = {*needs.messages, *await _ids_sent_as(tx, needs.sent_as)}
        self.messages = {row.id: row for row in await locked(tx, MessageRow, MessageRow.id, ids)}
        # A gateway that uses an id twice must not stop its receipts: they are the newest message's.
        for row in sorted(self.messages.values(), key=lambda row: row.lane_number or 0):
            if row.role is Role.ASSISTANT:
                self.sent_as[row.session_id, row.whatsapp_message_id] = row

    def keep_receipt(self, receipt: ReceiptRow) -> None:
        """Keep a receipt whose message is not known yet; the last of equal ones counts."""
        self.kept[receipt.session_id, receipt.whatsapp_message_id, receipt.status] = receipt

    async def finish(self) -> None:
        """Write what is not written yet."""
        for row in self.kept.values():
            await self.tx.merge(row)
        await self.tx.flush()


async def begin(tx: AsyncSession, session_ids: Collection[str], chatbot_ids: Collection[UUID]) -> Intake:
    """Lock the sessions of a batch and return them."""
    row = SessionRow
    query = (
        select(row, col(ChatbotRow.removed_at))
        .join(ChatbotRow, col(ChatbotRow.id) == col(row.chatbot_id))
        .where(or_(col(row.session_id).in_(session_ids), col(row.chatbot_id).in_(chatbot_ids)))
        .order_by(col(row.id))
        .with_for_update(of=row)
    )
    found = (await tx.execute(query)).all()
    return Intake(
        tx,
        await present(tx),
        {session.session_id: session for session, _ in found},
        {session.chatbot_id: session for session, _ in found},
        {session.chatbot_id for session, removed_at in found if removed_at is not None},
    )


async def _ids_sent_as(tx: AsyncSession, sent_as: Collection[WhatsappId]) -> list[UUID]:
    if not sent_as:
        return []
    session_id, whatsapp_id = col(MessageRow.session_id), col(MessageRow.whatsapp_message_id)
    number, is_ours = col(MessageRow.lane_number), col(MessageRow.role) == Role.ASSISTANT
    under = tuple_(session_id, whatsapp_id).in_(list(sent_as)), is_ours
    # The newest of each id: a gateway may give it to very many.
    newest = select_columns(session_id, whatsapp_id, func.max(number)).where(*under).group_by(session_id, whatsapp_id)
    query = select(col(MessageRow.id)).where(*under, tuple_(session_id, whatsapp_id, number).in_(newest))
    return list(await tx.scalars(query))

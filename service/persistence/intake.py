"""The rows that a batch of messages needs, locked in one order: sessions, lanes, conversations, messages.

Every transaction that changes rows of several kinds locks them in this order, each kind sorted by id, and changes
commands last: no deadlocks.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Select, bindparam, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.persistence.columns import DatabaseClock
from service.persistence.database import on_sqlite
from service.persistence.records import Records, among, table_of
from service.persistence.tables import (
    ChatbotRow,
    CommandRow,
    ConversationRecord,
    ConversationRow,
    LaneRecord,
    LaneRow,
    MessageRecord,
    MessageRow,
    ReceiptRow,
    SessionRecord,
    SessionRow,
    now,
)
from whatsapp_qr_contracts.message import Role

WhatsappId = tuple[str, str]
"""A session's public id and a WhatsApp message id."""
CommandKey = tuple[UUID, str]


@dataclass(slots=True)
class Needs:
    """The keys that the messages of a batch refer to."""

    conversations: set[UUID] = field(default_factory=set)
    messages: set[UUID] = field(default_factory=set)
    sent_as: set[WhatsappId] = field(default_factory=set)
    lanes_of: set[UUID] = field(default_factory=set)
    """Chatbots whose lanes are needed."""
    commands: set[CommandKey] = field(default_factory=set)


class Intake:
    """Rows of one transaction. New ones are added here too, so that later messages of the batch find them."""

    def __init__(self, tx: AsyncSession) -> None:
        self._tx = tx
        self.at = now()
        """The time of the transaction, by the database's clock."""
        self.sessions: dict[str, SessionRecord] = {}
        self.chatbots: dict[UUID, SessionRecord] = {}
        """The session of each chatbot."""
        self.removed: set[UUID] = set()
        """Chatbots that were removed."""
        self.lanes: dict[str, LaneRecord] = {}
        self.conversations: dict[UUID, ConversationRecord] = {}
        self.messages: dict[UUID, MessageRecord] = {}
        self.sent_as: dict[WhatsappId, MessageRecord] = {}
        self.commands: dict[CommandKey, CommandRow] = {}
        self._sessions = Records(SessionRecord, SessionRow)
        self._conversations = Records(ConversationRecord, ConversationRow)
        self._messages = Records(MessageRecord, MessageRow)
        self._kept: dict[Any, ReceiptRow | CommandRow] = {}
        """Rows that may exist already; they are written last."""

    def add(self, row: MessageRecord | ConversationRecord | CommandRow) -> None:
        """Add a new row; it is written with the transaction."""
        match row:
            case MessageRecord():
                self._messages.add(row)
                self.messages[row.id] = row
                if row.role is Role.ASSISTANT:
                    self.sent_as[row.session_id, row.whatsapp_message_id] = row
            case ConversationRecord():
                self._conversations.add(row)
                self.conversations[row.id] = row
            case CommandRow():
                key = (row.chatbot_id, row.command_id)
                self.commands[key] = self._kept[key] = row

    async def lock_sessions(self, session_ids: Collection[str], chatbot_ids: Collection[UUID]) -> None:
        """Lock and read the sessions of a batch, the first rows that it needs."""
        query = _sessions(sqlite=on_sqlite(self._tx))
        given = {"sessions": list(session_ids), "chatbots": list(chatbot_ids)}
        for row in (await (await self._tx.connection()).execute(query, given)).mappings():
            session = self._sessions.read(row)
            self.sessions[session.session_id] = self.chatbots[session.chatbot_id] = session
            self.at = row["at"]
            if row["removed_at"] is not None:
                self.removed.add(session.chatbot_id)

    async def load(self, needs: Needs) -> None:
        """Lock and read the other rows that the batch refers to, if they exist."""
        tx = self._tx
        of = [self.chatbots[chatbot].session_id for chatbot in needs.lanes_of if chatbot in self.chatbots]
        self.lanes = {row.session_id: row for row in await Records(LaneRecord, LaneRow).lock(tx, of)}
        if needs.commands:
            key = tuple_(col(CommandRow.chatbot_id), col(CommandRow.command_id))
            found = await tx.scalars(select(CommandRow).where(key.in_(list(needs.commands))))
            self.commands = {(row.chatbot_id, row.command_id): row for row in found}
        self.conversations = {row.id: row for row in await self._conversations.lock(tx, needs.conversations)}
        ids = {*needs.messages, *await _ids_sent_as(tx, needs.sent_as)}
        self.messages = {row.id: row for row in await self._messages.lock(tx, ids)}
        # A gateway may use an id twice: its receipts then apply to the newest message.
        for row in sorted(self.messages.values(), key=lambda row: row.lane_number or 0):
            if row.role is Role.ASSISTANT:
                self.sent_as[row.session_id, row.whatsapp_message_id] = row

    def keep_receipt(self, receipt: ReceiptRow) -> None:
        """Store a receipt whose message is not known yet; the last of equal ones counts."""
        self._kept[receipt.session_id, receipt.whatsapp_message_id, receipt.status] = receipt

    async def write(self) -> None:
        """Write new and changed rows."""
        for records in (self._sessions, self._conversations, self._messages):
            await records.write(self._tx)
        for row in self._kept.values():
            await self._tx.merge(row)
        await self._tx.flush()


@cache
def _sessions(*, sqlite: bool) -> Select[Any]:
    session, chatbot = table_of(SessionRow).c, table_of(ChatbotRow).c
    named = or_(
        among(session.session_id, "sessions", sqlite=sqlite), among(session.chatbot_id, "chatbots", sqlite=sqlite)
    )
    return (
        select(*session, chatbot.removed_at, DatabaseClock().label("at"))
        .join(table_of(ChatbotRow), chatbot.id == session.chatbot_id)
        .where(named)
        .order_by(session.id)
        .with_for_update(of=table_of(SessionRow))
    )


async def _ids_sent_as(tx: AsyncSession, sent_as: Collection[WhatsappId]) -> list[UUID]:
    if not sent_as:
        return []
    sqlite = on_sqlite(tx)
    session_ids, whatsapp_ids = zip(*sent_as, strict=True)
    given = {"pairs": list(sent_as)} if sqlite else {"sessions": list(session_ids), "ids": list(whatsapp_ids)}
    found = await (await tx.connection()).execute(_newest_sent_as(sqlite=sqlite), given)
    return list(found.scalars())


@cache
def _newest_sent_as(*, sqlite: bool) -> Select[Any]:
    """Return the newest message of each WhatsApp id: a gateway may give one id to very many messages."""
    message = table_of(MessageRow).c
    named_as, number = (message.session_id, message.whatsapp_message_id), message.lane_number
    text = ARRAY(message.session_id.type)
    pairs = (
        func.unnest(bindparam("sessions", type_=text), bindparam("ids", type_=text))
        .table_valued("session", "id")
        .render_derived()
    )
    named = tuple_(*named_as).in_(bindparam("pairs", expanding=True) if sqlite else select(pairs.c.session, pairs.c.id))
    ours = (named, message.role == Role.ASSISTANT)
    newest = select(*named_as, func.max(number)).where(*ours).group_by(*named_as)
    return select(message.id).where(*ours, tuple_(*named_as, number).in_(newest))

"""Builders of rows and reports, with fields to override."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.domain.identities import outgoing_message_id
from service.domain.sending import SendPolicy
from service.persistence import conversations, lanes, sessions
from service.persistence.conversations import Stored
from service.persistence.database import Database
from service.persistence.lanes import Claimed, Next
from service.persistence.tables import MessageRow, SessionRow
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage
from whatsapp_qr_contracts.message import SessionStatus

CUSTOMER = "5491112345678"
POLICY = SendPolicy()
MAY_HAVE_GONE_OUT = "; an earlier attempt, whose outcome is unknown, may have gone out"


async def a_session(
    database: Database, *, status: SessionStatus = SessionStatus.CONNECTED, chatbot_id: UUID | None = None
) -> SessionRow:
    chatbot_id = chatbot_id or uuid4()

    async def work(tx: AsyncSession) -> SessionRow:
        await sessions.register_chatbot(database, tx, chatbot_id)
        session = await sessions.open_session(database, tx, chatbot_id, f"session_{chatbot_id}_1700000000000")
        sessions.move(session, status, wanted=True)
        return session

    return await database.transact(work)


def a_report(session: SessionRow, whatsapp_id: str = "A1", **fields: Any) -> GatewayMessage:
    valid = {"from": CUSTOMER, "message": "hi", "messageId": whatsapp_id, "timestamp": 1_700_000_000}
    return GatewayMessage.model_validate(valid | {"sessionId": session.session_id} | fields)


def a_command(session: SessionRow, **fields: Any) -> SendMessage:
    return SendMessage.model_validate(
        {"chatbotId": session.chatbot_id, "to": CUSTOMER, "message": "hello", "messageId": str(uuid4())} | fields
    )


async def receive(database: Database, session: SessionRow, whatsapp_id: str = "A1", **fields: Any) -> Stored:
    """Store a customer's message as the conversation consumer does."""
    report = a_report(session, whatsapp_id, **fields)

    async def work(tx: AsyncSession) -> Stored:
        locked = await sessions.session_by_id(tx, session.session_id, lock=True)
        assert locked is not None
        return await conversations.store_incoming(database, tx, locked, report, correlation_id="report")

    return await database.transact(work)


async def enqueue(
    database: Database, session: SessionRow, *, expiry: timedelta = timedelta(hours=1), **fields: Any
) -> MessageRow:
    """Store a message to send as the conversation consumer does."""
    return (await enqueued(database, session, a_command(session, **fields), expiry=expiry)).message


async def enqueued(
    database: Database, session: SessionRow, command: SendMessage, *, expiry: timedelta = timedelta(hours=1)
) -> Stored:
    async def work(tx: AsyncSession) -> Stored:
        locked = await sessions.session_of(tx, session.chatbot_id, lock=True)
        assert locked is not None
        return await conversations.store_outgoing(
            database,
            tx,
            locked,
            command,
            message_id=outgoing_message_id(command.chatbot_id, str(command.message_id)),
            correlation_id="command",
            expiry=expiry,
        )

    return await database.transact(work)


async def claim(database: Database, session: SessionRow, policy: SendPolicy = POLICY) -> Next:
    return await database.transact(
        lambda tx: lanes.claim_next(database, tx, session_id=session.session_id, policy=policy)
    )


async def claimed(database: Database, session: SessionRow, policy: SendPolicy = POLICY) -> MessageRow:
    step = await claim(database, session, policy)
    assert isinstance(step, Claimed), step
    return step.message


async def answered(database: Database, message: MessageRow, whatsapp_id: str) -> MessageRow | None:
    """Record the gateway's answer to a call that was made for a message as it was claimed."""
    return await database.transact(lambda tx: lanes.record_sent(tx, claimed=message, whatsapp_id=whatsapp_id))


async def sent(database: Database, message: MessageRow, whatsapp_id: str | None = None) -> MessageRow:
    recorded = await answered(database, message, whatsapp_id or message.whatsapp_message_id)
    assert recorded is not None
    return recorded


async def reread(database: Database, message: MessageRow) -> MessageRow:
    return await database.read(lambda tx: tx.get_one(MessageRow, message.id))


async def all_of(database: Database, table: type[Any], **fields: Any) -> list[Any]:
    query = select(table).where(*(col(getattr(table, name)) == value for name, value in fields.items()))

    async def work(tx: AsyncSession) -> list[Any]:
        return list(await tx.scalars(query))

    return await database.read(work)


async def change(database: Database, row: Any, **fields: Any) -> None:
    """Write fields of a row, whatever they were."""

    async def work(tx: AsyncSession) -> None:
        found = await tx.get_one(type(row), row.id)
        for name, value in fields.items():
            setattr(found, name, value)

    await database.transact(work)

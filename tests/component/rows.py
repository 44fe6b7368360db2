"""Builders of rows and reports, with fields to override."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from service.consumers.conversation import ConversationConsumer
from service.consumers.row_outputs import Output
from service.domain.identities import incoming_message_id, outgoing_message_id
from service.domain.sending import GiveUp, Retry, SendPolicy
from service.messaging.envelope import Envelope
from service.messaging.handling import NotDone
from service.messaging.inbox import Delivery, Gate
from service.messaging.receiving import Received
from service.persistence import lanes, sessions
from service.persistence.database import Database
from service.persistence.lanes import Answer, Claimed, Round
from service.persistence.tables import LaneRow, MessageRow, SessionRow
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage
from whatsapp_qr_contracts.message import Message, SessionStatus

CUSTOMER = "5491112345678"
POLICY = SendPolicy()
MAY_HAVE_GONE_OUT = "; an earlier attempt, whose outcome is unknown, may have been sent"


async def a_session(
    database: Database, *, status: SessionStatus = SessionStatus.CONNECTED, chatbot_id: UUID | None = None
) -> SessionRow:
    chatbot_id = chatbot_id or uuid4()

    async def work(tx: AsyncSession) -> SessionRow:
        await sessions.register_chatbot(tx, chatbot_id)
        session = await sessions.open_session(tx, chatbot_id, f"session_{chatbot_id}_1700000000000")
        sessions.move(tx, session, status, wanted=True)
        return session

    return await database.transact(work)


def a_report(session: SessionRow, whatsapp_id: str = "A1", **fields: Any) -> GatewayMessage:
    valid = {"from": CUSTOMER, "message": "hi", "messageId": whatsapp_id, "timestamp": 1_700_000_000}
    return GatewayMessage.model_validate(valid | {"sessionId": session.session_id} | fields)


def a_command(session: SessionRow, **fields: Any) -> SendMessage:
    return SendMessage.model_validate(
        {"chatbotId": session.chatbot_id, "to": CUSTOMER, "message": "hello", "messageId": str(uuid4())} | fields
    )


def received(body: Message, message_id: str = "c", timestamp: datetime | None = None) -> Received:
    """Return a message as a consumer gives it to its handler."""
    raw = SimpleNamespace(message_id=message_id, correlation_id=message_id, headers={}, body=body.wire())
    delivery = Delivery(raw, 0, Gate())
    return Received(delivery, body, Envelope(message_id, timestamp, redelivered=False), body.partition_key)


class Outputs:
    """Stands for the announcer: keeps the outputs that it is given, and publishes nothing."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def publish_soon(self, outputs: Sequence[Output]) -> None:
        self.outputs += outputs

    async def published(self, seconds: float) -> None:
        """Have nothing to wait for."""

    @property
    def names(self) -> list[str]:
        return [output.message.name for output in self.outputs]

    @property
    def ids(self) -> list[str]:
        return [output.message_id for output in self.outputs]

    @property
    def messages(self) -> list[Any]:
        return [output.message for output in self.outputs]

    def take(self) -> list[Output]:
        taken, self.outputs = self.outputs, []
        return taken


async def handle(
    database: Database, *bodies: Message, message_id: str = "c", announcer: Outputs | None = None
) -> NotDone:
    """Handle messages as the conversation consumer does, in one batch."""
    consumer = ConversationConsumer(database, announcer or Outputs(), timedelta(hours=1))  # type: ignore[arg-type]
    return await consumer.handle([received(body, message_id) for body in bodies])


async def receive(database: Database, session: SessionRow, whatsapp_id: str = "A1", **fields: Any) -> MessageRow:
    """Store a customer's message as the conversation consumer does."""
    report = a_report(session, whatsapp_id, **fields)
    await handle(database, report, message_id="report")
    return await database.read(lambda tx: tx.get_one(MessageRow, incoming_message_id(session.id, report.message_id)))


async def enqueue(
    database: Database,
    session: SessionRow,
    *,
    expiry: timedelta = timedelta(hours=1),
    wakes: bool = True,
    **fields: Any,
) -> MessageRow:
    """Store a message to send as the conversation consumer does, and wake its lane as its job does."""
    command = a_command(session, **fields)
    consumer = ConversationConsumer(database, Outputs(), expiry)  # type: ignore[arg-type]
    await consumer.handle([received(command, "command")])
    message_id = outgoing_message_id(command.chatbot_id, str(command.message_id))
    if wakes:
        await wake(database, session)
    return await database.read(lambda tx: tx.get_one(MessageRow, message_id))


async def wake(database: Database, session: SessionRow) -> None:
    """Wake a lane that sleeps."""

    async def work(tx: AsyncSession) -> None:
        if (await tx.get_one(LaneRow, session.session_id, with_for_update=True)).wake_at is None:
            await lanes.wake(tx, [session.session_id])

    await database.transact(work)


async def send_round(
    database: Database, *sessions: SessionRow, answers: Sequence[Answer] = (), policy: SendPolicy = POLICY
) -> Round:
    """Do what one transaction of the outbound consumer does."""
    due = {session.session_id for session in sessions}
    return await database.transact(lambda tx: lanes.send_round(tx, answers=answers, due=due, policy=policy))


async def claimed(database: Database, session: SessionRow, policy: SendPolicy = POLICY) -> Claimed:
    """Claim the first message of a lane."""
    [one] = (await send_round(database, session, policy=policy)).claimed
    return one


async def answered(database: Database, one: Claimed, result: str | Retry | GiveUp) -> Round:
    """Record the gateway's answer to a call that was made for a message as it was claimed."""
    return await send_round(database, answers=[Answer(one, result)])


async def sent(database: Database, session: SessionRow, whatsapp_id: str | None = None) -> MessageRow:
    """Send the first message of a lane; return it as it is then."""
    one = await claimed(database, session)
    await answered(database, one, whatsapp_id or one.message.whatsapp_message_id)
    return await reread(database, one.message)


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

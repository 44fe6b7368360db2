"""Conversations and the messages that enter them; receipts for the messages that left."""

from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, delete, select

from service import tracing
from service.domain import identities
from service.domain.delivery import raised
from service.persistence.database import Database
from service.persistence.sessions import session_by_id
from service.persistence.tables import ConversationRow, MessageRow, ReceiptRow, SessionRow, now
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage
from whatsapp_qr_contracts.message import DeliveryStatus, Role

_S = DeliveryStatus

FAILED_BY_WHATSAPP = "failed_by_whatsapp"
"""The error code of a message that a receipt reported as failed."""


class Stored(NamedTuple):
    """A message and its conversation, as they stand after the transaction."""

    conversation: ConversationRow
    message: MessageRow
    is_new: bool


async def store_incoming(
    database: Database, tx: AsyncSession, session: SessionRow, report: GatewayMessage, *, correlation_id: str
) -> Stored:
    """Store a customer's message once, however often it is reported. The session is locked by the caller."""
    message_id = identities.incoming_message_id(session.id, report.message_id)
    if known := await tx.get(MessageRow, message_id):
        return Stored(await tx.get_one(ConversationRow, known.conversation_id), known, is_new=False)
    conversation = await _conversation(database, tx, session.chatbot_id, identities.customer_address(report.sender))
    conversation.sequence_end += 1
    message = MessageRow(
        id=message_id,
        conversation_id=conversation.id,
        chatbot_id=session.chatbot_id,
        session_id=session.session_id,
        role=Role.USER,
        content=report.message,
        delivery_status=_S.DELIVERED,
        whatsapp_message_id=report.message_id,
        announced=False,
        correlation_id=correlation_id,
        traceparent=tracing.traceparent(),
        external_user_id=conversation.external_user_id,
        sequence=conversation.sequence_end,
        sent_at_customer=report.timestamp,
        push_name=report.push_name,
        type=report.type,
        created_at=conversation.last_message_at,
    )
    tx.add(message)
    return Stored(conversation, message, is_new=True)


async def store_outgoing(
    database: Database,
    tx: AsyncSession,
    session: SessionRow,
    command: SendMessage,
    *,
    message_id: UUID,
    correlation_id: str,
    expiry: timedelta,
) -> Stored:
    """Store a message to send at the end of its session's lane, once. The session is locked by the caller.

    Where the id is known already the known row is returned; the caller compares it with the command.
    """
    if known := await tx.get(MessageRow, message_id):
        return Stored(await tx.get_one(ConversationRow, known.conversation_id), known, is_new=False)
    conversation = await _conversation(database, tx, session.chatbot_id, command.to)
    session.lane_end += 1
    message = MessageRow(
        id=message_id,
        conversation_id=conversation.id,
        chatbot_id=session.chatbot_id,
        session_id=session.session_id,
        role=Role.ASSISTANT,
        content=command.message,
        delivery_status=_S.PENDING,
        whatsapp_message_id=identities.whatsapp_message_id(message_id),
        announced=True,
        correlation_id=correlation_id,
        traceparent=tracing.traceparent(),
        caller_metadata=command.metadata,
        external_user_id=conversation.external_user_id,
        lane_number=session.lane_end,
        expires_at=command.expires_at or await database.present(tx, expiry),
        created_at=conversation.last_message_at,
    )
    tx.add(message)
    return Stored(conversation, message, is_new=True)


async def _conversation(
    database: Database, tx: AsyncSession, chatbot_id: UUID, external_user_id: str
) -> ConversationRow:
    """Return the conversation with a customer, locked, with the time of the message that enters it now."""
    conversation_id, at = identities.conversation_id(chatbot_id, external_user_id), now()
    query = select(ConversationRow).where(col(ConversationRow.id) == conversation_id).with_for_update()
    conversation = (await tx.scalars(query)).one_or_none()
    if conversation is None:
        new = ConversationRow(
            id=conversation_id,
            chatbot_id=chatbot_id,
            channel=identities.CHANNEL,
            external_user_id=external_user_id,
            last_message_at=at,
        )
        await database.insert_new(tx, ConversationRow, **new.model_dump())
        return (await tx.scalars(query)).one()
    # A clock may be behind; this rises all the same, and with it the order of the conversation's messages.
    conversation.last_message_at = max(conversation.last_message_at + timedelta(microseconds=1), at)
    return conversation


def same_content(message: MessageRow, command: SendMessage) -> bool:
    """Say whether a stored message is the one that a command asks for."""
    return (
        message.role is Role.ASSISTANT
        and message.external_user_id == command.to
        and message.content == command.message
        and message.caller_metadata == command.metadata
    )


async def apply_receipt(
    tx: AsyncSession, *, session_id: str, whatsapp_id: str, status: DeliveryStatus, at: datetime, error: str | None
) -> MessageRow | None:
    """Raise the status of a sent message; keep the receipt where its message is not known (yet), and return None."""
    message = await _sent_as(tx, session_id, whatsapp_id)
    if message is None:
        # record_sent gives a message an id of the gateway's own under this lock too: neither may miss the other.
        await session_by_id(tx, session_id, lock=True)
        message = await _sent_as(tx, session_id, whatsapp_id)
    if message is None:
        await tx.merge(
            ReceiptRow(session_id=session_id, whatsapp_message_id=whatsapp_id, status=status, at=at, error=error)
        )
        return None
    raise_status(message, status, at, error_code=FAILED_BY_WHATSAPP, error_message=error)
    return message


async def _sent_as(tx: AsyncSession, session_id: str, whatsapp_id: str) -> MessageRow | None:
    query = select(MessageRow).where(
        col(MessageRow.session_id) == session_id,
        col(MessageRow.whatsapp_message_id) == whatsapp_id,
        col(MessageRow.role) == Role.ASSISTANT,
    )
    # A gateway that uses an id twice must not stop its receipts: they are the newest message's.
    newest = query.order_by(col(MessageRow.lane_number).desc()).limit(1)
    return (await tx.scalars(newest.with_for_update())).one_or_none()


async def apply_waiting_receipts(tx: AsyncSession, message: MessageRow) -> None:
    """Apply the receipts that came before their message was known under its WhatsApp id."""
    key = (
        col(ReceiptRow.session_id) == message.session_id,
        col(ReceiptRow.whatsapp_message_id) == message.whatsapp_message_id,
    )
    for receipt in await tx.scalars(select(ReceiptRow).where(*key)):
        raise_status(message, receipt.status, receipt.at, error_code=FAILED_BY_WHATSAPP, error_message=receipt.error)
    await tx.execute(delete(ReceiptRow).where(*key))


def raise_status(
    message: MessageRow,
    reported: DeliveryStatus,
    at: datetime,
    *,
    error_code: str | None = None,
    error_message: str | None = None,
) -> bool:
    """Move a message to a reported status where that is a step forward; say whether it was."""
    status = raised(message.delivery_status, reported)
    if status is None:
        return False
    message.delivery_status, message.announced = status, False
    failed = status is _S.FAILED
    message.error_code = error_code if failed else None
    message.error_message = error_message if failed else None
    message.failed_at = at if failed else None
    if not failed:
        message.sent_at = message.sent_at or at
    if status in {_S.DELIVERED, _S.READ}:
        message.delivered_at = message.delivered_at or at
    if status is _S.READ:
        message.read_at = at
    return True

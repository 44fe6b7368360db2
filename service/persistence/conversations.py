"""Conversations and their messages; receipts for messages that were sent."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, delete, select

from service import tracing
from service.domain import identities
from service.domain.delivery import raised
from service.persistence.tables import ConversationRecord, MessageRecord, ReceiptRow, SessionRecord, now
from whatsapp_qr_contracts.codes import FailureCode
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage
from whatsapp_qr_contracts.message import DeliveryStatus, Role

_S = DeliveryStatus


def new_conversation(session: SessionRecord, external_user_id: str, *, correlation_id: str) -> ConversationRecord:
    """Return the first conversation of a chatbot with a customer."""
    return ConversationRecord(
        id=identities.conversation_id(session.chatbot_id, external_user_id),
        chatbot_id=session.chatbot_id,
        channel=identities.CHANNEL,
        external_user_id=external_user_id,
        last_message_at=now(),
        correlation_id=correlation_id,
        key_hash=session.key_hash,
    )


def enter(conversation: ConversationRecord) -> datetime:
    """Return the time of a message that is added to a conversation now.

    It increases even if the clock is behind, so it gives the order of the conversation's messages.
    """
    at = max(conversation.last_message_at + timedelta(microseconds=1), now())
    conversation.last_message_at = at
    return at


def incoming_ids(session: SessionRecord, report: GatewayMessage) -> tuple[UUID, UUID]:
    """Return the ids of a reported message: the usual one, and the one to use if another message has the usual one."""
    first = identities.incoming_message_id(session.id, report.message_id)
    contact = identities.customer_address(report.sender), _participant(report) or ""
    content = *contact, report.type or "", report.message
    return first, identities.other_incoming_message_id(session.id, report.message_id, *content)


def same_incoming(known: MessageRecord, report: GatewayMessage) -> bool:
    """Return whether a report repeats a stored message that has the same WhatsApp id."""
    return (
        known.content == report.message
        and (known.type == report.type or None in {known.type, report.type})
        and identities.may_be_one_contact(known.external_user_id, identities.customer_address(report.sender))
        and (
            None in {known.participant, participant := _participant(report)}
            or identities.may_be_one_contact(str(known.participant), str(participant))
        )
    )


def _participant(report: GatewayMessage) -> str | None:
    return identities.customer_address(report.participant) if report.participant else None


def new_incoming(
    session: SessionRecord,
    conversation: ConversationRecord,
    report: GatewayMessage,
    *,
    correlation_id: str,
    message_id: UUID,
) -> MessageRecord:
    """Return a new message of a customer; its conversation is locked, or new."""
    conversation.sequence_end += 1
    return _new(
        session,
        conversation,
        id=message_id,
        role=Role.USER,
        content=report.message,
        delivery_status=_S.DELIVERED,
        whatsapp_message_id=report.message_id,
        correlation_id=correlation_id,
        sequence=conversation.sequence_end,
        sent_at_customer=report.timestamp,
        push_name=report.push_name,
        type=report.type,
        participant=_participant(report),
    )


def new_outgoing(
    session: SessionRecord,
    conversation: ConversationRecord,
    command: SendMessage,
    *,
    correlation_id: str,
    caller_id: str,
    expires_at: datetime,
) -> MessageRecord:
    """Return a new message to send, at the end of its session's lane; session and conversation are locked, or new."""
    session.lane_end += 1
    message_id = identities.outgoing_message_id(command.chatbot_id, caller_id)
    return _new(
        session,
        conversation,
        id=message_id,
        role=Role.ASSISTANT,
        content=command.message,
        delivery_status=_S.PENDING,
        whatsapp_message_id=identities.whatsapp_message_id(message_id),
        told_version=1,  # no event for PENDING
        correlation_id=correlation_id or str(message_id),
        caller_metadata=command.metadata,
        lane_number=session.lane_end,
        expires_at=expires_at,
    )


def _new(session: SessionRecord, conversation: ConversationRecord, **fields: Any) -> MessageRecord:
    return MessageRecord(
        conversation_id=conversation.id,
        chatbot_id=session.chatbot_id,
        session_id=session.session_id,
        key_hash=session.key_hash,
        traceparent=tracing.traceparent(),
        external_user_id=conversation.external_user_id,
        created_at=enter(conversation),
        **fields,
    )


def same_content(message: MessageRecord, command: SendMessage) -> bool:
    """Return whether a stored message is the one that a command asks for."""
    return (
        message.role is Role.ASSISTANT
        and message.external_user_id == command.to
        and message.content == command.message
        and message.caller_metadata == command.metadata
    )


async def take_receipts(tx: AsyncSession, message: MessageRecord) -> None:
    """Raise a message's status according to the receipts that arrived before its WhatsApp id was known."""
    key = (
        col(ReceiptRow.session_id) == message.session_id,
        col(ReceiptRow.whatsapp_message_id) == message.whatsapp_message_id,
    )
    for kept in list(await tx.scalars(select(ReceiptRow).where(*key))):
        raise_status(message, kept.status, kept.at, code=FailureCode.FAILED_BY_WHATSAPP, detail=kept.error)
    await tx.execute(delete(ReceiptRow).where(*key).execution_options(synchronize_session=False))


def raise_status(
    message: MessageRecord,
    reported: DeliveryStatus,
    at: datetime,
    *,
    code: str | None = None,
    detail: str | None = None,
) -> bool:
    """Move a message to a reported status if that is a step forward; return whether it was."""
    status = raised(message.delivery_status, reported)
    if status is None:
        return False
    message.delivery_status = status
    message.version += 1
    failed = status is _S.FAILED
    message.error_code = code if failed else None
    message.error_message = detail if failed else None
    message.failed_at = at if failed else None
    if not failed:
        message.sent_at = message.sent_at or at
    if status in {_S.DELIVERED, _S.READ}:
        message.delivered_at = message.delivered_at or at
    if status is _S.READ:
        message.read_at = at
    return True

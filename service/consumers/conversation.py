"""The conversation consumer: stores messages in conversations, in both directions, and applies receipts.

Waiting messages are handled in batches: their rows are locked and read together, each message is decided on in the
order of arrival, and all are committed at once. The outputs are published from the rows: a job for the AI workers or
for the outbound consumer, and events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, assert_never
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from service import tracing
from service.consumers import message_commands, row_outputs
from service.consumers.announcing import Announcer
from service.consumers.outcomes import end
from service.consumers.row_outputs import Output
from service.domain import identities
from service.errors import Rejected, Undeliverable
from service.messaging.envelope import Envelope
from service.messaging.handling import Handler, NotDone
from service.messaging.receiving import Received
from service.messaging.topology import CONVERSATIONS
from service.persistence import conversations
from service.persistence.database import Database
from service.persistence.intake import Intake, Needs
from service.persistence.tables import ConversationRecord, ReceiptRow, SessionRecord, now
from service.privacy import shown
from whatsapp_qr_contracts.codes import DeadLetterReason, FailureCode, RejectionCode
from whatsapp_qr_contracts.commands import CancelMessage, Command, RetryMessage, SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage, GatewayReceipt, GatewayReport, moment_of
from whatsapp_qr_contracts.message import DeliveryStatus

log = structlog.get_logger()


@dataclass(frozen=True)
class ConversationConsumer(Handler):
    """The handler of `whatsapp-qr.conversations`."""

    database: Database
    announcer: Announcer
    expiry: timedelta
    """How long a message may wait to be sent if its sender sets no limit."""
    models: ClassVar[Mapping[str, Any]] = {model.name: model for model in CONVERSATIONS.carries}

    async def handle(self, batch: Sequence[Received]) -> NotDone:
        """Process a batch in one transaction, and publish the outputs."""
        outputs, failures = await self.database.transact(partial(self._do_all, batch=batch))
        self.announcer.publish_soon(list({output.message_id: output for output in outputs}.values()))
        return failures

    async def _do_all(self, tx: AsyncSession, *, batch: Sequence[Received]) -> tuple[list[Output], NotDone]:
        rows = await _rows_for(tx, batch)
        outputs: list[Output] = []
        failures: NotDone = []
        for received in batch:
            with received.traced(CONVERSATIONS.name):
                try:
                    outputs += self._do(rows, received.body, received.envelope)
                except Undeliverable as error:
                    failures.append((received, error))
        await rows.write()
        return outputs, failures

    def _do(self, rows: Intake, body: Any, envelope: Envelope) -> list[Output]:
        """Change the rows for one message; return the outputs to publish after the commit."""
        match body:
            case SendMessage():
                return self._send(rows, body, envelope)
            case CancelMessage():
                return message_commands.cancel(rows, body, envelope)
            case RetryMessage():
                return message_commands.retry(rows, body, envelope, expires_at=rows.at + self.expiry)
            case GatewayMessage():
                return self._receive(rows, body, envelope)
            case GatewayReceipt():
                return self._follow_receipt(rows, body)
            case _:
                assert_never(body)

    def _send(self, rows: Intake, command: SendMessage, envelope: Envelope) -> list[Output]:
        """Store the message at the end of its session's lane."""
        caller_id = command.message_id or envelope.id_or_dead_letter()
        message_id = identities.outgoing_message_id(command.chatbot_id, caller_id)
        session, known = rows.chatbots.get(command.chatbot_id), rows.messages.get(message_id)
        tracing.about(session_id=session and session.session_id)
        if known is not None and conversations.same_content(known, command):
            return row_outputs.job_of(known)
        command_id = _command_id(command, envelope)
        if (command.chatbot_id, command_id) in rows.commands:  # once rejected, it stays rejected
            return row_outputs.of_command(message_commands.row_of(rows, command, command_id))
        if known is not None:
            reused = "a message with other content was sent under this id: use a new id for a new message"
            return _reject(rows, command, command_id, Rejected(reused, code=RejectionCode.ID_REUSED), message_id)
        if session is None:
            missing = "the chatbot has no session: initialize one first (session.initialize)"
            return _reject(rows, command, command_id, Rejected(missing, code=RejectionCode.NO_SESSION), message_id)
        conversation, begun = _conversation(rows, session, command.to, envelope.message_id)
        message = conversations.new_outgoing(
            session,
            conversation,
            command,
            correlation_id=envelope.message_id,
            caller_id=caller_id,
            expires_at=command.expires_at or rows.at + self.expiry,
        )
        if command.chatbot_id in rows.removed:  # it was accepted before: it must not be lost
            removed = "the chatbot was removed before the message was stored"
            code = FailureCode.CHATBOT_REMOVED
            conversations.raise_status(message, DeliveryStatus.FAILED, now(), code=code, detail=removed)
            message.handed_over = True
        rows.add(message)
        return [*begun, *row_outputs.of_message(message)]

    def _receive(self, rows: Intake, report: GatewayMessage, envelope: Envelope) -> list[Output]:
        """Store the message once."""
        session = _known(rows, report)
        first_id, other_id = conversations.incoming_ids(session, report)
        first, other = rows.messages.get(first_id), rows.messages.get(other_id)
        if known := first if first and conversations.same_incoming(first, report) else other:
            # If its commit was not confirmed, it is published now, before the outputs of later messages.
            return row_outputs.of_message(known)
        if first is not None:
            log.info("whatsapp_id_reused", session_id=shown(report.session_id))
        address = identities.customer_address(report.sender)
        conversation, begun = _conversation(rows, session, address, envelope.message_id)
        message = conversations.new_incoming(
            session,
            conversation,
            report,
            correlation_id=envelope.message_id,
            message_id=first_id if first is None else other_id,
        )
        rows.add(message)
        return [*begun, *row_outputs.of_message(message)]

    def _follow_receipt(self, rows: Intake, report: GatewayReceipt) -> list[Output]:
        """Raise the status of the message of a receipt; store the receipt if the message is not known yet."""
        _known(rows, report)
        receipt = report.data
        status = DeliveryStatus(receipt.status.upper())
        at = moment_of(receipt.timestamp) if receipt.timestamp is not None else now()
        message = rows.sent_as.get((report.session_id, receipt.message_id))
        if message is None or message.whatsapp_message_id != receipt.message_id:  # retried meanwhile, with another id
            kept = ReceiptRow(
                session_id=report.session_id,
                whatsapp_message_id=receipt.message_id,
                status=status,
                at=at,
                error=receipt.error,
            )
            rows.keep_receipt(kept)
            log.info("receipt_waits_for_its_message")
            return []
        code = FailureCode.FAILED_BY_WHATSAPP
        conversations.raise_status(message, status, at, code=code, detail=receipt.error)
        return row_outputs.event_of(message)


def _conversation(
    rows: Intake, session: SessionRecord, external_user_id: str, cause: str
) -> tuple[ConversationRecord, list[Output]]:
    """Return the conversation with a customer, and its outputs if it has just begun."""
    known = rows.conversations.get(identities.conversation_id(session.chatbot_id, external_user_id))
    if known is not None:
        return known, []
    new = conversations.new_conversation(session, external_user_id, correlation_id=cause)
    rows.add(new)
    return new, row_outputs.of_conversation(new)


def _known(rows: Intake, report: GatewayReport) -> SessionRecord:
    session = rows.sessions.get(report.session_id)
    if session is None:
        message = f"no session has the sessionId {report.session_id!r}"
        raise Undeliverable(message, code=DeadLetterReason.UNKNOWN_SESSION)
    return session


def _reject(rows: Intake, command: SendMessage, command_id: str, error: Rejected, message_id: UUID) -> list[Output]:
    row = message_commands.row_of(rows, command, command_id)
    end(row, command, error, about=message_id)
    return row_outputs.of_command(row)


def _command_id(command: Command, envelope: Envelope) -> str:
    if isinstance(command, SendMessage):
        return envelope.message_id or command.message_id or ""
    return envelope.message_id


async def _rows_for(tx: AsyncSession, batch: Sequence[Received]) -> Intake:
    """Lock and read the rows that a batch needs."""
    bodies = [received.body for received in batch]
    session_ids = {body.session_id for body in bodies if isinstance(body, GatewayReport)}
    chatbot_ids = {body.chatbot_id for body in bodies if isinstance(body, Command)}
    rows, needs = Intake(tx), Needs()
    await rows.lock_sessions(session_ids, chatbot_ids)
    for received in batch:
        body = received.body
        if isinstance(body, Command):
            needs.commands.add((body.chatbot_id, _command_id(body, received.envelope)))
        match body:
            case SendMessage(message_id=caller_id):
                needs.conversations.add(identities.conversation_id(body.chatbot_id, body.to))
                caller_id = caller_id or received.envelope.message_id
                needs.messages.add(identities.outgoing_message_id(body.chatbot_id, caller_id))
            case CancelMessage():
                needs.messages.add(body.message_id)
                needs.lanes_of.add(body.chatbot_id)
            case RetryMessage():
                needs.messages.add(body.message_id)
            case GatewayMessage() if session := rows.sessions.get(body.session_id):
                customer = identities.customer_address(body.sender)
                needs.conversations.add(identities.conversation_id(session.chatbot_id, customer))
                needs.messages.update(conversations.incoming_ids(session, body))
            case GatewayReceipt():
                needs.sent_as.add((body.session_id, body.data.message_id))
    await rows.load(needs)
    return rows

"""The conversation consumer: puts messages into conversations, in both directions, and follows receipts.

A customer's message becomes a row, a job for the AI workers and an event; a message to send becomes a row at the end
of its session's lane and a job that rings for it. Run again, a handler repeats what is not known to be confirmed.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from service import tracing
from service.consumers.announcing import Announcer
from service.consumers.mending import MessageMender
from service.consumers.outcomes import rejection
from service.domain.identities import outgoing_message_id, output_id
from service.errors import Rejected, Undeliverable
from service.messaging.consuming import Routes
from service.messaging.envelope import Envelope
from service.persistence import conversations
from service.persistence.conversations import Stored
from service.persistence.database import Database
from service.persistence.reading import current_session
from service.persistence.sessions import session_by_id
from service.persistence.tables import MessageRow, SessionRow, now
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage, GatewayReceipt, GatewayReport, moment_of
from whatsapp_qr_contracts.message import DeliveryStatus
from whatsapp_qr_contracts.partitions import chatbot_key

log = structlog.get_logger()


@dataclass(frozen=True)
class ConversationConsumer:
    """The handlers of `whatsapp-qr.conversations`.

    Args:
        database: conversations and messages.
        announcer: publishes what follows.
        expiry: how long a message may wait to be sent where its caller does not say.
    """

    database: Database
    announcer: Announcer
    expiry: timedelta

    def routes(self) -> Routes:
        """Return the handler of each message."""
        mender = MessageMender(self.database, self.announcer, self.expiry)
        own: Routes = {SendMessage: self.send, GatewayMessage: self.receive, GatewayReceipt: self.follow_receipt}
        return {**own, **mender.routes()}

    # A message to send

    async def send(self, command: SendMessage, envelope: Envelope) -> None:
        """Store the message at the end of its session's lane and ring for it."""
        caller_id = command.message_id or envelope.id_or_dead_letter()
        message_id = outgoing_message_id(command.chatbot_id, caller_id)
        try:
            stored = await self.database.transact(
                partial(self._store_outgoing, command=command, message_id=message_id, envelope=envelope)
            )
        except Rejected as error:
            await self._reject(command, envelope, error)
            return
        tracing.about(session_id=stored.message.session_id)
        await self.announcer.conversation(stored.conversation, caused_by=envelope.message_id)
        if stored.message.delivery_status is DeliveryStatus.PENDING:
            await self.announcer.ring(stored.message, ring_id=output_id(stored.message.id, "job"))

    async def _store_outgoing(
        self, tx: AsyncSession, *, command: SendMessage, message_id: UUID, envelope: Envelope
    ) -> Stored:
        session = await current_session(tx, command.chatbot_id, lock=True)
        if session is None:
            message = "the chatbot has no session: initialize one first (session.initialize)"
            raise Rejected(message, code="no_session")
        stored = await conversations.store_outgoing(
            self.database,
            tx,
            session,
            command,
            message_id=message_id,
            correlation_id=envelope.message_id or str(message_id),
            expiry=self.expiry,
        )
        if not stored.is_new and not conversations.same_content(stored.message, command):
            message = "a message with other content was sent under this id: use a new id for a new message"
            raise Rejected(message, code="id_reused")
        return stored

    async def _reject(self, command: SendMessage, envelope: Envelope, error: Rejected) -> None:
        command_id = envelope.message_id or command.message_id or ""
        await self.announcer.publisher.publish(
            rejection(command, envelope, error),
            message_id=output_id(command.chatbot_id, f"command.rejected {command_id}"),
            correlation_id=command_id,
            key=chatbot_key(command.chatbot_id),
        )

    # A customer's message

    async def receive(self, report: GatewayMessage, envelope: Envelope) -> None:
        """Store the message once, hand it to the AI workers and tell everybody."""

        async def store(tx: AsyncSession) -> Stored:
            session = _known(await session_by_id(tx, report.session_id, lock=True), report)
            return await conversations.store_incoming(
                self.database, tx, session, report, correlation_id=envelope.message_id
            )

        conversation, message, _ = await self.database.transact(store)
        await self.announcer.conversation(conversation, caused_by=envelope.message_id)
        await self.announcer.received(message)

    # A receipt

    async def follow_receipt(self, report: GatewayReceipt, envelope: Envelope) -> None:  # noqa: ARG002
        """Raise the status of the message that it is about; keep it where that is not known yet."""
        receipt = report.data

        async def apply(tx: AsyncSession) -> MessageRow | None:
            _known(await session_by_id(tx, report.session_id), report)
            return await conversations.apply_receipt(
                tx,
                session_id=report.session_id,
                whatsapp_id=receipt.message_id,
                status=DeliveryStatus(receipt.status.upper()),
                at=moment_of(receipt.timestamp) if receipt.timestamp is not None else now(),
                error=receipt.error,
            )

        message = await self.database.transact(apply)
        if message is None:
            log.info("receipt_waits_for_its_message")
        else:
            await self.announcer.status(message)


def _known(session: SessionRow | None, report: GatewayReport) -> SessionRow:
    if session is None:
        message = f"no session has the sessionId {report.session_id!r}"
        raise Undeliverable(message, code="unknown_session")
    return session

"""Commands about a message that exists: cancel it while it waits, or try a failed one again.

Part of the conversation consumer: a chatbot's commands are carried out in the order in which they were asked.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from service import tracing
from service.consumers.announcing import Announcer, reached_at
from service.consumers.outcomes import Outcome, begin, end, publish_outcome
from service.domain.identities import output_id
from service.errors import Rejected
from service.messaging.consuming import Routes
from service.messaging.envelope import Envelope
from service.persistence import lanes
from service.persistence.database import Database
from service.persistence.reading import current_session
from service.persistence.tables import MessageRow, SessionRow, now
from whatsapp_qr_contracts.commands import CancelMessage, MessageCommand, RetryMessage
from whatsapp_qr_contracts.events import MessageCancelled, MessageQueued, MessageStatusEvent
from whatsapp_qr_contracts.message import DeliveryStatus


@dataclass(frozen=True)
class MessageMender:
    """The handlers of `message.cancel` and `message.retry`.

    Args:
        database: messages and commands.
        announcer: publishes what follows.
        expiry: how long a message that is tried again may wait.
    """

    database: Database
    announcer: Announcer
    expiry: timedelta

    def routes(self) -> Routes:
        """Return the handler of each message."""
        return {CancelMessage: self.cancel, RetryMessage: self.retry}

    async def cancel(self, command: CancelMessage, envelope: Envelope) -> None:
        """Fail a message that waits."""
        outcome = await self.database.transact(partial(self._cancel, command=command, envelope=envelope))
        await self._announce(command)
        await publish_outcome(self.announcer.publisher, outcome, command, envelope)

    async def _cancel(self, tx: AsyncSession, *, command: CancelMessage, envelope: Envelope) -> Outcome:
        if outcome := await begin(self.database, tx, command, envelope):
            return outcome
        try:
            message = _own(await lanes.locked(tx, command.message_id), command)
            await lanes.cancel(self.database, tx, message)
        except Rejected as error:
            return await end(tx, command, envelope, error)
        return await end(tx, command, envelope, _event(MessageCancelled, message, reached_at(message)))

    async def retry(self, command: RetryMessage, envelope: Envelope) -> None:
        """Put a failed message at the end of its lane and ring for it."""
        await self._announce(command)  # its failure, before it is none any more
        outcome = await self.database.transact(partial(self._retry, command=command, envelope=envelope))
        if outcome.name == MessageQueued.name:
            await self._ring(command, envelope)
        await publish_outcome(self.announcer.publisher, outcome, command, envelope)

    async def _retry(self, tx: AsyncSession, *, command: RetryMessage, envelope: Envelope) -> Outcome:
        if outcome := await begin(self.database, tx, command, envelope):
            return outcome
        try:
            session = _usable(await current_session(tx, command.chatbot_id, lock=True))
            message = _own(await lanes.locked(tx, command.message_id), command)
            await lanes.enqueue_again(
                self.database, tx, session, message, expiry=self.expiry, retry=envelope.message_id
            )
        except Rejected as error:
            return await end(tx, command, envelope, error)
        return await end(tx, command, envelope, _event(MessageQueued, message, now()))

    async def _announce(self, command: MessageCommand) -> None:
        message = await self._message(command)
        if message is not None and message.delivery_status is DeliveryStatus.FAILED:
            await self.announcer.status(message)

    async def _ring(self, command: RetryMessage, envelope: Envelope) -> None:
        message = await self._message(command)
        if message is not None and message.delivery_status is DeliveryStatus.PENDING:
            await self.announcer.ring(message, ring_id=output_id(message.id, f"retry {envelope.message_id}"))

    async def _message(self, command: MessageCommand) -> MessageRow | None:
        message = await self.database.read(lambda tx: tx.get(MessageRow, command.message_id))
        tracing.about(session_id=message and message.session_id)
        return message if message is not None and message.chatbot_id == command.chatbot_id else None


def _usable(session: SessionRow | None) -> SessionRow:
    if session is None:
        raise Rejected("the chatbot has no session: initialize one first (session.initialize)", code="no_session")
    return session


def _own(message: MessageRow | None, command: MessageCommand) -> MessageRow:
    if message is None or message.chatbot_id != command.chatbot_id:
        raise Rejected("the chatbot has no message with this messageId", code="unknown_message")
    return message


def _event(kind: type[MessageStatusEvent], message: MessageRow, at: datetime) -> MessageStatusEvent:
    fields: dict[str, Any] = message.model_dump(include=_SHOWN)
    return kind(message_id=message.id, occurred_at=at, metadata=message.caller_metadata, **fields)


_SHOWN = {"conversation_id", "chatbot_id", "session_id", "external_user_id", "whatsapp_message_id", "delivery_status"}

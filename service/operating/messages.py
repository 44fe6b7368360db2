"""Single messages by hand: cancel one that waits, try a failed one again. Both are commands of the public interface."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from service.errors import Rejected
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.persistence.sessions import command_outcome
from service.persistence.tables import MessageRow
from whatsapp_qr_contracts.commands import MessageCommand
from whatsapp_qr_contracts.events import CommandRejected

_WAIT_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class Messages:
    """Carries out commands about messages, as any user of the service would."""

    database: Database
    publisher: Publisher

    async def carry_out(self, kind: type[MessageCommand], message_id: UUID) -> dict[str, Any] | None:
        """Publish a command and return the event that ends it; None where it has not ended within 10 s.

        Raises:
            Rejected: the message is not known, or its state does not allow it.
            Unavailable: the database or the broker is away.
        """
        message = await self.database.read(lambda tx: tx.get_one(MessageRow, message_id))
        chatbot_id, command_id = message.chatbot_id, str(uuid7())
        await self.publisher.publish(
            kind(chatbot_id=chatbot_id, message_id=message_id),
            message_id=command_id,
            correlation_id=command_id,
        )
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until:
            outcome = await self.database.read(lambda tx: command_outcome(tx, chatbot_id, command_id))
            if outcome is not None:
                if outcome["name"] == CommandRejected.name:
                    raise Rejected(outcome["body"]["detail"], code=outcome["body"]["code"])
                return outcome
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
        return None

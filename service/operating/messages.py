"""The operator's actions on single messages: cancel or retry. Both are commands of the public interface."""

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from service.errors import Rejected
from service.messaging.publishing import Publisher
from service.persistence import deployment
from service.persistence.database import Database
from service.persistence.tables import MessageRow
from service.waiting import Waiters
from whatsapp_qr_contracts.commands import MessageCommand
from whatsapp_qr_contracts.events import CommandRejected

_LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class Messages:
    """Executes commands about messages, as any user of the service would."""

    database: Database
    publisher: Publisher

    async def carry_out(self, kind: type[MessageCommand], message_id: UUID) -> dict[str, Any] | None:
        """Publish a command and return the event that answers it; None if there is none within 10 s.

        Raises:
            Rejected: the message is not known, or its state does not allow it.
            ConfigurationError: the database has another PARTITIONS.
            Unavailable: the database or the broker is unavailable.
        """
        await self.database.read(partial(deployment.check, partitions=self.publisher.partitions))
        message = await self.database.read(lambda tx: tx.get_one(MessageRow, message_id))
        chatbot_id, command_id = message.chatbot_id, str(uuid7())
        waiters = Waiters(self.database, look_every=_LOOK_EVERY_SECONDS)
        waiters.register(command_id)
        await self.publisher.publish(
            kind(chatbot_id=chatbot_id, message_id=message_id),
            message_id=command_id,
            correlation_id=command_id,
        )
        outcome = await waiters.outcome(chatbot_id, command_id)
        if outcome is not None and outcome["name"] == CommandRejected.name:
            raise Rejected(outcome["body"]["detail"], code=outcome["body"]["code"])
        return outcome

"""A command is executed once: its row holds the event that answers it, and a repetition only repeats that event."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from service.domain.identities import output_id
from service.errors import Rejected
from service.messaging.envelope import Envelope
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.persistence.sessions import command_row
from service.persistence.tables import CommandRow
from whatsapp_qr_contracts import events
from whatsapp_qr_contracts.commands import Command
from whatsapp_qr_contracts.events import CommandRejected, Event
from whatsapp_qr_contracts.partitions import chatbot_key

_EVENTS: dict[str, type[Event]] = {
    event.name: event
    for event in vars(events).values()
    if isinstance(event, type) and issubclass(event, Event) and "name" in vars(event)
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The event that answers a command."""

    name: str
    message_id: str
    body: dict[str, Any]


def rejection(command: Command, envelope: Envelope, error: Rejected) -> CommandRejected:
    """Return the event that says why a command was not carried out."""
    return CommandRejected(
        command_id=envelope.message_id,
        command=command.name,
        chatbot_id=command.chatbot_id,
        code=error.code,
        detail=error.detail,
    )


async def begin(database: Database, tx: AsyncSession, command: Command, envelope: Envelope) -> Outcome | None:
    """Write the command down; return its outcome where it has one already, or where its id is another command's.

    Raises:
        Undeliverable: the command has no id.
    """
    command_id, digest = envelope.id_or_dead_letter(), _digest(command)
    row = await command_row(
        database, tx, chatbot_id=command.chatbot_id, command_id=command_id, name=command.name, digest=digest
    )
    if (row.name, row.digest or digest) != (command.name, digest):
        reused = Rejected("another command was given under this id: use a new id for a new command", code="id_reused")
        # The row is the other command's, and so is the id of a rejection that is derived from the command's id alone.
        own_id = output_id(command.chatbot_id, f"{reused.code} {command.name} {digest} {command_id}")
        return _outcome(rejection(command, envelope, reused), own_id)
    return Outcome(**row.outcome) if row.outcome else None


def _digest(command: Command) -> str:
    # Without defaults: a field that is new in some version does not make another command of one from before.
    body = command.model_dump_json(exclude={"requested_at"}, exclude_defaults=True)
    return hashlib.sha256(body.encode()).hexdigest()


async def end(
    tx: AsyncSession,
    command: Command,
    envelope: Envelope,
    result: Event | Rejected,
    *,
    message_id: str | None = None,
) -> Outcome:
    """Write down the event that answers a command, which `begin` wrote down before.

    Args:
        tx: the transaction that also holds what the command changed.
        command: the command.
        envelope: its envelope.
        result: the event, or why the command was rejected.
        message_id: the event's id where it has one of its own; else one is derived from the command's.
    """
    event = rejection(command, envelope, result) if isinstance(result, Rejected) else result
    row = await tx.get_one(CommandRow, (command.chatbot_id, envelope.message_id))
    own_id = output_id(command.chatbot_id, f"{event.name} {envelope.message_id}")
    outcome = _outcome(event, message_id or own_id)
    row.outcome = asdict(outcome)
    return outcome


def _outcome(event: Event, message_id: str) -> Outcome:
    return Outcome(event.name, message_id, event.model_dump(mode="json", by_alias=True))


async def publish_outcome(publisher: Publisher, outcome: Outcome, command: Command, envelope: Envelope) -> None:
    """Publish the event that answers a command."""
    await publisher.publish(
        _EVENTS[outcome.name].model_validate(outcome.body),
        message_id=outcome.message_id,
        correlation_id=envelope.message_id,
        key=chatbot_key(command.chatbot_id),
    )

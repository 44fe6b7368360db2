"""A command is executed once: its row holds the event that answers it; a repeated command only publishes it again."""

import hashlib
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from service.domain.identities import key_hash, output_id
from service.errors import Rejected
from service.persistence.sessions import command_row
from service.persistence.tables import CommandRow
from whatsapp_qr_contracts.codes import RejectionCode
from whatsapp_qr_contracts.commands import Command, MessageCommand
from whatsapp_qr_contracts.events import CommandRejected, Event

_REUSED = Rejected(
    "another command was given under this id: use a new id for a new command", code=RejectionCode.ID_REUSED
)


async def begin(tx: AsyncSession, command: Command, command_id: str) -> CommandRow:
    """Store a command and return its row. It has an outcome if the command has ended, or if its id is another one's."""
    known = await command_row(tx, new_row(command, command_id))
    row = repeated(known, command)
    return known if row is known else await tx.merge(row)


def new_row(command: Command, command_id: str) -> CommandRow:
    """Return the row of a new command."""
    return CommandRow(
        chatbot_id=command.chatbot_id,
        command_id=command_id,
        name=command.name,
        digest=_digest(command),
        key_hash=key_hash(command.partition_key),
    )


def repeated(known: CommandRow, command: Command) -> CommandRow:
    """Return the row that answers a command whose id is known: its outcome, if there is one, is published again.

    If the known row is another command's, this one is rejected, in a separate row.
    """
    digest = _digest(command)
    if (known.name, known.digest or digest) == (command.name, digest):
        known.told_version = 0
        return known
    own_id = output_id(command.chatbot_id, f"{_REUSED.code} {command.name} {digest} {known.command_id}")
    row = new_row(command, own_id)
    about = command.message_id if isinstance(command, MessageCommand) else None
    end(row, command, _REUSED, command_id=known.command_id, message_id=own_id, about=about)
    return row


def _digest(command: Command) -> str:
    # Without defaults: a field added in a later version must not change the digest of an earlier command.
    body = command.model_dump_json(exclude={"requested_at"}, exclude_defaults=True)
    return hashlib.sha256(body.encode()).hexdigest()


def end(
    row: CommandRow,
    command: Command,
    result: Event | Rejected,
    *,
    command_id: str | None = None,
    message_id: str | None = None,
    about: UUID | None = None,
) -> None:
    """Store the event that answers a command; it is published once that is committed.

    `command_id` is given if the row has another one, `message_id` if the event has its own id: otherwise an id is
    derived from the command's. `about` is the message that a rejected command refers to.
    """
    command_id = command_id or row.command_id
    event = _rejection(command, command_id, result, about) if isinstance(result, Rejected) else result
    row.outcome = {
        "name": event.name,
        "message_id": message_id or output_id(command.chatbot_id, f"{event.name} {command_id}"),
        "body": event.model_dump(mode="json", by_alias=True),
        "command_id": command_id,
    }
    row.version, row.told_version = 1, 0


def _rejection(command: Command, command_id: str, error: Rejected, about: UUID | None) -> CommandRejected:
    return CommandRejected(
        command_id=command_id,
        command=command.name,
        chatbot_id=command.chatbot_id,
        code=error.code,
        detail=error.detail,
        message_id=about,
    )

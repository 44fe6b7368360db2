"""Commands for an existing message: cancel it while it waits, or retry a failed one.

Part of the conversation consumer: a chatbot's commands are executed in the order in which they were published.
"""

from datetime import datetime

from service import tracing
from service.consumers import row_outputs
from service.consumers.outcomes import end, new_row, repeated
from service.consumers.row_outputs import Output
from service.errors import Rejected
from service.messaging.envelope import Envelope
from service.persistence import lanes
from service.persistence.intake import Intake
from service.persistence.tables import CommandRow, MessageRecord, SessionRecord, now
from whatsapp_qr_contracts.codes import RejectionCode
from whatsapp_qr_contracts.commands import CancelMessage, Command, MessageCommand, RetryMessage
from whatsapp_qr_contracts.events import MessageCancelled, MessageQueued


def cancel(rows: Intake, command: CancelMessage, envelope: Envelope) -> list[Output]:
    """Fail a waiting message."""
    row = row_of(rows, command, envelope.id_or_dead_letter())
    if row.outcome is not None:
        return row_outputs.of_command(row)
    try:
        message = _own(rows, command)
        lanes.cancel(message, rows.lanes.get(message.session_id), rows.at)
    except Rejected as error:
        end(row, command, error, about=command.message_id)
        return row_outputs.of_command(row)
    end(row, command, row_outputs.event_as(MessageCancelled, message, row_outputs.reached_at(message)))
    return [*row_outputs.event_of(message), *row_outputs.of_command(row)]


def retry(rows: Intake, command: RetryMessage, envelope: Envelope, *, expires_at: datetime) -> list[Output]:
    """Put a failed message at the end of its lane."""
    row = row_of(rows, command, envelope.id_or_dead_letter())
    if row.outcome is not None:
        return row_outputs.of_command(row)
    try:
        session = _usable(rows, command)
        message = _own(rows, command)
        failed = row_outputs.event_of(message)  # its failure must be published before the message is queued again
        lanes.enqueue_again(session, message, expires_at=expires_at, retry=envelope.message_id)
    except Rejected as error:
        end(row, command, error, about=command.message_id)
        return row_outputs.of_command(row)
    end(row, command, row_outputs.event_as(MessageQueued, message, now()))
    return [*failed, *row_outputs.job_of(message), *row_outputs.of_command(row)]


def row_of(rows: Intake, command: Command, command_id: str) -> CommandRow:
    """Return the row of a command. It has an outcome if the command has ended, or if its id is another command's."""
    known = rows.commands.get((command.chatbot_id, command_id))
    row = new_row(command, command_id) if known is None else repeated(known, command)
    if row is not known:
        rows.add(row)
    return row


def _usable(rows: Intake, command: MessageCommand) -> SessionRecord:
    session = rows.chatbots.get(command.chatbot_id)
    if session is None or command.chatbot_id in rows.removed:
        detail = "the chatbot has no session: initialize one first (session.initialize)"
        raise Rejected(detail, code=RejectionCode.NO_SESSION)
    return session


def _own(rows: Intake, command: MessageCommand) -> MessageRecord:
    message = rows.messages.get(command.message_id)
    tracing.about(session_id=message and message.session_id)
    if message is None or message.chatbot_id != command.chatbot_id:
        detail = "the chatbot has no message with this messageId"
        raise Rejected(detail, code=RejectionCode.UNKNOWN_MESSAGE)
    return message

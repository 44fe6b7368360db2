"""Commands: what users of the service ask for. The public write interface, exchange `whatsapp-qr.commands`.

A command is published persistent and mandatory, with a `message_id` that is unique per command. Publishing the same
command again with the same id has one effect. Every command ends in one event with its id as `correlation_id`.
"""

import json
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints

from whatsapp_qr_contracts.addresses import Address
from whatsapp_qr_contracts.message import COMMANDS, Identifier, Instant, Message, Text, storable

MAX_MESSAGE_CHARACTERS = 65_536
MAX_METADATA_BYTES = 16_384
MAX_METADATA_DEPTH = 100  # JSON readers have limits: pydantic's own is 200


def _storable(value: Any, depth: int = MAX_METADATA_DEPTH) -> Any:
    if not depth:
        message = f"metadata may be nested at most {MAX_METADATA_DEPTH} deep"
        raise ValueError(message)
    match value:
        case dict():
            return {storable(key): _storable(item, depth - 1) for key, item in value.items()}
        case list():
            return [_storable(item, depth - 1) for item in value]
        case _:
            return storable(value)


def _small(value: dict[str, Any]) -> dict[str, Any]:
    value = _storable(value)
    # NaN and Infinity are not JSON: PostgreSQL refuses them.
    if len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) > MAX_METADATA_BYTES:
        message = f"metadata may have at most {MAX_METADATA_BYTES} bytes as JSON"
        raise ValueError(message)
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
"""A JSON object of the caller's own, at most 16 KiB; kept with the message and never changed."""


class Command(Message):
    """Base of all commands. Everything that is asked of one chatbot is done in the order in which it was asked."""

    exchange: ClassVar[str] = COMMANDS

    chatbot_id: UUID = Field(description="The chatbot it is about")


class InitializeSession(Command):
    """Link the chatbot to a WhatsApp account: make a session if there is none and ask the gateway for a QR code.

    Sent by the service itself with `repairOf`, it brings a wanted session back that the gateway lost or never opened.
    Ends in `session.connecting`; in `session.qr_ready` or `session.connected` where that is so already; in
    `session.disconnected` with a reason where the gateway refused or was away; or in `command.rejected`
    (`unknown_chatbot`, `gateway_unreachable`; with `repairOf` also `not_wanted`, `outdated`).
    """

    name: ClassVar[str] = "session.initialize"

    requested_at: Instant | None = Field(
        default=None, description="When it was asked for; its milliseconds become part of a new sessionId"
    )
    repair_of: int | None = Field(
        default=None,
        ge=0,
        description="Only where the session is still wanted and at this version; a pairing that hangs is begun anew",
    )


class DisconnectSession(Command):
    """End the link. Ends in `session.disconnected`, or in `command.rejected` (`no_session`)."""

    name: ClassVar[str] = "session.disconnect"


class RegisterChatbot(Command):
    """Make a chatbot known; needed before the first `session.initialize` where CHATBOTS=strict. Idempotent.

    Ends in `chatbot.registered`.
    """

    name: ClassVar[str] = "chatbot.register"


class RemoveChatbot(Command):
    """End the chatbot's link and forget the chatbot; its conversations are kept. Ends in `chatbot.removed`."""

    name: ClassVar[str] = "chatbot.remove"


class SendMessage(Command):
    """Send a text to a customer. Messages of one chatbot go out in the order of their commands.

    The message's id is `uuid5(chatbotId, messageId)`, with the AMQP `message_id` where `messageId` is left out. The
    same id again with the same content has no second effect; with other content it is rejected (`id_reused`).
    Ends in `message.sent` or `message.failed`, or in `command.rejected` (`no_session`, `id_reused`). While the
    session is not connected the message waits.
    """

    name: ClassVar[str] = "message.send"

    to: Address
    message: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_MESSAGE_CHARACTERS)]
    metadata: Metadata = Field(default_factory=dict)
    message_id: Identifier | None = Field(default=None, description="The caller's own id for this message")
    expires_at: Instant | None = Field(
        default=None, description="After this it is not sent any more; default: SEND_EXPIRY after it was accepted"
    )


class MessageCommand(Command):
    """Base of what is asked of a message to send that the service has already."""

    message_id: UUID = Field(description="The message's id, as in its events and in GET /whatsapp-qr/messages")


class CancelMessage(MessageCommand):
    """Do not send a message that still waits: it becomes FAILED (`cancelled`), which `message.failed` announces.

    Ends in `message.cancelled`, also where it was cancelled before; or in `command.rejected` (`unknown_message`,
    `not_pending`, and `being_sent` while an attempt is under way: ask again in some seconds).
    """

    name: ClassVar[str] = "message.cancel"


class RetryMessage(MessageCommand):
    """Send a FAILED message after all, behind everything that waits now, with new attempts and a new expiry.

    It keeps its id and its WhatsApp id, so that one whose outcome was unknown does not arrive twice; only after
    `failed_by_whatsapp` it gets a new WhatsApp id, because under the old one it would not be sent again. After
    `number_changed` it goes out from the number that is linked now. Ends in `message.queued`, or in
    `command.rejected` (`no_session`, `unknown_message`, `not_failed`).
    """

    name: ClassVar[str] = "message.retry"

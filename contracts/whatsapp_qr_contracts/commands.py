"""Commands: requests of users to the service. The public write interface, exchange `whatsapp-qr.commands`.

A command is published persistent and mandatory, with a `message_id` that is unique per command. Publishing the same
command again with the same id has one effect. Every command ends in one event with its id as `correlation_id`; one that
can never be processed (not JSON, an invalid field, no `message_id`) becomes a dead letter instead.
"""

import json
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from whatsapp_qr_contracts.fields import ChatbotId, Recipient, SentId
from whatsapp_qr_contracts.message import COMMANDS, Headers, Identifier, Instant, Message, Text, Traceparent, storable

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


Metadata = Annotated[
    dict[str, Any],
    AfterValidator(_small),
    Field(
        description="A JSON object of the caller's own, at most 16 KiB and 100 levels deep; stored with the message, "
        "never changed, and contained in its events",
        examples=[{"orderId": "1234"}],
    ),
]
"""A JSON object of the caller's own, at most 16 KiB; stored with the message and never changed."""

MessageText = Annotated[
    Text,
    StringConstraints(min_length=1, max_length=MAX_MESSAGE_CHARACTERS),
    Field(description="The text, of 1 to 65536 characters", examples=["Your order is on its way."]),
]

ExpiresAt = Annotated[
    Instant | None,
    Field(
        description="After this time it is not sent any more; default: SEND_EXPIRY after it was accepted",
        examples=["2040-01-01T12:00:00Z"],
    ),
]


class CommandHeaders(Headers):
    """The headers of a command; each may be left out."""

    partition_key: str | SkipJsonSchema[None] = Field(
        default=None,
        description="The chatbot's id as lower-case text. The body decides; the header gives it without parsing",
        examples=["6f9619ff-8b86-4011-b42d-00c04fc964ff"],
    )
    schema_version: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = Field(
        default=None, description="Default: the newest version", examples=[1]
    )
    traceparent: Traceparent = ""


class Command(Message):
    """Base of all commands.

    Commands of one chatbot are executed in the order in which they were published: `session.*` and `chatbot.*` among
    themselves and `message.*` among themselves, because the two have separate queues. A command with an id that another
    one had within 24 h is not executed and ends in `command.rejected` (`id_reused`).
    """

    exchange: ClassVar[str] = COMMANDS
    headers: ClassVar[type[Headers]] = CommandHeaders

    chatbot_id: ChatbotId


class InitializeSession(Command):
    """Link the chatbot to a WhatsApp account: create a session if there is none and request a QR code from the gateway.

    Sent by the service itself with `repairOf`, it restores a wanted session that the gateway lost or never opened. Ends
    in `session.connecting`; in `session.qr_ready` or `session.connected` if the session is in that state already; in
    `session.disconnected` with a reason if the gateway refused or was unavailable; or in `command.rejected`
    (`unknown_chatbot`, `gateway_unreachable`; with `repairOf` also `not_wanted`, `outdated`).
    """

    name: ClassVar[str] = "session.initialize"
    routing_key: ClassVar[str] = "session.initialize.{partition}"

    requested_at: Instant | None = Field(
        default=None,
        description="When it was requested; its milliseconds become part of a new sessionId. Default: when it "
        "was published",
        examples=["2026-01-01T12:00:00Z"],
    )
    repair_of: int | None = Field(
        default=None,
        ge=0,
        description="For the service itself: only if the session is still wanted and has this version; a hanging "
        "pairing is started again. Leave it out",
    )

    @classmethod
    def example(cls, *, required_only: bool = False) -> dict[str, Any]:
        """Return the JSON of one as users send it: without `repairOf`."""
        return {name: value for name, value in super().example(required_only=required_only).items() if value}


class DisconnectSession(Command):
    """End the link: the account is logged out, and waiting messages keep waiting until they expire.

    Also executed while the gateway is unavailable, which is called later. Ends in `session.disconnected`, or in
    `command.rejected` (`no_session`).
    """

    name: ClassVar[str] = "session.disconnect"
    routing_key: ClassVar[str] = "session.disconnect.{partition}"


class RegisterChatbot(Command):
    """Register a chatbot; required before the first `session.initialize` if CHATBOTS=strict. Idempotent.

    Ends in `chatbot.registered`.
    """

    name: ClassVar[str] = "chatbot.register"
    routing_key: ClassVar[str] = "chatbot.register.{partition}"


class RemoveChatbot(Command):
    """End the chatbot's link and remove the chatbot; its conversations are kept.

    Ends in `chatbot.removed`, even if the chatbot was not registered.
    """

    name: ClassVar[str] = "chatbot.remove"
    routing_key: ClassVar[str] = "chatbot.remove.{partition}"


class SendMessage(Command):
    """Send a text to a customer. Messages of one chatbot are sent in the order of their commands.

    The message's id is `uuid5(chatbotId, messageId)`, with the AMQP `message_id` if `messageId` is left out. The same
    id again with the same content has no second effect; with other content it is rejected (`id_reused`). All attempts
    to send it use one WhatsApp id, so that it does not arrive twice. Ends in `message.sent` (or, if that is left out,
    `message.delivered` or `message.read`), in `message.failed`, or in `command.rejected` (`no_session`, `id_reused`).
    While the session is not connected the message waits.
    """

    name: ClassVar[str] = "message.send"
    routing_key: ClassVar[str] = "message.send.{partition}"

    to: Recipient
    message: MessageText
    metadata: Metadata = Field(default_factory=dict)
    message_id: Identifier | None = Field(
        default=None,
        description="The caller's own id for this message, unique per chatbot; default: the AMQP `message_id`",
        examples=["order-1234-shipped"],
    )
    expires_at: ExpiresAt = None


class MessageCommand(Command):
    """Base of commands for an outgoing message that the service has stored."""

    message_id: SentId


class CancelMessage(MessageCommand):
    """Cancel a message that still waits: it becomes FAILED (`cancelled`), which `message.failed` also reports.

    Ends in `message.cancelled`, even if it was cancelled before; or in `command.rejected` (`unknown_message`,
    `not_pending`, and `being_sent` during an attempt to send it: repeat the command in some seconds).
    """

    name: ClassVar[str] = "message.cancel"
    routing_key: ClassVar[str] = "message.cancel.{partition}"


class RetryMessage(MessageCommand):
    """Send a FAILED message again, behind all that wait now, with new attempts and a new expiry.

    It keeps its id and its WhatsApp id, so that one whose outcome was unknown does not arrive twice; only after
    `failed_by_whatsapp` it gets a new WhatsApp id, because under the old one it would not be sent again. After
    `number_changed` it is sent from the number that is linked now. Ends in `message.queued`, or in
    `command.rejected` (`no_session`, `unknown_message`, `not_failed`).
    """

    name: ClassVar[str] = "message.retry"
    routing_key: ClassVar[str] = "message.retry.{partition}"

"""What every message has in common: the envelope, the wire format, the shared value types.

The body of a message is plain JSON in camelCase. Everything about its transport is an AMQP property or header:
`message_id`, `correlation_id`, `type`, `timestamp`, and the headers `partition-key` and `schema-version`.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

COMMANDS = "whatsapp-qr.commands"
GATEWAY = "whatsapp-qr.gateway"
EVENTS = "whatsapp-qr.events"
JOBS = "whatsapp-qr.jobs"


class SessionStatus(StrEnum):
    """Where the link between a chatbot and its WhatsApp account stands."""

    DISCONNECTED = "DISCONNECTED"
    """No link: never made, ended, or refused. `statusReason` says why."""
    CONNECTING = "CONNECTING"
    """The gateway was asked for a link and has not shown a QR code yet."""
    QR_READY = "QR_READY"
    """A QR code waits to be scanned."""
    CONNECTED = "CONNECTED"
    """Messages can be sent and received."""


class DeliveryStatus(StrEnum):
    """How far a message came. It only rises; FAILED may be corrected by a later receipt."""

    PENDING = "PENDING"
    """Accepted and stored, waiting to be sent."""
    SENT = "SENT"
    """The gateway took it."""
    DELIVERED = "DELIVERED"
    """It reached the phone; customers' messages start here."""
    READ = "READ"
    """It was read."""
    FAILED = "FAILED"
    """It was not sent, or it is not known whether it was; `errorCode` says why."""


class Role(StrEnum):
    """Who wrote a message."""

    USER = "USER"
    ASSISTANT = "ASSISTANT"


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(value: Any) -> Any:
    """Return a text without U+0000, and with U+FFFD for each half of a cut emoji; anything else as it is.

    PostgreSQL cannot store U+0000, and no UTF-8 has lone surrogates; both databases must give the same result.
    """
    return _LONE_SURROGATE.sub("\ufffd", value.replace("\x00", "")) if isinstance(value, str) else value


def _aware(value: datetime) -> datetime:
    return _utc(value if value.tzinfo else value.replace(tzinfo=UTC))


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        message = "the time is out of range"
        raise ValueError(message) from None


Text = Annotated[str, BeforeValidator(storable)]
"""Any text; U+0000 is removed, a lone surrogate becomes U+FFFD."""

Identifier = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
"""An identifier made by somebody else: 1 to 200 characters."""

Moment = Annotated[datetime, AfterValidator(_aware)]
"""A point in time: ISO 8601 (UTC where no offset is given), or Unix time in seconds or milliseconds."""

Instant = Annotated[AwareDatetime, AfterValidator(_utc)]
"""A point in time in ISO 8601 with an offset."""


class WireModel(BaseModel):
    """A frozen value in camelCase on the wire. Unknown fields are ignored, so that either side may be newer."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    def wire(self) -> bytes:
        """Return the JSON that goes on the wire."""
        return self.model_dump_json(by_alias=True).encode()


class Message(WireModel):
    """Base of everything that travels through RabbitMQ."""

    exchange: ClassVar[str]
    """The exchange it is published to."""
    name: ClassVar[str]
    """Its AMQP `type`, and the routing key without the partition."""
    schema_version: ClassVar[int] = 1
    """Its `schema-version` header; rises with a breaking change."""

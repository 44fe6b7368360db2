"""The common parts of all messages: the envelope, the wire format, the shared value types.

The body of a message is plain JSON in camelCase. All transport data are AMQP properties or headers: `message_id`,
`correlation_id`, `type`, `timestamp`, and the headers `partition-key`, `schema-version` and `traceparent` (W3C Trace
Context).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json, to_jsonable_python

from whatsapp_qr_contracts.partitions import chatbot_key, session_key

COMMANDS = "whatsapp-qr.commands"
GATEWAY = "whatsapp-qr.gateway"
EVENTS = "whatsapp-qr.events"
JOBS = "whatsapp-qr.jobs"

MAX_BODY_BYTES = 524_288
"""The largest body that the service reads; it refuses larger ones, which limits the memory of its consumers.

512 KiB: the longest text with every character escaped (`\\u0001`, 6 bytes), and the rest of the body. Prefer UTF-8 to
escapes: an escaped emoji takes 12 bytes.
"""


class SessionStatus(StrEnum):
    """The state of the link between a chatbot and its WhatsApp account."""

    DISCONNECTED = "DISCONNECTED"
    """No link: never made, ended, or refused. `statusReason` has the reason."""
    CONNECTING = "CONNECTING"
    """The gateway was asked for a link and has not shown a QR code yet."""
    QR_READY = "QR_READY"
    """A QR code waits to be scanned."""
    CONNECTED = "CONNECTED"
    """Messages can be sent and received."""


class DeliveryStatus(StrEnum):
    """The delivery status of a message. It only rises; FAILED may be corrected by a later receipt."""

    PENDING = "PENDING"
    """Accepted and stored, waiting to be sent."""
    SENT = "SENT"
    """The gateway accepted it."""
    DELIVERED = "DELIVERED"
    """It reached the phone; customers' messages start here."""
    READ = "READ"
    """It was read."""
    FAILED = "FAILED"
    """It was not sent, or it is not known whether it was; `errorCode` has the reason."""


class Role(StrEnum):
    """The author of a message."""

    USER = "USER"
    ASSISTANT = "ASSISTANT"


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(value: Any) -> Any:
    """Return a text without U+0000, and with U+FFFD for each half of a cut emoji; any other value unchanged.

    PostgreSQL cannot store U+0000, and UTF-8 has no lone surrogates; both databases must give the same result.
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
"""An identifier made by another party: 1 to 200 characters."""

Moment = Annotated[datetime, AfterValidator(_aware)]
"""A point in time: ISO 8601 (UTC if no offset is given), or Unix time in seconds or milliseconds."""

Instant = Annotated[AwareDatetime, AfterValidator(_utc)]
"""A point in time in ISO 8601 with an offset."""


def _add_example(schema: dict[str, Any], model: type["WireModel"]) -> None:
    with suppress(LookupError):
        schema["examples"] = [model.example()]


class WireModel(BaseModel):
    """A frozen value in camelCase on the wire. Unknown fields are ignored, so that either side may be newer."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", json_schema_extra=_add_example
    )

    def wire(self) -> bytes:
        """Return the JSON for the wire."""
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Return the value of the JSON from the wire. Python's own spelling of a field (`chatbot_id`) is refused.

        An optional field with that name would otherwise be ignored without notice.

        Raises:
            ValidationError: it is not JSON, or a field is missing, wrong or in the other spelling.
        """
        if any(name in body for name in _quoted_names(cls)):  # rare: only then the body is parsed twice
            cls.refuse_other_spelling(_parsed(body))
        return cls.model_validate_json(body, by_alias=True, by_name=False)

    @classmethod
    def refuse_other_spelling(cls, value: Any) -> None:
        """Refuse a value that names a field as Python does: `chatbot_id` instead of `chatbotId`.

        Args:
            value: a whole body, parsed.

        Raises:
            ValidationError: a field of it, or of a part of it, is spelt like that.
        """
        if faults := list(_other_spellings(cls, value)):
            raise ValidationError.from_exception_data(cls.__name__, faults, input_type="json", hide_input=True)

    @classmethod
    def example(cls, *, required_only: bool = False) -> dict[str, Any]:
        """Return a possible JSON of one, made of its fields' examples; of their defaults if they have no examples.

        Args:
            required_only: leave out optional fields.

        Raises:
            LookupError: a field that is required has no example.
        """
        fields = [field for field in cls.model_fields.values() if field.is_required() or not required_only]
        return {str(field.alias): _example_of(field) for field in fields}


def _in_one_spelling(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    read = validate(value)
    if isinstance(read, WireModel):
        read.refuse_other_spelling(value)
    return read


InOneSpelling = WrapValidator(_in_one_spelling)
"""Marks a model that is made of parsed JSON from the wire: it refuses the same spellings as `WireModel.read`."""


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None  # invalid JSON is reported by the validation


def _other_spellings(
    model: type[WireModel], value: Any, place: tuple[str | int, ...] = ()
) -> Iterator[InitErrorDetails]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _other_spellings(model, item, (*place, index))
    if not isinstance(value, Mapping):
        return
    for name, alias, parts in _spellings(model):
        # If the field has another name on the wire (`from`), our own name beside it may be a foreign field.
        if name != alias and name in value and (alias == to_camel(name) or alias not in value):
            fault = PydanticCustomError("other_spelling", "write {alias}, not {name}", {"alias": alias, "name": name})
            yield InitErrorDetails(type=fault, loc=(*place, name), input=None)
        for part in parts:
            yield from _other_spellings(part, value.get(alias), (*place, alias))


@cache
def _quoted_names(model: type[WireModel]) -> tuple[bytes, ...]:
    names = {name for name, alias, _ in _spellings(model) if name != alias}
    quoted = {f'"{name}"'.encode() for name in names}
    return tuple(quoted.union(*(_quoted_names(part) for _, _, parts in _spellings(model) for part in parts)))


@cache
def _spellings(model: type[WireModel]) -> tuple[tuple[str, str, tuple[type[WireModel], ...]], ...]:
    """Return a model's fields: the name in Python, the name on the wire, and the models of the field's own fields."""
    return tuple((name, str(one.alias), tuple(_models(one.annotation))) for name, one in model.model_fields.items())


def _models(kind: Any) -> Iterator[type[WireModel]]:
    if isinstance(kind, type) and issubclass(kind, WireModel):
        yield kind
    for part in get_args(kind):
        yield from _models(part)


def _example_of(field: FieldInfo) -> Any:
    kind = field.annotation
    if field.examples:
        return field.examples[0]
    if isinstance(kind, type) and issubclass(kind, WireModel):
        return kind.example()
    if get_origin(kind) is Literal:
        return to_jsonable_python(get_args(kind)[0])
    if field.is_required():
        raise LookupError(f"{field.alias} is required and has no example")
    return to_jsonable_python(field.get_default(call_default_factory=True))


class Headers(BaseModel):
    """Base of the AMQP headers of a message. Ignore additional ones."""

    model_config = ConfigDict(
        frozen=True, alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True, extra="ignore"
    )

    @classmethod
    def example(cls, schema_version: int) -> dict[str, Any]:
        """Return possible headers of a message of a version."""
        values = {str(field.alias): _example_of(field) for field in cls.model_fields.values()}
        return values | {"schema-version": schema_version}


Traceparent = Annotated[
    str,
    Field(
        description="The trace that it belongs to (W3C Trace Context), if there is one; pass it on with resulting "
        "messages, and `tracestate` with it, so that a message can be followed through all services",
        examples=["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
    ),
]


class ServiceHeaders(Headers):
    """The headers of the service's messages."""

    partition_key: str = Field(
        description="Messages of one key keep their order: the chatbot's id in lower case, or a foreign session id",
        examples=["6f9619ff-8b86-4011-b42d-00c04fc964ff"],
    )
    schema_version: int = Field(
        ge=1, description="The version of the body's schema; rises with a breaking change", examples=[1]
    )
    traceparent: Traceparent = ""


class Message(WireModel):
    """Base of all messages that are sent through RabbitMQ."""

    exchange: ClassVar[str]
    """The exchange it is published to."""
    name: ClassVar[str]
    """Its AMQP `type`, and the routing key without the partition."""
    routing_key: ClassVar[str]
    """The pattern of its routing key: `{partition}` stands for `partition_of(partition_key, PARTITIONS)`."""
    headers: ClassVar[type[Headers]] = ServiceHeaders
    """Its headers."""
    keyed_by: ClassVar[Literal["chatbotId", "sessionId"]] = "chatbotId"
    """The field of the body from which its `partition-key` is taken."""
    schema_version: ClassVar[int] = 1
    """Its `schema-version` header; rises with a breaking change. Readers accept all versions up to their own."""

    @property
    def partition_key(self) -> str:
        """Its `partition-key` header: messages with the same key are handled, and their events published, in order."""
        key: str = (
            session_key(getattr(self, "session_id"))  # noqa: B009  # a subclass has it
            if self.keyed_by == "sessionId"
            else chatbot_key(getattr(self, "chatbot_id"))  # noqa: B009  # likewise
        )
        return key

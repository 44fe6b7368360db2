"""The tables. Every row also stores the work that remains for it, so that a crash loses nothing."""

from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Index, LargeBinary, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel
from uuid_utils.compat import uuid7

from service.persistence.columns import DatabaseClock, EnumText, UtcDateTime
from whatsapp_qr_contracts.message import DeliveryStatus, Role, SessionStatus


def now() -> datetime:
    """Return this machine's time, for columns that only people read; no decision depends on it."""
    return datetime.now(UTC)


def _when(**options: Any) -> Any:
    return Field(sa_type=UtcDateTime, **options)


def _changed() -> Any:
    clock = {"default": DatabaseClock(), "onupdate": DatabaseClock()}
    return _when(default=None, nullable=False, sa_column_kwargs=clock)


def _hash() -> Any:
    """Return the column for the CRC-32 of a row's partition key: SQL can compute the partition from it."""
    return Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})


UNPUBLISHED = "told_version < version"
TO_HAND_OVER = "NOT handed_over AND role = 'USER'"
TO_ENQUEUE = "NOT handed_over AND role = 'ASSISTANT'"
PENDING = "delivery_status = 'PENDING'"
# Without "IS NOT NULL", PostgreSQL may use the index for a claim, and sort each lane.
EXPIRING = f"{PENDING} AND expires_at IS NOT NULL"
AWAKE = "wake_at IS NOT NULL"
LIVE = "wanted OR status <> 'DISCONNECTED'"
ENDED = "NOT wanted AND status = 'DISCONNECTED'"


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Return a partial index. Only a statement that has the same condition, as a literal, uses it."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


# Values that the database's clock has written are read when they are needed, not after each write.
_UNREAD: dict[str, Any] = {"eager_defaults": False}


class ChatbotRow(SQLModel, table=True):
    """A chatbot that may have a session. Chatbots are owned by another service; this is a local register."""

    __tablename__ = "chatbots"

    id: UUID = Field(primary_key=True)
    registered_at: datetime = _when(default_factory=now)
    removed_at: datetime | None = _when(default=None)


class SessionRecord(SQLModel):
    """The link of one chatbot; there is at most one, and its session id never changes."""

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    chatbot_id: UUID = Field(foreign_key="chatbots.id", unique=True)
    session_id: str = Field(unique=True, sa_type=Text)
    status: SessionStatus = Field(sa_type=EnumText(SessionStatus))
    status_reason: str | None = None
    wanted: bool = False
    """Whether the user wants the link: set by initialize; cleared by disconnect, logout and replacement."""
    qr_code: str | None = Field(default=None, sa_type=Text)
    qr_at: datetime | None = _when(default=None)
    phone_number: str | None = None
    last_connected_at: datetime | None = _when(default=None)
    version: int = 0
    """Rises with every change of status, reason, QR code or number."""
    told_version: int = 0
    """The last version whose event is known to be confirmed."""
    correlation_id: str = ""
    """The id of the command or report that led to the present version."""
    key_hash: int = _hash()
    lane_end: int = 0
    """The number of the last message in this session's lane."""
    moved_at: datetime = _when(default=None, nullable=False, sa_column_kwargs={"default": DatabaseClock()})
    """When its version last rose, by the database's clock."""
    created_at: datetime = _when(default_factory=now)
    updated_at: datetime = _when(default_factory=now)


class SessionRow(SessionRecord, table=True):
    """A session tracked by the ORM."""

    __tablename__ = "sessions"
    __table_args__ = (
        _partial("sessions_untold", "session_id", where=UNPUBLISHED),
        _partial("sessions_live", "session_id", where=LIVE),
        _partial("sessions_ended", "moved_at", where=ENDED),
    )
    __mapper_args__: ClassVar[dict[str, Any]] = _UNREAD


class CommandRecord(SQLModel):
    """A command about a session, a chatbot or a message: with an outcome it is never executed again. Kept for 24 h.

    A `message.send` has a row only if it was rejected: otherwise its message's row has all information.
    """

    chatbot_id: UUID = Field(primary_key=True)
    command_id: str = Field(primary_key=True, max_length=255)
    name: str
    digest: str | None = Field(default=None, max_length=64)
    """Of its body: another command under the same id is rejected. None if the row is from before digests existed."""
    outcome: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """The event that answers it: name, message_id and body."""
    version: int = 0
    """1 once it has an outcome."""
    told_version: int = 0
    """1 once that event is known to be confirmed."""
    key_hash: int = _hash()
    created_at: datetime = _when(default_factory=now, index=True)


class CommandRow(CommandRecord, table=True):
    """A command tracked by the ORM."""

    __tablename__ = "commands"
    __table_args__ = (_partial("commands_untold", "created_at", where=UNPUBLISHED),)


class ConversationRecord(SQLModel):
    """The conversation of a chatbot with one customer."""

    id: UUID = Field(primary_key=True)
    chatbot_id: UUID = Field(foreign_key="chatbots.id")
    channel: str = Field(max_length=32)
    external_user_id: str = Field(max_length=255)
    status: str = Field(default="ACTIVE", max_length=16)
    last_message_at: datetime = _when()
    sequence_end: int = 0
    """The number of the customer's last message."""
    version: int = 1
    """Its start is its only event."""
    told_version: int = 0
    """1 once conversation.started is known to be confirmed."""
    correlation_id: str = ""
    """The id of the command or report that started it."""
    key_hash: int = _hash()
    changed_at: datetime = _changed()
    """When the row was last written, by the database's clock."""
    created_at: datetime = _when(default_factory=now)


class ConversationRow(ConversationRecord, table=True):
    """A conversation tracked by the ORM."""

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("chatbot_id", "channel", "external_user_id"),
        Index("conversations_newest_first", "chatbot_id", "last_message_at", "id"),
        _partial("conversations_untold", "chatbot_id", where=UNPUBLISHED),
    )
    __mapper_args__: ClassVar[dict[str, Any]] = _UNREAD


class MessageRecord(SQLModel):
    """A message of a conversation, in either direction."""

    id: UUID = Field(primary_key=True)
    conversation_id: UUID = Field(foreign_key="conversations.id")
    chatbot_id: UUID
    session_id: str = Field(sa_type=Text)
    role: Role = Field(sa_type=EnumText(Role))
    content: str = Field(sa_type=Text)
    delivery_status: DeliveryStatus = Field(sa_type=EnumText(DeliveryStatus))
    whatsapp_message_id: str = Field(max_length=255)
    version: int = 1
    """Rises with every change of its delivery status."""
    told_version: int = 0
    """The last version whose event is known to be confirmed; a first version without an event counts as confirmed."""
    handed_over: bool = False
    """Whether its job is known to be confirmed: for the AI workers, or for the outbound consumer."""
    key_hash: int = _hash()
    correlation_id: str
    """The id of the command or report that created it."""
    traceparent: str | None = Field(default=None, max_length=55)
    """The trace that it belongs to (W3C Trace Context): later work on it continues that trace."""
    caller_metadata: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """The sender's metadata; never changed."""
    external_user_id: str = Field(max_length=255)
    """The customer's address, as in the conversation."""

    sequence: int | None = None
    """A customer's message: its number in the conversation, from 1."""
    sent_at_customer: int | None = Field(default=None, sa_type=BigInteger)
    """A customer's message: Unix time as the gateway gave it."""
    push_name: str | None = None
    type: str | None = None
    participant: str | None = None
    """In a group: the address of the member that wrote it."""

    lane_number: int | None = None
    """A message to send: its place in the session's lane."""
    attempts: int = 0
    """Attempts whose outcome is unknown."""
    expires_at: datetime | None = _when(default=None)
    """After this it is not sent any more."""
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_type=Text)

    changed_at: datetime = _changed()
    """When the row was last written, by the database's clock: unfinished work that is old was not resumed."""
    created_at: datetime = _when(default_factory=now)
    sent_at: datetime | None = _when(default=None)
    delivered_at: datetime | None = _when(default=None)
    read_at: datetime | None = _when(default=None)
    failed_at: datetime | None = _when(default=None)


class MessageRow(MessageRecord, table=True):
    """A message tracked by the ORM."""

    __tablename__ = "messages"
    __table_args__ = (
        Index("messages_oldest_first", "conversation_id", "created_at", "id"),
        Index("messages_by_whatsapp_id", "session_id", "whatsapp_message_id"),
        _partial("messages_lane", "session_id", "lane_number", where=PENDING, unique=True),
        _partial("messages_to_hand_over", "conversation_id", "sequence", where=TO_HAND_OVER),
        _partial("messages_to_enqueue", "session_id", "lane_number", where=TO_ENQUEUE),
        _partial("messages_untold", "conversation_id", "created_at", where=UNPUBLISHED),
        _partial("messages_expiring", "expires_at", where=EXPIRING),
    )
    __mapper_args__: ClassVar[dict[str, Any]] = _UNREAD


class LaneRecord(SQLModel):
    """The progress of the sending of a session's messages. Written by the outbound consumer.

    Other consumers only set `wake_at` and `void_to`.
    """

    session_id: str = Field(primary_key=True, sa_type=Text)
    key_hash: int = _hash()
    wake_at: datetime | None = _when(default=None)
    """When it is due; None: no message waits in it, or its session is not connected."""
    not_before: datetime | None = _when(default=None)
    """No attempt before this time: the last one failed."""
    claimed_until: datetime | None = _when(default=None)
    """Until when only one process may send its first message."""
    claim: UUID | None = None
    """The present claim; a result is recorded only under it."""
    claimed_message: UUID | None = None
    """The message that the claim is for."""
    deferrals: int = 0
    """How many times in a row the session could not send at all."""
    tokens: float | None = None
    """Messages that may be sent at once, as of `tokens_at`; None: as many as SEND_BURST allows."""
    tokens_at: datetime | None = _when(default=None)
    void_to: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """Messages up to this lane number are void: the session was linked to another number after them."""


class LaneRow(LaneRecord, table=True):
    """A lane tracked by the ORM."""

    __tablename__ = "lanes"
    __table_args__ = (_partial("lanes_awake", "wake_at", where=AWAKE),)


class ReceiptRow(SQLModel, table=True):
    """A receipt whose message is not known yet; applied when it appears. Kept for 24 h."""

    __tablename__ = "receipts"

    session_id: str = Field(primary_key=True)
    whatsapp_message_id: str = Field(primary_key=True, max_length=255)
    status: DeliveryStatus = Field(primary_key=True, sa_type=EnumText(DeliveryStatus))
    at: datetime = _when()
    error: str | None = None
    created_at: datetime = _when(default_factory=now, index=True)


class LeaseRow(SQLModel, table=True):
    """The right to run a singleton job."""

    __tablename__ = "leases"

    duty: str = Field(primary_key=True, max_length=64)
    holder: str = Field(max_length=64)
    """The process that has it."""
    until: datetime = _when()
    """When it expires, by the database's clock."""


class ProcessRow(SQLModel, table=True):
    """The heartbeat of a consumer process. It only balances partitions; the broker chooses the active process."""

    __tablename__ = "processes"

    id: str = Field(primary_key=True, max_length=64)
    kind: str = Field(max_length=64)
    """The queue that it consumes."""
    partitions: list[int] = Field(default_factory=list, sa_type=JSON)
    """The partitions on which it is active."""
    seen_at: datetime = _when(index=True)
    """By the database's clock."""


class DeploymentRow(SQLModel, table=True):
    """Values that all processes must share: one row."""

    __tablename__ = "deployment"

    id: int = Field(default=1, primary_key=True)
    partitions: int
    """The value of PARTITIONS."""


class DeadLetterRow(SQLModel, table=True):
    """A message that could not be processed: the original, and the reason."""

    __tablename__ = "dead_letters"

    id: UUID = Field(primary_key=True)
    reason: str = Field(max_length=255, index=True)
    """The error's code."""
    detail: str = Field(default="", sa_type=Text)
    """The validation error, or the traceback."""
    source: str = Field(max_length=255)
    """The queue from which it was read, the path of a callback, or the exchange that had no queue for it."""
    exchange: str = Field(default="", max_length=255)
    routing_key: str = Field(default="", max_length=255)
    message_id: str = Field(default="", max_length=255)
    correlation_id: str = Field(default="", max_length=255)
    type: str = Field(default="", max_length=255)
    """The texts above are cut and cleaned for people; the fields below are unchanged."""
    body: bytes = Field(sa_type=LargeBinary)
    properties: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """Exchange, routing key and AMQP properties, exactly."""
    headers: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """In the form of `messaging.lossless`."""
    attempts: int = 1
    """How often it has become a dead letter."""
    burial: str = Field(default="", max_length=64)
    """Identifies the last time that it became one, so that a repeated delivery does not count twice."""
    died_at: datetime = _when()
    replayed_at: datetime | None = _when(default=None)

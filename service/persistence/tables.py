"""The tables. Every row also carries what is still to do with it, so that nothing depends on memory."""

from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel
from uuid_utils.compat import uuid7

from service.persistence.columns import DatabaseClock, EnumText, UtcDateTime
from whatsapp_qr_contracts.message import DeliveryStatus, Role, SessionStatus


def now() -> datetime:
    """Return this machine's time, for columns that people read; no decision depends on it."""
    return datetime.now(UTC)


def _when(**options: Any) -> Any:
    return Field(sa_type=UtcDateTime, **options)


def _changed() -> Any:
    clock = {"default": DatabaseClock(), "onupdate": DatabaseClock()}
    return _when(default=None, nullable=False, sa_column_kwargs=clock)


# What the database's clock has written is read when it is needed, not after each write.
_UNREAD: dict[str, Any] = {"eager_defaults": False}


class ChatbotRow(SQLModel, table=True):
    """A chatbot that may have a session. Chatbots are owned by another service; this is a local register."""

    __tablename__ = "chatbots"

    id: UUID = Field(primary_key=True)
    registered_at: datetime = _when(default_factory=now)
    removed_at: datetime | None = _when(default=None)


class SessionRow(SQLModel, table=True):
    """The link of one chatbot; there is at most one, and it keeps its session id for life."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index(
            "sessions_unannounced",
            "session_id",
            sqlite_where=text("announced_version < version"),
            postgresql_where=text("announced_version < version"),
        ),
    )
    __mapper_args__: ClassVar[dict[str, Any]] = _UNREAD

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    chatbot_id: UUID = Field(foreign_key="chatbots.id", unique=True)
    session_id: str = Field(unique=True, sa_type=Text)
    status: SessionStatus = Field(sa_type=EnumText(SessionStatus))
    status_reason: str | None = None
    wanted: bool = False
    """What the user wants: set by initialize; cleared by disconnect, logout and replacement."""
    qr_code: str | None = Field(default=None, sa_type=Text)
    qr_at: datetime | None = _when(default=None)
    phone_number: str | None = None
    last_connected_at: datetime | None = _when(default=None)
    version: int = 0
    """Rises with every change of status, reason, QR code or number."""
    announced_version: int = 0
    """The last version whose event is known to be confirmed."""
    lane_end: int = 0
    """The number of the last message in this session's lane."""
    drain_at: datetime | None = _when(default=None)
    """When the lane is to be looked at again, while it waits."""
    moved_at: datetime = _when(default=None, nullable=False, sa_column_kwargs={"default": DatabaseClock()})
    """When its version last rose, by the database's clock."""
    created_at: datetime = _when(default_factory=now)
    updated_at: datetime = _when(default_factory=now)


class CommandRow(SQLModel, table=True):
    """A command about a session, a chatbot or a message: with an outcome it is never executed again. Kept for 24 h."""

    __tablename__ = "commands"

    chatbot_id: UUID = Field(primary_key=True)
    command_id: str = Field(primary_key=True, max_length=255)
    name: str
    digest: str | None = Field(default=None, max_length=64)
    """Of its body: another one under the same id is refused. None where it was written before there were digests."""
    outcome: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """The event that answers it: name, message_id and body."""
    created_at: datetime = _when(default_factory=now, index=True)


class ConversationRow(SQLModel, table=True):
    """The conversation of a chatbot with one customer."""

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("chatbot_id", "channel", "external_user_id"),
        Index("conversations_newest_first", "chatbot_id", "last_message_at", "id"),
        Index(
            "conversations_unannounced",
            "chatbot_id",
            sqlite_where=text("announced = 0"),
            postgresql_where=text("NOT announced"),
        ),
    )
    __mapper_args__: ClassVar[dict[str, Any]] = _UNREAD

    id: UUID = Field(primary_key=True)
    chatbot_id: UUID = Field(foreign_key="chatbots.id")
    channel: str = Field(max_length=32)
    external_user_id: str = Field(max_length=255)
    status: str = Field(default="ACTIVE", max_length=16)
    last_message_at: datetime = _when()
    sequence_end: int = 0
    """The number of the customer's last message."""
    announced: bool = False
    """Whether conversation.started is known to be confirmed."""
    changed_at: datetime = _changed()
    """When the row was last written, by the database's clock."""
    created_at: datetime = _when(default_factory=now)


class MessageRow(SQLModel, table=True):
    """A message of a conversation, in either direction."""

    __tablename__ = "messages"
    __table_args__ = (
        Index("messages_oldest_first", "conversation_id", "created_at", "id"),
        Index("messages_by_whatsapp_id", "session_id", "whatsapp_message_id"),
        Index(
            "messages_lane",
            "session_id",
            "lane_number",
            unique=True,
            sqlite_where=text("delivery_status = 'PENDING'"),
            postgresql_where=text("delivery_status = 'PENDING'"),
        ),
        Index(
            "messages_unannounced",
            "session_id",
            sqlite_where=text("announced = 0"),
            postgresql_where=text("NOT announced"),
        ),
        Index(
            "messages_expiring",
            "expires_at",
            sqlite_where=text("delivery_status = 'PENDING'"),
            postgresql_where=text("delivery_status = 'PENDING'"),
        ),
    )
    __mapper_args__: ClassVar[dict[str, Any]] = _UNREAD

    id: UUID = Field(primary_key=True)
    conversation_id: UUID = Field(foreign_key="conversations.id")
    chatbot_id: UUID
    session_id: str = Field(sa_type=Text)
    role: Role = Field(sa_type=EnumText(Role))
    content: str = Field(sa_type=Text)
    delivery_status: DeliveryStatus = Field(sa_type=EnumText(DeliveryStatus))
    whatsapp_message_id: str = Field(max_length=255)
    announced: bool
    """Whether the events and jobs of its present status are known to be confirmed."""
    correlation_id: str
    """The id of the command or report that made it."""
    traceparent: str | None = Field(default=None, max_length=55)
    """The trace that it belongs to (W3C Trace Context): whoever works on it later goes on with that."""
    caller_metadata: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """What the caller gave with it; never changed."""
    external_user_id: str = Field(max_length=255)
    """The customer's address, as in the conversation."""

    sequence: int | None = None
    """A customer's message: its number in the conversation, from 1."""
    sent_at_customer: int | None = Field(default=None, sa_type=BigInteger)
    """A customer's message: Unix time as the gateway gave it."""
    push_name: str | None = None
    type: str | None = None

    lane_number: int | None = None
    """A message to send: its place in the session's lane."""
    attempts: int = 0
    """Attempts whose outcome is unknown."""
    claimed_until: datetime | None = _when(default=None)
    """Until when one process alone may send it."""
    claim: UUID | None = None
    """The present or last claim; a result is recorded only under it."""
    not_before: datetime | None = _when(default=None)
    """Before this it is not tried again."""
    expires_at: datetime | None = _when(default=None)
    """After this it is not sent any more."""
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_type=Text)

    changed_at: datetime = _changed()
    """When the row was last written, by the database's clock: unfinished work that is old has been forgotten."""
    created_at: datetime = _when(default_factory=now)
    sent_at: datetime | None = _when(default=None)
    delivered_at: datetime | None = _when(default=None)
    read_at: datetime | None = _when(default=None)
    failed_at: datetime | None = _when(default=None)


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
    """The right to do a duty that one process alone may do at a time."""

    __tablename__ = "leases"

    duty: str = Field(primary_key=True, max_length=64)
    holder: str = Field(max_length=64)
    """The process that has it."""
    until: datetime = _when()
    """Until when, by the database's clock."""


class ProcessRow(SQLModel, table=True):
    """The heartbeat of a consumer process. It only balances the partitions; the broker decides who is active."""

    __tablename__ = "processes"

    id: str = Field(primary_key=True, max_length=64)
    kind: str = Field(max_length=64)
    """The queue that it consumes."""
    partitions: list[int] = Field(default_factory=list, sa_type=JSON)
    """Those that it is active on."""
    seen_at: datetime = _when(index=True)
    """By the database's clock."""


class DeadLetterRow(SQLModel, table=True):
    """A message that could not be processed: as it was, and why."""

    __tablename__ = "dead_letters"

    id: UUID = Field(primary_key=True)
    reason: str = Field(max_length=255, index=True)
    """The error's code."""
    detail: str = Field(default="", sa_type=Text)
    """What was wrong, or the traceback."""
    source: str = Field(max_length=255)
    """The queue that it was read from, the path of a callback, or the exchange that had no queue for it."""
    exchange: str = Field(default="", max_length=255)
    routing_key: str = Field(default="", max_length=255)
    message_id: str = Field(default="", max_length=255)
    correlation_id: str = Field(default="", max_length=255)
    type: str = Field(default="", max_length=255)
    """From here up, texts are cut and cleaned for people; below, nothing is changed."""
    body: bytes = Field(sa_type=LargeBinary)
    properties: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """Exchange, routing key and AMQP properties, exactly."""
    headers: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """In the form of `messaging.lossless`."""
    attempts: int = 1
    """How often it has died."""
    burial: str = Field(default="", max_length=64)
    """The id of its last burial, so that one that is delivered again does not count twice."""
    died_at: datetime = _when()
    replayed_at: datetime | None = _when(default=None)

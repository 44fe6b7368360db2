"""What has become of everything, once a run has settled: read from the database, the gateway and the queues."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from sqlmodel import col, select

from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, DeadLetterRow, LaneRow, MessageRow, SessionRow

MARK = re.compile(rb"poison-\d+")


@dataclass(frozen=True)
class Row:
    """A message in the database."""

    id: str
    session_id: str
    outgoing: bool
    text: str
    status: str
    whatsapp_id: str
    error: str | None
    sequence: int | None
    version: int
    attempts: int


@dataclass(frozen=True)
class Sent:
    """A message that the gateway took."""

    session_id: str
    whatsapp_id: str
    text: str


@dataclass(frozen=True)
class Job:
    """A job for the AI workers, as it was delivered."""

    id: str
    message_id: str
    text: str


@dataclass(frozen=True)
class Heard:
    """An event, as it was delivered."""

    id: str
    type: str
    about: str
    """The id of the message, the conversation or the session that it is about."""
    caused_by: str
    version: int | None = None
    """Of the message or the session, where it says one."""
    status: str | None = None
    """What it says of the message or the session."""


@dataclass
class Facts:
    """Everything that can be seen of a run from outside the processes."""

    rows: list[Row] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    events: list[Heard] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    """The mark of each dead letter; its reason where it has none."""
    sessions: dict[str, str] = field(default_factory=dict)
    exits: list[str] = field(default_factory=list)
    """Processes that ended without having been told or killed."""
    unfinished: list[str] = field(default_factory=list)
    """What the rows say is still to be done: something to tell, a lane to look at."""


async def read_rows(database: Database) -> Facts:
    """Return what the database says."""

    async def work(tx: Any) -> Facts:
        async def all_of(table: Any) -> list[Any]:
            return list(await tx.scalars(select(table)))

        messages = list(await tx.scalars(select(MessageRow).order_by(col(MessageRow.session_id), col(MessageRow.id))))
        sessions = await all_of(SessionRow)
        rows = [*messages, *sessions, *await all_of(ConversationRow), *await all_of(CommandRow)]
        return Facts(
            rows=[_row(row) for row in messages],
            dead=[_mark(row) for row in await all_of(DeadLetterRow)],
            sessions={row.session_id: row.status.value for row in sessions},
            unfinished=[
                *(f"no job of message {row.id}" for row in messages if not row.handed_over),
                *(f"version {row.version} of {row!r}" for row in rows if row.told_version < row.version),
                *(f"lane of {row.session_id} wakes" for row in await all_of(LaneRow) if row.wake_at is not None),
            ],
        )

    return await database.read(work)


def _row(row: MessageRow) -> Row:
    return Row(
        id=str(row.id),
        session_id=row.session_id,
        outgoing=row.lane_number is not None,
        text=row.content,
        status=row.delivery_status.value,
        whatsapp_id=row.whatsapp_message_id,
        error=row.error_code,
        sequence=row.sequence,
        version=row.version,
        attempts=row.attempts,
    )


def _mark(row: DeadLetterRow) -> str:
    found = MARK.search(row.body) or MARK.search(row.message_id.encode())
    return found[0].decode() if found else f"{row.reason} from {row.source}: {row.detail[-500:]}"


async def drained(url: str, queue: str) -> list[AbstractIncomingMessage]:
    """Take all messages from a queue."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=500)
        found = await channel.get_queue(queue)
        waiting = found.declaration_result.message_count or 0
        taken: list[AbstractIncomingMessage] = []
        if waiting:
            async with found.iterator() as messages:
                async for message in messages:
                    taken.append(message)
                    await message.ack()
                    if len(taken) == waiting:
                        break
        return taken


def job_of(message: AbstractIncomingMessage) -> Job:
    """Return what a job says."""
    body = json.loads(message.body)
    return Job(message.message_id or "", body["messageId"], body["content"])


def event_of(message: AbstractIncomingMessage) -> Heard:
    """Return what an event says."""
    body = json.loads(message.body)
    about = next((body[name] for name in ("messageId", "conversationId", "sessionId") if body.get(name)), "")
    status = body.get("deliveryStatus") or body.get("status")
    return Heard(
        message.message_id or "", message.type or "", about, message.correlation_id or "", body.get("version"), status
    )


def by_text(found: Iterable[Any]) -> dict[str, list[Any]]:
    """Group by text."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for one in found:
        groups[one.text].append(one)
    return groups

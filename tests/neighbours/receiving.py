"""A healthy subscriber and an AI worker: when each event and each job came first, and how often."""

import asyncio
import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

JOBS = "incoming-messages"
_KEYS = {
    "message.received": "whatsappMessageId",
    "message.sent": "messageId",
    "message.delivered": "messageId",
    "conversation.started": "externalUserId",
}
"""By type of event, the field by which a sample knows its own."""


class Sent(NamedTuple):
    """A message of which the gateway has taken a copy."""

    message_id: str
    whatsapp_id: str
    conversation_id: str
    customer: str


class Job(NamedTuple):
    """A job as it was delivered."""

    conversation_id: str
    sequence: int
    whatsapp_id: str


class Receiver:
    """Receives everything that a service publishes; `Receiver.open` makes one."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel, jobs: AbstractQueue) -> None:
        self._connection = connection
        self._channel = channel
        self._jobs = jobs
        self._tag: str | None = None
        self.events: dict[str, dict[str, float]] = defaultdict(dict)
        """By type and key: when the event came first."""
        self.deliveries: Counter[str] = Counter()
        """By id: how often an event came."""
        self.sent: dict[str, list[str]] = defaultdict(list)
        """By chatbot: its messages that were sent, in the order of their events, each once."""
        self.unread: dict[str, deque[Sent]] = defaultdict(deque)
        """By chatbot: messages that were sent and of which no receipt was given yet."""
        self.newest: dict[str, Sent] = {}
        """By chatbot: the message that was sent last."""
        self.handed_over: dict[str, float] = {}
        """By WhatsApp id: when its job came first."""
        self.jobs: list[Job] = []

    @classmethod
    async def open(cls, url: str) -> "Receiver":
        """Bind a queue of its own to all events, and begin to work as the AI worker."""
        connection = await aio_pika.connect(url)
        channel = await connection.channel()
        receiver = cls(connection, channel, await channel.get_queue(JOBS))
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("whatsapp-qr.events", "#")
        await queue.consume(receiver._hear, no_ack=True)
        await receiver.work()
        return receiver

    async def work(self) -> None:
        """Take jobs."""
        self._tag = await self._jobs.consume(self._take, no_ack=True)

    async def rest(self) -> None:
        """Take no more jobs."""
        if self._tag is not None:
            await self._jobs.cancel(self._tag)

    async def _hear(self, event: AbstractIncomingMessage) -> None:
        at, kind = time.perf_counter(), event.type or ""
        self.deliveries[event.message_id or ""] += 1
        if kind not in _KEYS:
            return
        body: dict[str, Any] = json.loads(event.body)
        key = str(body[_KEYS[kind]])
        if key in self.events[kind]:
            return
        self.events[kind][key] = at
        if kind == "message.sent":
            chatbot = str(body["chatbotId"])
            self.sent[chatbot].append(key)
            found = Sent(key, body["whatsappMessageId"], body["conversationId"], body["externalUserId"])
            self.unread[chatbot].append(found)
            self.newest[chatbot] = found

    async def _take(self, job: AbstractIncomingMessage) -> None:
        at, body = time.perf_counter(), json.loads(job.body)
        whatsapp_id = str(body["metadata"]["whatsappMessageId"])
        self.handed_over.setdefault(whatsapp_id, at)
        self.jobs.append(Job(body["conversationId"], int(str(job.headers["conversation-sequence"])), whatsapp_id))

    def disordered(self) -> list[Job]:
        """Return the jobs that came, for the first time, behind a later one of their conversation."""
        newest: dict[str, int] = {}
        seen: set[Job] = set()
        found: list[Job] = []
        for job in self.jobs:
            if job not in seen and job.sequence < newest.get(job.conversation_id, 0):
                found.append(job)
            seen.add(job)
            newest[job.conversation_id] = max(job.sequence, newest.get(job.conversation_id, 0))
        return found

    async def close(self) -> None:
        """Hear nothing any more."""
        await self._connection.close()


async def until(missing: Callable[[], Iterable[Any]], seconds: float) -> list[Any]:
    """Wait until nothing is missing, for at most so many seconds; return what still is."""
    deadline = time.monotonic() + seconds
    while (left := list(missing())) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return left

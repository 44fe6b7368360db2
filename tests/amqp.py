"""What tests of messaging share: messages to send, what was handled, a plain AMQP client, a running consumer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self, cast
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from service.domain.dead_letters import DeadLetter
from service.errors import Undeliverable
from service.messaging import handling, topology
from service.messaging.consuming import Consumer
from service.messaging.envelope import Envelope, Properties
from service.messaging.handling import NotDone
from service.messaging.partitions import Settle
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received
from service.messaging.retrying import RetryWhileUnavailable
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import COMMANDS, Message
from whatsapp_qr_contracts.partitions import partition_of

SECONDS = 60.0


async def until(condition: Callable[[], Any], *, seconds: float = SECONDS) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


def a_chatbot(partition: int = 0, partitions: int = 1) -> UUID:
    """Make up a chatbot of that partition."""
    while True:
        chatbot_id = uuid4()
        if partition_of(str(chatbot_id), partitions) == partition:
            return chatbot_id


def a_message(chatbot_id: UUID | None = None, text: str = "Hola") -> SendMessage:
    """Build a valid `message.send`."""
    return SendMessage(chatbot_id=chatbot_id or uuid4(), to="5491112345678", message=text)


async def send(publisher: Publisher, chatbot_id: UUID, *texts: str) -> None:
    """Publish one `message.send` of the chatbot for each text, one after another; the text is the id too."""
    for text in texts:
        await publisher.publish(a_message(chatbot_id, text), message_id=text, correlation_id=text)


class Handler(handling.Handler):
    """Handles `message.send`: records its text once it is done; `work` may wait or fail first.

    Args:
        work: is done for each message.
        side_by_side: whether messages of different keys are handled beside each other, or all in batches.
    """

    models: ClassVar[dict[str, type[Message]]] = {SendMessage.name: SendMessage}

    def __init__(self, work: Callable[[SendMessage], Any] | None = None, *, side_by_side: bool = True) -> None:
        self._work = work
        self.slow = frozenset(self.models) if side_by_side else frozenset[str]()
        self.batches: list[int] = []
        self.begun: list[str] = []
        self.done: list[str] = []
        self.cancelled: list[str] = []
        self.envelopes: list[Envelope] = []

    async def handle(self, batch: Sequence[Received]) -> NotDone:
        failures: NotDone = []
        self.batches.append(len(batch))
        for received in batch:
            try:
                await self._handle(cast("SendMessage", received.body), received.envelope)
            except Undeliverable as error:
                failures.append((received, error))
        return failures

    async def handle_slow(self, received: Received) -> None:
        self.batches.append(1)
        await self._handle(cast("SendMessage", received.body), received.envelope)

    async def _handle(self, message: SendMessage, envelope: Envelope) -> None:
        self.begun.append(message.message)
        self.envelopes.append(envelope)
        try:
            if self._work is not None:
                await self._work(message)
        except asyncio.CancelledError:
            self.cancelled.append(message.message)
            raise
        self.done.append(message.message)


@asynccontextmanager
async def publishing(url: str, partitions: int = 1) -> AsyncIterator[Publisher]:
    """Declare everything and publish."""
    await topology.declare(url, partitions)
    publisher = Publisher(url, partitions)
    try:
        yield publisher
    finally:
        await publisher.close()


@asynccontextmanager
async def consuming(
    url: str,
    handler: Any,
    publisher: Publisher,
    *,
    prefetch: int = 64,
    dead: list[DeadLetter] | None = None,
    stands_by: bool = False,
    settle: Settle | None = None,
) -> AsyncIterator[Consumer]:
    """Consume the conversations until the test is over; begins when the consumer knows that it is active.

    Args:
        url: the broker.
        handler: does what the messages ask for.
        publisher: publishes what is rerouted, and knows how many partitions there are.
        prefetch: unacknowledged messages per partition.
        dead: gets the dead letters; without it there may be none.
        stands_by: whether another consumer is active: then it begins when it is subscribed.
        settle: tells what follows from what was done, before a partition is given up.
    """

    async def keep_dead_letter(letter: DeadLetter) -> None:
        assert dead is not None, letter
        dead.append(letter)

    parts: dict[str, Any] = {
        "keep_dead_letter": keep_dead_letter,
        "publisher": publisher,
        "retry": RetryWhileUnavailable(),
        "settle": settle,
    }
    consumer = Consumer(url, topology.CONVERSATIONS, handler, prefetch=prefetch, **parts)
    consumer.start()
    try:
        subscriptions = consumer.subscriptions
        everything = len(subscriptions.partitions)
        await until(lambda: subscriptions.ready and (stands_by or len(subscriptions.active) == everything))
        yield consumer
    finally:
        await consumer.stop(SECONDS)


class NoId(str):
    """No id at all; aiormq replaces one that is false, as other clients do not."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


class Amqp:
    """A plain client beside the service's own: publishes anything, and sees what lies in a queue."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        self._connection = await aio_pika.connect(self._url)
        self.channel = await self._connection.channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def publish(
        self, body: bytes, routing_key: str = "message.send.0", exchange: str = COMMANDS, **properties: Any
    ) -> None:
        """Publish bytes under a routing key."""
        message = aio_pika.Message(body, **properties)
        message.message_id = message.message_id or NoId()
        to = await self.channel.get_exchange(exchange, ensure=False)
        await to.publish(message, routing_key)

    async def waiting(self, queue: str) -> int:
        """Count the messages that nobody has taken yet."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def until_waiting(self, queue: str, count: int | range, *, seconds: float = SECONDS) -> None:
        """Wait until so many messages lie in the queue."""
        deadline = time.monotonic() + seconds
        wanted = range(count, count + 1) if isinstance(count, int) else count
        while (seen := await self.waiting(queue)) not in wanted:
            assert time.monotonic() < deadline, f"{queue}: {seen} messages, not {count}"
            await asyncio.sleep(0.02)

    async def take(self, queue: str, count: int = 1) -> list[AbstractIncomingMessage]:
        """Wait for so many messages and take them all; fail if there are more."""
        await self.until_waiting(queue, count)
        taken: list[AbstractIncomingMessage] = []
        declared = await self.channel.get_queue(queue, ensure=False)
        tag = await declared.consume(partial(_append, taken), no_ack=True)
        await until(lambda: len(taken) >= count)
        await declared.cancel(tag)
        assert len(taken) == count
        return taken

    async def bound(self, exchange: str, *keys: str) -> str:
        """Make a queue that gets what is published to the exchange under these keys; return its name."""
        queue = await self.channel.declare_queue(exclusive=True)
        for key in keys:
            await queue.bind(exchange, key)
        return queue.name


async def _append(taken: list[AbstractIncomingMessage], message: AbstractIncomingMessage) -> None:
    taken.append(message)


def properties(message_id: str = "m", **headers: Any) -> Properties:
    """Build an envelope."""
    return Properties(message_id, "c", "message.send", headers)

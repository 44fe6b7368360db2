"""Send commands, take jobs and follow events. `pip install whatsapp-qr-contracts[client]` also installs aio-pika.

    async with connect("amqp://user:password@broker") as client:
        await client.bind("billing", MessageDelivered, MessageFailed)
        await client.send(SendMessage(chatbot_id=chatbot, to="5491112345678", message="Hello"), "order-1234-shipped")
        async for event in client.events("billing", MessageDelivered, MessageFailed):
            print(event.body, event.caused_by)

A lost connection ends `connect` with an error: connect again, and send again, under the same id, each command that was
not confirmed.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

from whatsapp_qr_contracts.commands import Command
from whatsapp_qr_contracts.events import Event
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, Message
from whatsapp_qr_contracts.partitions import partition_of

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=Event)

_SECONDS = 30
_TRACE = ("traceparent", "tracestate")
_PREFETCH = 32
_QUEUE: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1000}


class UnreadableError(ValueError):
    """A message that this version of the package cannot read. It stays on its queue: update the package."""


@dataclass(frozen=True)
class Received(Generic[M]):
    """A message with its envelope. It may be delivered again, with the same id."""

    body: M
    id: str
    """Its `message_id`: store it with the effect of the message, so that the effect happens once."""
    caused_by: str | None
    """Its `correlation_id`: the `message_id` of the command that caused it."""
    headers: Mapping[str, Any]


@asynccontextmanager
async def connect(url: str, *, app_id: str = "", partitions: int | None = None) -> "AsyncIterator[Client]":
    """Connect to the broker.

    Args:
        url: the broker, `amqp://user:password@host/vhost`.
        app_id: your service's name, shown in the broker.
        partitions: PARTITIONS of the service. If it is not given, commands go to a separate queue, and the service
            reroutes each to its partition: a little slower, in the same order. A wrong number is worse than none.
    """
    async with await aio_pika.connect(url, timeout=_SECONDS) as connection:
        commands = await connection.channel(publisher_confirms=True, on_return_raises=True)
        yield Client(connection, commands, app_id=app_id, partitions=partitions)


class Client:
    """Communicates with the service over one connection; `connect` creates it."""

    def __init__(
        self, connection: AbstractConnection, commands: AbstractChannel, *, app_id: str, partitions: int | None
    ) -> None:
        self._connection = connection
        self._commands = commands
        self._app_id = app_id
        self._partitions = partitions

    async def send(self, command: Command, command_id: str, *, answers: Received[Any] | None = None) -> None:
        """Send a command; returns once the broker has it on disk. One event reports its outcome.

        Args:
            command: the command. Commands of one chatbot are executed in the order of these calls, one after another.
            command_id: unique per command, 1 to 200 characters. It is the `correlation_id` of the resulting events.
            answers: the message that it answers, for example a job; it then belongs to the same trace.

        Raises:
            aio_pika.exceptions.AMQPError, ConnectionError, TimeoutError: it may have arrived. Send it again under the
                same id: it is executed once.
        """
        message = aio_pika.Message(
            command.wire(),
            message_id=command_id,
            correlation_id=command_id,
            type=command.name,
            headers={
                **{name: text for name, text in (answers.headers if answers else {}).items() if name in _TRACE},
                "partition-key": command.partition_key,
                "schema-version": command.schema_version,
            },
            timestamp=datetime.now(UTC),
            app_id=self._app_id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        exchange = await self._commands.get_exchange(COMMANDS, ensure=False)  # the service declares it
        await exchange.publish(message, self._routing_key(command), mandatory=True, timeout=_SECONDS)

    def _routing_key(self, command: Command) -> str:
        if self._partitions is None:
            return command.name
        return command.routing_key.format(partition=partition_of(command.partition_key, self._partitions))

    async def bind(self, queue: str, *kinds: type[Event]) -> None:
        """Create the queue that `events` follows: from now on it keeps these events. Do it before you send.

        Args:
            queue: see `events`.
            kinds: see `events`.
        """
        async with self._connection.channel() as channel:
            await _bound(channel, queue, kinds)

    async def events(self, queue: str, *kinds: type[E]) -> AsyncGenerator[Received[E], None]:
        """Follow events on your own durable queue, which keeps them while no process follows. It never ends by itself.

        An event is acknowledged when the next one is requested; one that was not is delivered again, to you or to
        another process that follows the same queue. In order for each chatbot, as long as only one process follows.

        Args:
            queue: the queue's name; begin it with the name of your service. It is created if it does not exist.
            kinds: the events to follow. The queue continues to receive those of earlier calls until they are unbound:
                to follow fewer, use a queue of another name and delete the old one.

        Raises:
            UnreadableError: the service has a newer, incompatible version of the message than this package.
            aio_pika.exceptions.AMQPError, ConnectionError: the connection is lost; connect again.
        """
        async with self._connection.channel() as channel:
            await channel.set_qos(prefetch_count=_PREFETCH)
            own = await _bound(channel, queue, kinds)
            async for received in _received(own, kinds):
                yield received

    async def jobs(self) -> AsyncGenerator[Received[IncomingJob], None]:
        """Take customers' messages to answer, one at a time; each is acknowledged when the next one is requested.

        Raises:
            UnreadableError: the service has a newer, incompatible version of the message than this package.
            aio_pika.exceptions.AMQPError, ConnectionError: the connection is lost; connect again.
        """
        async with self._connection.channel() as channel:
            await channel.set_qos(prefetch_count=1)
            queue = await channel.get_queue(IncomingJob.name)  # the service declares it
            async for received in _received(queue, (IncomingJob,)):
                yield received


async def _bound(channel: AbstractChannel, queue: str, kinds: Sequence[type[Event]]) -> AbstractQueue:
    own = await channel.declare_queue(queue, durable=True, arguments=_QUEUE)
    for kind in kinds:
        await own.bind(EVENTS, kind.routing_key)
    return own


async def _received(queue: AbstractQueue, kinds: tuple[type[M], ...]) -> AsyncIterator[Received[M]]:
    models = {kind.name: kind for kind in kinds}
    # No `async with`: it would requeue unacknowledged messages one by one. Closing the channel keeps their order.
    async for message in queue.iterator():
        yield read(message, models)
        await message.ack()
    raise ConnectionError("the connection to RabbitMQ is lost")


def read(message: AbstractIncomingMessage, models: Mapping[str, type[M]]) -> Received[M]:
    """Return the content of a message.

    Raises:
        UnreadableError: it is of none of these kinds, of a newer version, or its body is invalid.
    """
    model = models.get(message.type or "")
    if model is None:
        raise UnreadableError(f"{message.type!r} is none of {sorted(models)}")
    version = message.headers.get("schema-version", model.schema_version)
    if version not in range(1, model.schema_version + 1):
        raise UnreadableError(f"schema-version {version!r} of {model.name}: this package knows {model.schema_version}")
    try:
        body = model.read(message.body)
    except ValueError as error:
        raise UnreadableError(f"the body of {message.message_id} is not a {model.name}") from error
    return Received(body, message.message_id or "", message.correlation_id, message.headers)

"""Every exchange and queue, by name. No other module names one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractQueue
from faststream.rabbit import ExchangeType, RabbitExchange, RabbitQueue

from service.messaging.connections import connect
from whatsapp_qr_contracts.commands import (
    CancelMessage,
    DisconnectSession,
    InitializeSession,
    RegisterChatbot,
    RemoveChatbot,
    RetryMessage,
    SendMessage,
)
from whatsapp_qr_contracts.gateway import (
    GatewayConnected,
    GatewayDisconnected,
    GatewayMessage,
    GatewayQr,
    GatewayReceipt,
)
from whatsapp_qr_contracts.jobs import IncomingJob, SendJob
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, GATEWAY, JOBS, Message

DEAD_LETTERS = "whatsapp-qr.dead-letters"
INGRESS_PREFIX = "whatsapp-qr.ingress."
PROBE = "partition.probe"
"""Type of a message without content. The process that is active on a partition acknowledges it, and so detects that it
is active. Its routing key is the queue's own name on the direct exchange, where no other party can bind a queue to it.
"""

# Nothing is ever nacked, so this counts only crashes, and a crash counts for all prefetched messages.
_DELIVERY_LIMIT = 1000
_DEAD_LETTER_DELIVERY_LIMIT = 1_000_000
_MAX_LENGTH = 1_000_000
_INGRESS_MAX_LENGTH = 10_000


@dataclass(frozen=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: ExchangeType
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Queue:
    """A durable queue and its bindings: routing keys by exchange."""

    name: str
    arguments: dict[str, Any]
    bindings: dict[str, list[str]]


@dataclass(frozen=True)
class PartitionedQueue:
    """A partitioned queue: the first partition has the bare name, the second ends in `.1`, and so on.

    Messages that its users publish without a partition in the routing key go to the queue `entry` and are rerouted from
    there, so that they do not delay the messages of senders that name the partition.
    """

    name: str
    carries: tuple[type[Message], ...]

    @property
    def entry(self) -> str | None:
        """The queue for messages without a partition; None if only the service itself publishes to this queue."""
        return None if self.carries == (SendJob,) else f"{self.name}.entry"

    def queue_name(self, partition: int) -> str:
        """Return the queue of one partition."""
        return f"{self.name}.{partition}" if partition else self.name


SESSIONS = PartitionedQueue(
    "whatsapp-qr.sessions",
    (
        InitializeSession,
        DisconnectSession,
        RegisterChatbot,
        RemoveChatbot,
        GatewayQr,
        GatewayConnected,
        GatewayDisconnected,
    ),
)
CONVERSATIONS = PartitionedQueue(
    "whatsapp-qr.conversations", (SendMessage, CancelMessage, RetryMessage, GatewayMessage, GatewayReceipt)
)
SENDS = PartitionedQueue(SendJob.name, (SendJob,))

PARTITIONED = (SESSIONS, CONVERSATIONS, SENDS)


def routing_key(message: type[Message], partition: int) -> str:
    """Return the routing key of a message for a partition, as its contract defines it; partition 0 has no suffix."""
    if message.exchange == JOBS:
        return SENDS.queue_name(partition) if message is SendJob else message.routing_key
    return message.routing_key.format(partition=partition)


def destination(exchange_name: str, routing_key: str) -> str:
    """Return the destination of a publish: an exchange, or one queue of jobs. None must delay another."""
    return routing_key if exchange_name == JOBS else exchange_name


def name_of(routing_key: str) -> str:
    """Return the message name that a routing key stands for."""
    name, dot, partition = routing_key.rpartition(".")
    return name if dot and partition.isdigit() else routing_key


def exchange(name: str) -> RabbitExchange:
    """Return an exchange for a publish; it was declared before by `declare`."""
    return RabbitExchange(name, type=_TYPE_OF[name], durable=True, declare=False)


def declared_queue(name: str) -> RabbitQueue:
    """Return a queue for its consumer; it was declared before by `declare`."""
    return RabbitQueue(name, durable=True, declare=False)


def is_bound(exchange_name: str, routing_key: str, partitions: int) -> bool:
    """Return whether a message would reach a queue; an exchange without an alternate one reports that itself."""
    if not any(known.name == exchange_name and known.arguments for known in EXCHANGES):
        return True
    return any(routing_key in queue.bindings.get(exchange_name, ()) for queue in queues(partitions))


def ingress_queue(suffix: str) -> RabbitQueue:
    """Return the queue on which one ingress process receives the events that its callers wait for."""
    return RabbitQueue(
        INGRESS_PREFIX + suffix,
        exclusive=True,
        auto_delete=True,
        durable=False,
        arguments={"x-max-length": _INGRESS_MAX_LENGTH, "x-overflow": "drop-head"},
    )


# A message with an unknown routing key must not be lost.
_KEEP_UNROUTABLE = {"alternate-exchange": DEAD_LETTERS}
# The dead letters come first: at-least-once dead-lettering needs an existing target.
EXCHANGES = (
    Exchange(DEAD_LETTERS, ExchangeType.TOPIC),
    Exchange(COMMANDS, ExchangeType.TOPIC, _KEEP_UNROUTABLE),
    Exchange(GATEWAY, ExchangeType.TOPIC, _KEEP_UNROUTABLE),
    Exchange(EVENTS, ExchangeType.TOPIC),
    Exchange(JOBS, ExchangeType.DIRECT),
)
_TYPE_OF = {exchange.name: exchange.type for exchange in EXCHANGES}

_QUORUM = {"x-queue-type": "quorum", "x-max-length": _MAX_LENGTH, "x-overflow": "reject-publish"}
_WORK: dict[str, Any] = _QUORUM | {
    "x-delivery-limit": _DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_LETTERS,
    "x-dead-letter-routing-key": "delivery_limit",
    "x-dead-letter-strategy": "at-least-once",
}
_PARTITION = _WORK | {"x-single-active-consumer": True}


def queues(partitions: int) -> Iterator[Queue]:
    """Yield every queue that outlives its consumer; the dead letters' queue first, as with the exchanges."""
    yield Queue(DEAD_LETTERS, _QUORUM | {"x-delivery-limit": _DEAD_LETTER_DELIVERY_LIMIT}, {DEAD_LETTERS: ["#"]})
    yield Queue(IncomingJob.name, _WORK, {JOBS: [IncomingJob.name]})
    for partitioned in PARTITIONED:
        if partitioned.entry:
            yield Queue(partitioned.entry, _PARTITION, _bindings(partitioned, partitioned.entry, None))
        for partition in range(partitions):
            name = partitioned.queue_name(partition)
            yield Queue(name, _PARTITION, _bindings(partitioned, name, partition))


def _bindings(partitioned: PartitionedQueue, name: str, partition: int | None) -> dict[str, list[str]]:
    bindings = {JOBS: [name]}  # jobs, and the probes of every queue
    for message in partitioned.carries:
        if message.exchange != JOBS:
            key = message.name if partition is None else routing_key(message, partition)
            bindings.setdefault(message.exchange, []).append(key)
    return bindings


async def declare(url: str, partitions: int) -> None:
    """Declare all exchanges, queues and bindings. It is idempotent.

    Raises:
        aio_pika.exceptions.AMQPException, OSError: the broker is unavailable, or a queue exists with other arguments.
    """
    async with await connect(url) as connection:
        channel = await connection.channel()
        for wanted_exchange in EXCHANGES:
            await declare_exchange(channel, wanted_exchange)
        for wanted in queues(partitions):
            queue = await declare_queue(channel, wanted)
            for exchange_name, keys in wanted.bindings.items():
                for key in keys:
                    await queue.bind(exchange_name, key)
        for partitioned in PARTITIONED:
            if partitioned.entry:  # until 0.1.0 the first partition was the entry: it would get each message twice
                first = await channel.declare_queue(partitioned.name, passive=True)
                for message in partitioned.carries:
                    await first.unbind(message.exchange, message.name)


async def declare_exchange(channel: AbstractChannel, wanted: Exchange) -> None:
    """Declare one exchange."""
    await channel.declare_exchange(wanted.name, wanted.type.value, durable=True, arguments=wanted.arguments or None)


async def declare_queue(channel: AbstractChannel, wanted: Queue) -> AbstractQueue:
    """Declare one queue, without its bindings."""
    return await channel.declare_queue(wanted.name, durable=True, arguments=wanted.arguments)


async def require(url: str, *names: str) -> None:
    """Check that all exchanges exist, and the queues of these names; declares nothing, so it needs no such permission.

    Raises:
        aio_pika.exceptions.AMQPException, OSError: the broker is unavailable, or an exchange or queue is missing.
    """
    async with await connect(url) as connection:
        channel = await connection.channel()
        for wanted in EXCHANGES:
            await channel.declare_exchange(wanted.name, passive=True)
        for name in names:
            await channel.declare_queue(name, passive=True)

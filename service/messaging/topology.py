"""Every exchange and queue, by name. Nothing outside this module names one."""

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
"""Type of a message that asks nothing: whoever is active on a partition acknowledges it, and so learns that he is.
It travels under the queue's own name through the direct exchange, where nobody else can have bound a queue to it."""

# Nothing is ever nacked, so this counts only crashes, and a crash counts for all that was prefetched.
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
    """A durable queue and what is bound to it: routing keys by exchange."""

    name: str
    arguments: dict[str, Any]
    bindings: dict[str, list[str]]


@dataclass(frozen=True)
class PartitionedQueue:
    """A partitioned queue: the first partition has the bare name, the second ends in `.1`, and so on."""

    name: str
    carries: tuple[type[Message], ...]

    def queue_name(self, partition: int) -> str:
        """Return the queue of one partition."""
        return f"{self.name}.{partition}" if partition else self.name

    def queue(self, partition: int) -> RabbitQueue:
        """Return the queue of one partition for a subscriber; it was declared before by `declare`."""
        return RabbitQueue(self.queue_name(partition), durable=True, declare=False)


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
_QUEUE_OF = {message: partitioned for partitioned in PARTITIONED for message in partitioned.carries}


def is_partitioned(message: type[Message]) -> bool:
    """Say whether a message travels through a partitioned queue."""
    return message in _QUEUE_OF


def routing_key(message: type[Message], partition: int) -> str:
    """Return the routing key of a message for a partition."""
    partitioned = _QUEUE_OF.get(message)
    if partitioned is None:
        return message.name
    return partitioned.queue_name(partition) if message.exchange == JOBS else f"{message.name}.{partition}"


def name_of(routing_key: str) -> str:
    """Return the message name that a routing key stands for."""
    name, dot, partition = routing_key.rpartition(".")
    return name if dot and partition.isdigit() else routing_key


def exchange(name: str) -> RabbitExchange:
    """Return an exchange for a publish; it was declared before by `declare`."""
    return RabbitExchange(name, type=_TYPE_OF[name], durable=True, declare=False)


def dead_letter_queue() -> RabbitQueue:
    """Return the dead letters' queue for its reader; it was declared before by `declare`."""
    return RabbitQueue(DEAD_LETTERS, durable=True, declare=False)


def is_bound(exchange_name: str, routing_key: str, partitions: int) -> bool:
    """Say whether a message would reach a queue; an exchange without an alternate one says so itself."""
    if not any(known.name == exchange_name and known.arguments for known in EXCHANGES):
        return True
    return any(routing_key in queue.bindings.get(exchange_name, ()) for queue in queues(partitions))


def ingress_queue(suffix: str) -> RabbitQueue:
    """Return the queue on which one ingress process hears the events that its callers wait for."""
    return RabbitQueue(
        INGRESS_PREFIX + suffix,
        exclusive=True,
        auto_delete=True,
        durable=False,
        arguments={"x-max-length": _INGRESS_MAX_LENGTH, "x-overflow": "drop-head"},
    )


# A message under an unknown key must not vanish.
_KEEP_UNROUTABLE = {"alternate-exchange": DEAD_LETTERS}
# Dead letters first: at-least-once dead-lettering needs its target.
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
    """Yield every queue that outlives its reader; the dead letters first, as with the exchanges."""
    yield Queue(DEAD_LETTERS, _QUORUM | {"x-delivery-limit": _DEAD_LETTER_DELIVERY_LIMIT}, {DEAD_LETTERS: ["#"]})
    yield Queue(IncomingJob.name, _WORK, {JOBS: [IncomingJob.name]})
    for partitioned in PARTITIONED:
        for partition in range(partitions):
            yield Queue(partitioned.queue_name(partition), _PARTITION, _bindings(partitioned, partition))


async def declare(url: str, partitions: int) -> None:
    """Declare all exchanges, queues and bindings. Doing it again changes nothing.

    Raises:
        aio_pika.exceptions.AMQPException, OSError: the broker is away, or a queue exists with other arguments.
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


async def declare_exchange(channel: AbstractChannel, wanted: Exchange) -> None:
    """Declare one exchange."""
    await channel.declare_exchange(wanted.name, wanted.type.value, durable=True, arguments=wanted.arguments or None)


async def declare_queue(channel: AbstractChannel, wanted: Queue) -> AbstractQueue:
    """Declare one queue, without what is bound to it."""
    return await channel.declare_queue(wanted.name, durable=True, arguments=wanted.arguments)


async def require(url: str, *names: str) -> None:
    """Check that all exchanges exist, and the queues of these names; declares nothing, and needs no right to.

    Raises:
        aio_pika.exceptions.AMQPException, OSError: the broker is away, or one is missing.
    """
    async with await connect(url) as connection:
        channel = await connection.channel()
        for wanted in EXCHANGES:
            await channel.declare_exchange(wanted.name, passive=True)
        for name in names:
            await channel.declare_queue(name, passive=True)


async def waiting(url: str, queue: PartitionedQueue, partitions: int) -> list[int]:
    """Return how many messages wait in each partition of a queue, without those that a consumer has.

    Raises:
        aio_pika.exceptions.AMQPException, OSError: the broker is away, or the queue is not declared.
    """
    async with await connect(url) as connection:
        channel = await connection.channel()
        declared = [
            await channel.declare_queue(queue.queue_name(partition), passive=True) for partition in range(partitions)
        ]
        return [found.declaration_result.message_count or 0 for found in declared]


def _bindings(partitioned: PartitionedQueue, partition: int) -> dict[str, list[str]]:
    bindings: dict[str, list[str]] = {JOBS: [partitioned.queue_name(partition)]}  # jobs, and the probes of every queue
    for message in partitioned.carries:
        if message.exchange == JOBS:
            continue
        keys = bindings.setdefault(message.exchange, [])
        keys.append(routing_key(message, partition))
        # Clients that do not know PARTITIONS publish under the bare name; the reader passes it on.
        if partition == 0:
            keys.append(message.name)
    return bindings

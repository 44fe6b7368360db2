"""What is missing on the broker or has other properties, as far as AMQP tells: not what is bound or left over.

And how large a message may be, which the management API does not tell. Looking changes nothing. `management` tells
more, where RabbitMQ's management API can be asked.
"""

import asyncio
import time
from dataclasses import dataclass

import structlog
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from service.domain.sending import backoff
from service.messaging import topology
from service.messaging.connections import BROKER_TROUBLE, connect, unavailable
from whatsapp_qr_contracts.message import EVENTS, MAX_BODY_BYTES

log = structlog.get_logger()

APPLY = "run whatsapp-qr topology apply"
MAX_MESSAGE_SIZE = 1_048_576
"""The broker's `max_message_size`. Consumers' memory is reckoned with it (docs/operations.md)."""
NEEDED_SIZE = MAX_BODY_BYTES + 65_536
"""What the broker has to take: the largest body that the service takes, with a margin."""
_SECONDS = 30.0
_PUBLISH_SECONDS = 10.0


@dataclass(frozen=True)
class Difference:
    """Something on the broker that is not as it should be, and what to do about it."""

    what: str
    remedy: str


async def apply(url: str, partitions: int, *, wait: float = 0.0) -> None:
    """Declare everything; where that is not possible yet, try again for so many seconds.

    Raises:
        BrokerUnavailable: the broker is away, or does not let it be done; what was declared before that stays.
    """
    deadline = time.monotonic() + wait
    failures = 0
    while True:
        try:
            async with asyncio.timeout(_SECONDS):
                await topology.declare(url, partitions)
        except BROKER_TROUBLE as error:
            trouble = unavailable(error)
            if time.monotonic() >= deadline or isinstance(error, ChannelPreconditionFailed):
                raise trouble from error
            log.info("not_declared_yet", reason=trouble.detail)
        else:
            return
        failures += 1
        await asyncio.sleep(backoff(failures))


@dataclass(frozen=True)
class Comparison:
    """What AMQP tells of all exchanges and queues."""

    differences: list[Difference]
    complete: bool
    """Else only that they exist is known: RabbitMQ compares properties for a user who may declare."""


async def compare(url: str, partitions: int) -> Comparison:
    """Return what is missing or has other properties, as far as AMQP tells.

    Raises:
        BrokerUnavailable: the broker does not tell.
    """
    try:
        async with asyncio.timeout(_SECONDS), await connect(url) as connection:
            return await _compared(connection, partitions)
    except BROKER_TROUBLE as error:
        raise unavailable(error) from error


async def _compared(connection: AbstractConnection, partitions: int) -> Comparison:
    found: list[Difference] = []
    complete = True
    everything: list[topology.Exchange | topology.Queue] = [*topology.EXCHANGES, *topology.queues(partitions)]
    for wanted in everything:
        async with connection.channel() as channel:  # one for each question: an error closes it
            try:
                await _look_at(channel, wanted)
            except ChannelAccessRefused:
                complete = False
            except (ChannelNotFoundEntity, ChannelPreconditionFailed) as error:
                found.append(_difference(wanted, error))
    return Comparison(found, complete)


async def _look_at(channel: AbstractChannel, wanted: topology.Exchange | topology.Queue) -> None:
    """Ask whether it is there, then whether it is as we would make it: now that makes nothing."""
    if isinstance(wanted, topology.Exchange):
        await channel.declare_exchange(wanted.name, passive=True)
        await topology.declare_exchange(channel, wanted)
    else:
        await channel.declare_queue(wanted.name, passive=True)
        await topology.declare_queue(channel, wanted)


def _difference(wanted: topology.Exchange | topology.Queue, error: Exception) -> Difference:
    is_queue = isinstance(wanted, topology.Queue)
    kind, first = "queue" if is_queue else "exchange", " to it, wait until it is empty" if is_queue else ""
    if isinstance(error, ChannelNotFoundEntity):
        return Difference(f"{kind} {wanted.name} is missing", APPLY)
    remedy = f"stop what publishes{first}, delete it, {APPLY}, start again"
    return Difference(f"{kind} {wanted.name} has other properties: {error}", remedy)


async def compare_size(url: str) -> list[Difference]:
    """Return what is wrong with the largest message that RabbitMQ takes. Nobody gets one by this, whoever listens.

    Raises:
        BrokerUnavailable: the broker does not tell.
    """
    try:
        async with asyncio.timeout(_SECONDS), await connect(url) as connection:
            try:
                async with asyncio.timeout(_PUBLISH_SECONDS):
                    return await _compared_size(connection)
            except TimeoutError:
                what = "RabbitMQ takes no messages now, so that it cannot be seen how large they may be"
                return [Difference(what, "see rabbitmq-diagnostics alarms, then check again")]
    except BROKER_TROUBLE as error:
        raise unavailable(error) from error


async def _compared_size(connection: AbstractConnection) -> list[Difference]:
    remedy = f"set max_message_size = {MAX_MESSAGE_SIZE} in rabbitmq.conf on every node, and restart them one by one"
    if await _takes(connection, MAX_MESSAGE_SIZE + 1):
        what = f"RabbitMQ takes messages over {MAX_MESSAGE_SIZE} bytes: a few of them use up a consumer's memory"
        return [Difference(what, remedy)]
    if not await _takes(connection, NEEDED_SIZE):
        return [Difference(f"RabbitMQ refuses messages of {NEEDED_SIZE} bytes, which the service may send", remedy)]
    return []


async def _takes(connection: AbstractConnection, size: int) -> bool:
    """Say whether a message may be so large.

    RabbitMQ (3.10 to 4.3) compares the size before it looks at rights, exchange and properties: any other refusal means
    that the size is right. No message with an expiration below 0 is ever taken.
    """
    channel = await connection.channel()  # goes with the connection: a broker that takes nothing closes none
    exchange = await channel.get_exchange(EVENTS, ensure=False)
    try:
        await exchange.publish(Message(bytes(size), expiration=-1), "probe.size", mandatory=False)
    except ChannelPreconditionFailed as error:
        return "message size" not in str(error)
    except (ChannelAccessRefused, ChannelNotFoundEntity):
        pass
    return True

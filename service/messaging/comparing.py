"""What is missing on the broker or has other properties, as far as AMQP tells: not what is bound or left over.

Looking changes nothing. `management` tells more, where RabbitMQ's management API can be asked.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.connections import BROKER_TROUBLE, connect, in_words

APPLY = "run whatsapp-qr topology apply"
_SECONDS = 30.0


@dataclass(frozen=True)
class Difference:
    """Something on the broker that is not as it should be, and what to do about it."""

    what: str
    remedy: str


async def apply(url: str, partitions: int) -> None:
    """Declare everything.

    Raises:
        BrokerUnavailable: the broker is away, or does not let it be done; what was declared before that stays.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            await topology.declare(url, partitions)
    except BROKER_TROUBLE as error:
        raise BrokerUnavailable(in_words(error)) from error


async def compare(url: str, partitions: int) -> list[Difference]:
    """Return what is missing or has other arguments, as far as AMQP tells. The user must be allowed to declare.

    Raises:
        BrokerUnavailable: the broker does not tell.
    """
    try:
        async with asyncio.timeout(_SECONDS), await connect(url) as connection:
            return await _compared(connection, partitions)
    except BROKER_TROUBLE as error:
        raise BrokerUnavailable(in_words(error)) from error


async def _compared(connection: AbstractConnection, partitions: int) -> list[Difference]:
    found: list[Difference] = []
    for exchange in topology.EXCHANGES:
        async with _asking(connection, "exchange", exchange.name, found) as channel:
            await channel.declare_exchange(exchange.name, passive=True)
            await topology.declare_exchange(channel, exchange)
    for queue in topology.queues(partitions):
        async with _asking(connection, "queue", queue.name, found) as channel:
            await channel.declare_queue(queue.name, passive=True)
            await topology.declare_queue(channel, queue)
    return found


@asynccontextmanager
async def _asking(
    connection: AbstractConnection, kind: str, name: str, found: list[Difference]
) -> AsyncIterator[AbstractChannel]:
    async with connection.channel() as channel:  # one for each question: an error closes it
        try:
            yield channel
        except ChannelNotFoundEntity:
            found.append(Difference(f"{kind} {name} is missing", APPLY))
        except ChannelPreconditionFailed as error:
            found.append(_otherwise(kind, name, str(error)))


def _otherwise(kind: str, name: str, reason: str) -> Difference:
    remedy = {
        "exchange": f"stop what publishes, delete it, {APPLY}, start again",
        "queue": f"stop what publishes to it, wait until it is empty, delete it, {APPLY}, start again",
    }
    return Difference(f"{kind} {name} has other properties: {reason}", remedy[kind])

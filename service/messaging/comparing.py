"""What is missing on the broker or has other properties, as far as AMQP tells: not what is bound or left over.

Looking changes nothing. `management` tells more, where RabbitMQ's management API can be asked.
"""

import asyncio
import time
from dataclasses import dataclass

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from service.domain.sending import backoff
from service.messaging import topology
from service.messaging.connections import BROKER_TROUBLE, connect, unavailable

log = structlog.get_logger()

APPLY = "run whatsapp-qr topology apply"
_SECONDS = 30.0


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

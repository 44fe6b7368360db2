"""Finds missing or different exchanges and queues by AMQP, which does not report bindings or superfluous queues.

It also checks the maximum message size, which the management API does not report. The comparison changes nothing.
`management` compares more, if RabbitMQ's management API is available.
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
"""The broker's `max_message_size`. Consumers' memory limits depend on it (docs/operations.md)."""
NEEDED_SIZE = MAX_BODY_BYTES + 65_536
"""The size that the broker must accept: the largest body that the service accepts, with a margin."""
_SECONDS = 30.0
_PUBLISH_SECONDS = 10.0


@dataclass(frozen=True)
class Difference:
    """A difference on the broker, with its remedy."""

    what: str
    remedy: str


async def apply(url: str, partitions: int, *, wait: float = 0.0) -> None:
    """Declare everything; if that is not possible yet, try again for so many seconds.

    Raises:
        BrokerUnavailable: the broker is unavailable, or refuses; earlier declarations stay.
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
    """The result of the comparison of all exchanges and queues by AMQP."""

    differences: list[Difference]
    complete: bool
    """If False, only their existence is known: RabbitMQ compares properties only for a user that may declare."""


async def compare(url: str, partitions: int) -> Comparison:
    """Return missing or different exchanges and queues, as far as AMQP reports them.

    Raises:
        BrokerUnavailable: the broker does not answer, or refuses.
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
    """Check whether it exists, then declare it to compare its properties: since it exists, that creates nothing."""
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
    remedy = f"stop all publishers{first}, delete it, {APPLY}, start again"
    return Difference(f"{kind} {wanted.name} has other properties: {error}", remedy)


async def compare_size(url: str) -> list[Difference]:
    """Return the faults of RabbitMQ's maximum message size. The probes reach no queue.

    Raises:
        BrokerUnavailable: the broker does not answer, or refuses.
    """
    try:
        async with asyncio.timeout(_SECONDS), await connect(url) as connection:
            try:
                async with asyncio.timeout(_PUBLISH_SECONDS):
                    return await _compared_size(connection)
            except TimeoutError:
                what = "RabbitMQ accepts no messages now, so that their maximum size cannot be checked"
                return [Difference(what, "see rabbitmq-diagnostics alarms, then check again")]
    except BROKER_TROUBLE as error:
        raise unavailable(error) from error


async def _compared_size(connection: AbstractConnection) -> list[Difference]:
    remedy = f"set max_message_size = {MAX_MESSAGE_SIZE} in rabbitmq.conf on every node, and restart them one by one"
    if await _takes(connection, MAX_MESSAGE_SIZE + 1):
        what = f"RabbitMQ accepts messages over {MAX_MESSAGE_SIZE} bytes: a few of them use up a consumer's memory"
        return [Difference(what, remedy)]
    if not await _takes(connection, NEEDED_SIZE):
        return [Difference(f"RabbitMQ refuses messages of {NEEDED_SIZE} bytes, which the service may send", remedy)]
    return []


async def _takes(connection: AbstractConnection, size: int) -> bool:
    """Return whether a message may have this size.

    RabbitMQ (3.10 to 4.3) checks the size before permissions, exchange and properties: any other refusal means that the
    size is allowed. A message with a negative expiration is never accepted.
    """
    channel = await connection.channel()  # closed with the connection: a blocked broker answers no channel close
    exchange = await channel.get_exchange(EVENTS, ensure=False)
    try:
        await exchange.publish(Message(bytes(size), expiration=-1), "probe.size", mandatory=False)
    except ChannelPreconditionFailed as error:
        return "message size" not in str(error)
    except (ChannelAccessRefused, ChannelNotFoundEntity):
        pass
    return True

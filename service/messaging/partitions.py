"""The subscription of this process to one partition: deliveries in order, acknowledgement, release.

FastStream's defaults could lose or reorder messages; this module prevents that:

- a delivery is taken when it is received, before any await: that is the order of arrival;
- it is acknowledged explicitly, after its work is committed; nothing is ever nacked or requeued;
- to release a partition, the messages in progress are acknowledged, the outputs are published, and then the channel is
  closed: `basic.cancel` would let the next process start while messages of this one are still unacknowledged;
- a process detects that it is active on a partition by its first delivery on the present channel: the broker reports it
  in no other way. On a queue with no traffic, a probe (see topology) is that delivery.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from service.messaging.connections import close_all, close_broker, new_broker, open_broker
from service.messaging.inbox import Delivery, Gate
from service.messaging.tolerance import tolerate_foreign_properties
from service.tasks import let_end

log = structlog.get_logger()

Receive = Callable[[Delivery], None]
Settle = Callable[[], Awaitable[None]]


class Partition:
    """The subscription to one partition.

    Args:
        changed: is set when this process detects that it is active on the partition.
        settle: publishes the outputs of the finished messages; awaited before the partition is released.
        prefetch: how many messages may be unacknowledged at once.
    """

    def __init__(
        self,
        url: str,
        queue: RabbitQueue,
        receive: Receive,
        changed: asyncio.Event,
        *,
        settle: Settle | None = None,
        number: int = 0,
        prefetch: int,
    ) -> None:
        self.name = queue.name
        self.active_since = self.delivered_at = 0.0
        """Monotonic times: when this process became active, and when the last message was delivered."""
        self._url = url
        self._queue = queue
        self._receive, self._changed, self._settle = receive, changed, settle
        self._number = number
        self._prefetch = prefetch
        self._gate = Gate()
        self._broker: RabbitBroker | None = None
        self._subscriber: Any = None
        self._delivered_on: Any = None
        self._finishing = False

    async def start(self) -> None:
        """Subscribe, over its own connection: a broker alarm that blocks publishes must not block acknowledgements.

        Raises:
            aio_pika.exceptions.AMQPError, OSError: the broker is unavailable, or the queue is not declared.
        """
        tolerate_foreign_properties()
        self._gate = Gate()
        self._delivered_on = None
        broker = new_broker(self._url)
        self._subscriber = broker.subscriber(
            self._queue,
            channel=Channel(prefetch_count=self._prefetch),  # one Channel object per subscription: one channel each
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
        )
        self._subscriber(_nothing)
        self._subscriber.consume = partial(self._take, self._gate)  # each delivery unchanged, without middleware
        try:
            await open_broker(broker)
            await broker.start()
        except BaseException:
            await let_end(asyncio.create_task(close_broker(broker)))  # if interrupted, it would reconnect
            raise
        self._broker = broker

    async def _take(self, gate: Gate, raw: Any) -> None:
        """Take a delivery: runs in the order of arrival, so it must not await."""
        delivery = Delivery(raw, self._number, gate)
        if delivery.is_void:
            return
        self.delivered_at = time.monotonic()
        if raw.channel is not self._delivered_on:
            self._delivered_on = raw.channel  # a new one after each loss of the connection
            self.active_since = self.delivered_at
            self._changed.set()
        self._receive(delivery)

    @property
    def started(self) -> bool:
        """Whether this process has subscribed, and not released since; the connection may be lost for a while."""
        return self._broker is not None

    @property
    def subscribed(self) -> bool:
        """Whether this process is subscribed and connected, and has not released the partition."""
        if self._broker is None or (connection := self._broker._connection) is None:  # noqa: SLF001  # nothing public
            return False
        return connection.connected.is_set()

    @property
    def active(self) -> bool:
        """Whether the broker is known to deliver the partition to this process."""
        return self._broker is not None and self.owned

    @property
    def owned(self) -> bool:
        """Whether this process publishes the partition's outputs: it is active, or finishes messages in progress."""
        ours = self._broker is not None or self._finishing
        return ours and self._delivered_on is not None and not self._delivered_on.is_closed

    def assume_inactive(self) -> None:
        """Assume that another process is active, until the next delivery."""
        self._delivered_on = None

    async def release(self, seconds: float) -> None:
        """Finish the messages in progress, for at most so many seconds, then close the channel; requeue the others."""
        broker, self._broker = self._broker, None
        if broker is None or broker._connection is None:  # noqa: SLF001  # nothing public
            return
        self._finishing = True
        try:
            await self._gate.close(seconds)
            if self._settle is not None:
                await self._settle()
        finally:
            self._finishing = False
        # Close the channel first: the order at the next process depends on it.
        await close_all(self._subscriber._queue_obj.channel.close, broker._connection.close, broker.stop)  # noqa: SLF001


async def _nothing(delivery: RabbitMessage) -> None:
    """Be the handler that the framework requires; no delivery reaches it."""


async def undecoded(message: RabbitMessage, _original: object) -> RabbitMessage:
    """Return the body unchanged: it is decoded as part of handling, so that errors in it make a dead letter."""
    return message

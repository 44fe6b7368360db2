"""One partition's subscription in this process: deliveries in order, acknowledgement, and how it is given up.

FastStream's defaults would lose or disorder messages here; this module is where that is prevented:

- a delivery is taken when it is received, before any await: that is the order of arrival;
- it is acknowledged by hand, after its work is committed; nothing is ever nacked or requeued;
- a partition is given up by closing its channel once what has begun is acknowledged, and what follows from it is told:
  `basic.cancel` would let the next process start while messages of this one are still unacknowledged;
- a process knows that it is active on a partition once it was delivered anything on its present channel: the broker
  tells it in no other way. On a queue with no traffic a probe (see topology) is what is delivered.
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
    """One partition's subscription.

    Args:
        changed: is set when this process learns that it is active on the partition.
        settle: tells what follows from what was done; awaited before the partition is given up.
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
        self.active_since = self.heard_at = 0.0
        """When it became active, and when something was delivered last."""
        self._url = url
        self._queue = queue
        self._receive, self._changed, self._settle = receive, changed, settle
        self._number = number
        self._prefetch = prefetch
        self._gate = Gate()
        self._broker: RabbitBroker | None = None
        self._subscriber: Any = None
        self._heard_on: Any = None
        self._finishing = False

    async def start(self) -> None:
        """Subscribe, over a connection of its own: a broker alarm that blocks publishes must not block acks.

        Raises:
            aio_pika.exceptions.AMQPError, OSError: the broker is away, or the queue is not declared.
        """
        tolerate_foreign_properties()
        self._gate = Gate()
        self._heard_on = None
        broker = new_broker(self._url)
        self._subscriber = broker.subscriber(
            self._queue,
            channel=Channel(prefetch_count=self._prefetch),  # a Channel object of its own is a channel of its own
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
        )
        self._subscriber(_nothing)
        self._subscriber.consume = partial(self._take, self._gate)  # each delivery as it is, with no layer between
        try:
            await open_broker(broker)
            await broker.start()
        except BaseException:
            await let_end(asyncio.create_task(close_broker(broker)))  # cut off, it would come back by itself
            raise
        self._broker = broker

    async def _take(self, gate: Gate, raw: Any) -> None:
        """Take a delivery: runs in the order of arrival, so nothing may be awaited here."""
        delivery = Delivery(raw, self._number, gate)
        if delivery.is_void:
            return
        self.heard_at = time.monotonic()
        if raw.channel is not self._heard_on:
            self._heard_on = raw.channel  # a new one after each loss of the connection
            self.active_since = self.heard_at
            self._changed.set()
        self._receive(delivery)

    @property
    def started(self) -> bool:
        """Whether this process has subscribed, and not given up since; the connection may be lost for a while."""
        return self._broker is not None

    @property
    def subscribed(self) -> bool:
        """Whether this process is subscribed and connected, and has not given up the partition."""
        if self._broker is None or (connection := self._broker._connection) is None:  # noqa: SLF001  # nothing public
            return False
        return connection.connected.is_set()

    @property
    def active(self) -> bool:
        """Whether this process is known to be the one that the broker delivers to."""
        return self._broker is not None and self.owned

    @property
    def owned(self) -> bool:
        """Whether what follows in the partition is this process's to tell: it is active, or finishes what has begun."""
        ours = self._broker is not None or self._finishing
        return ours and self._heard_on is not None and not self._heard_on.is_closed

    def doubt(self) -> None:
        """Believe that another process is active, until the next delivery."""
        self._heard_on = None

    async def release(self, seconds: float) -> None:
        """Finish what has begun, for at most so many seconds, then close the channel. What has not begun goes back."""
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
        # The channel first: the next process's order depends on it.
        await close_all(self._subscriber._queue_obj.channel.close, broker._connection.close, broker.stop)  # noqa: SLF001


async def _nothing(delivery: RabbitMessage) -> None:
    """Stand where the framework wants a handler; no delivery comes so far."""


async def undecoded(message: RabbitMessage, _original: object) -> RabbitMessage:
    """Leave the body as it is: it is read as part of the message's life, where its errors have a place to go."""
    return message

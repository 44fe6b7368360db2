"""One partition's consumer in this process: order per key, acknowledgement, and how the partition is given up.

FastStream's defaults would lose or disorder messages here; this module is where that is prevented:

- a message takes its place in its key's lane when it is received, before any await, and waits for its turn (`turns`);
- it is acknowledged by hand, after its handler has published every output; nothing is ever nacked or requeued;
- a partition is given up by closing its channel once what has begun is acknowledged: `basic.cancel` would let the next
  process start while messages of this one are still unacknowledged;
- a process knows that it is active on a partition once it was delivered anything on its present channel: the broker
  tells it in no other way. On a queue with no traffic a probe (see topology) is what is delivered.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from service.messaging.connections import BROKER_TROUBLE, close_all, close_broker, open_broker, with_heartbeat
from service.messaging.tolerance import tolerate_foreign_properties
from service.messaging.topology import PROBE
from service.messaging.turns import Gate, Turn
from whatsapp_qr_contracts.message import JOBS

log = structlog.get_logger()

Process = Callable[[RabbitMessage], Awaitable[bool]]
"""Does all that follows from a message; says whether it may be acknowledged."""


class Partition:
    """One partition's consumer.

    Args:
        url: the broker.
        queue: the partition's queue.
        process: does all that follows from one message.
        prefetch: how many messages may be unacknowledged at once.
        ordered: whether messages of one key are processed one after another.
    """

    def __init__(self, url: str, queue: RabbitQueue, process: Process, *, prefetch: int, ordered: bool = True) -> None:
        self.name = queue.name
        self.on_active: Callable[[], None] = lambda: None
        """Is called when this process learns that it is active on the partition."""
        self.active_since = self.heard_at = 0.0
        """When it became active, and when something was delivered last."""
        self._url = with_heartbeat(url)
        self._queue = queue
        self._process = process
        self._prefetch = prefetch
        self._ordered = ordered
        self._gate = Gate()
        self._broker: RabbitBroker | None = None
        self._subscriber: Any = None
        self._heard_on: Any = None

    async def start(self) -> None:
        """Subscribe, over a connection of its own: a broker alarm that blocks publishes must not block acks.

        Raises:
            aio_pika.exceptions.AMQPError, OSError: the broker is away, or the queue is not declared.
        """
        tolerate_foreign_properties()
        self._gate = Gate()
        self._heard_on = None
        broker = RabbitBroker(
            self._url,
            timeout=3,
            reconnect_interval=0.5,
            graceful_timeout=None,  # give_up waits by itself, before the broker is stopped
            middlewares=[partial(Turn, self._gate, {} if self._ordered else None, self._hear)],
            decoder=_undecoded,
            apply_types=False,
            logger=logging.getLogger("service.faststream"),
        )
        self._subscriber = broker.subscriber(
            self._queue,
            channel=Channel(prefetch_count=self._prefetch),  # a Channel object of its own is a channel of its own
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
        )
        self._subscriber(self._handle)
        try:
            await open_broker(broker)
            await broker.start()
        except BaseException:
            await close_broker(broker)
            raise
        self._broker = broker

    def _hear(self, raw: Any) -> None:
        self.heard_at = time.monotonic()
        if raw.channel is not self._heard_on:
            self._heard_on = raw.channel  # a new one after each loss of the connection
            self.active_since = self.heard_at
            self.on_active()

    async def _handle(self, delivery: RabbitMessage) -> None:
        gate = self._gate
        raw = delivery.raw_message
        is_probe = raw.type == PROBE and raw.exchange == JOBS  # elsewhere it would be somebody's message
        if not is_probe and not await self._process(delivery):
            gate.closed = True  # what is left may not be overtaken, even if nobody has given up the partition yet
            return
        try:
            await delivery.ack()
        except BROKER_TROUBLE as error:
            log.info("ack_lost", queue=self.name, error=repr(error))  # it is delivered again

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
        return self._broker is not None and self._heard_on is not None and not self._heard_on.is_closed

    def doubt(self) -> None:
        """Believe that another process is active, until the next delivery."""
        self._heard_on = None

    async def give_up(self, seconds: float) -> None:
        """Finish what has begun, for at most so many seconds, then close the channel. What has not begun goes back."""
        broker, self._broker = self._broker, None
        if broker is None or broker._connection is None:  # noqa: SLF001  # nothing public
            return
        await self._gate.close(seconds)
        # The channel first: the next process's order depends on it.
        await close_all(self._subscriber._queue_obj.channel.close, broker._connection.close, broker.stop)  # noqa: SLF001


async def _undecoded(message: RabbitMessage, _original: object) -> RabbitMessage:
    # The body is read as part of the message's life, where its errors have a place to go.
    return message

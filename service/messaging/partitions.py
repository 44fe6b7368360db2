"""One partition's consumer in this process: order per key, acknowledgement, and how the partition is given up.

FastStream's defaults would lose or disorder messages here; this module is where that is prevented:

- a message takes its place in its key's lane when it is received, before any await, and waits there for its turn;
- it is acknowledged by hand, after its handler has published every output; nothing is ever nacked or requeued;
- a partition is given up by closing its channel once what has begun is acknowledged: `basic.cancel` would let the next
  process start while messages of this one are still unacknowledged.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any
from uuid import UUID

import structlog
from faststream import AckPolicy, BaseMiddleware
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from service.messaging.publishing import BROKER_TROUBLE, with_heartbeat
from service.messaging.tolerance import tolerate_foreign_properties
from whatsapp_qr_contracts.partitions import chatbot_key, session_key

log = structlog.get_logger()

Process = Callable[[RabbitMessage], Awaitable[bool]]
"""Does all that follows from a message; says whether it may be acknowledged."""


def lane_key(body: bytes, headers: Mapping[str, Any] | None) -> str:
    """Return the key whose messages are processed one after another: the chatbot, or a foreign session id.

    The body decides, because a wrong header must not disorder anything; where it cannot be read the header does.
    """
    try:
        content = json.loads(body)
        if isinstance(chatbot := content.get("chatbotId"), str):
            return chatbot_key(UUID(chatbot))  # however it is written
        if isinstance(session := content.get("sessionId"), str):
            return session_key(session)
    except (ValueError, AttributeError, RecursionError):
        pass  # the message's life will say what is wrong with it
    return str((headers or {}).get("partition-key", ""))


class Gate:
    """Counts what has begun, and lets nothing begin once it is closed."""

    def __init__(self) -> None:
        self.closed = False
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Begin."""
        self.running += 1
        self._idle.clear()

    def leave(self) -> None:
        """End what has begun."""
        self.running -= 1
        if not self.running:
            self._idle.set()

    async def close(self, seconds: float) -> None:
        """Let nothing begin any more and wait, for at most so many seconds, until what has begun has ended."""
        self.closed = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            log.warning("given_up_with_work_in_progress", running=self.running)


class Turn(BaseMiddleware[Any, Any]):
    """The place of one message in the lane of its key."""

    def __init__(self, gate: Gate, lanes: dict[str, asyncio.Future[None]] | None, msg: Any, /, *, context: Any) -> None:
        super().__init__(msg, context=context)
        self._gate = gate
        self._lanes = lanes
        self._key = ""
        self._before: asyncio.Future[None] | None = None
        self._mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_receive(self) -> None:
        """Take the place: runs in the order of arrival, so nothing may be awaited before."""
        if self._lanes is not None:
            self._key = lane_key(self.msg.body, self.msg.headers)
            self._before = self._lanes.get(self._key)
            self._lanes[self._key] = self._mine

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
        """Wait for the turn, then process; with the gate closed, leave the message to the next process."""
        if self._before is not None:
            await asyncio.shield(self._before)  # a cancelled waiter must not cancel the place that it waits for
        if self._gate.closed:
            return None  # unacknowledged: it goes back to the head of the queue when the channel closes
        self._gate.enter()
        try:
            return await call_next(msg)
        finally:
            self._gate.leave()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool | None:
        # Runs however the message ended. One that is cancelled before its turn leaves when its turn would have come:
        # it may be here again, over a new connection, while a cancelled one before it still cleans up.
        if self._before is None:
            self._leave()
        else:
            self._before.add_done_callback(self._leave)
        return await super().__aexit__(exc_type, exc_val, exc_tb)

    def _leave(self, _before: asyncio.Future[None] | None = None) -> None:
        self._mine.set_result(None)
        if self._lanes is not None and self._lanes.get(self._key) is self._mine:
            del self._lanes[self._key]


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
        self._url = with_heartbeat(url)
        self._queue = queue
        self._process = process
        self._prefetch = prefetch
        self._ordered = ordered
        self._gate = Gate()
        self._broker: RabbitBroker | None = None
        self._subscriber: Any = None

    async def start(self) -> None:
        """Subscribe, over a connection of its own: a broker alarm that blocks publishes must not block acks.

        Raises:
            aio_pika.exceptions.AMQPError, OSError: the broker is away, or the queue is not declared.
        """
        tolerate_foreign_properties()
        self._gate = Gate()
        broker = RabbitBroker(
            self._url,
            timeout=3,
            reconnect_interval=0.5,
            graceful_timeout=None,  # give_up waits by itself, before the broker is stopped
            middlewares=[partial(Turn, self._gate, {} if self._ordered else None)],
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
            await broker.start()
        except BaseException:
            await broker.stop()
            raise
        self._broker = broker

    async def _handle(self, delivery: RabbitMessage) -> None:
        gate = self._gate
        if not await self._process(delivery):
            gate.closed = True  # what is left may not be overtaken, even if nobody has given up the partition yet
            return
        try:
            await delivery.ack()
        except BROKER_TROUBLE as error:
            log.info("ack_lost", queue=self.name, error=repr(error))  # it is delivered again

    @property
    def subscribed(self) -> bool:
        """Whether this process is subscribed and connected, and has not given up the partition."""
        if self._broker is None or (connection := self._broker._connection) is None:  # noqa: SLF001  # nothing public
            return False
        return connection.connected.is_set()

    async def give_up(self, seconds: float) -> None:
        """Finish what has begun, for at most so many seconds, then close the channel. What has not begun goes back."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        await self._gate.close(seconds)
        try:
            await self._subscriber._queue_obj.channel.close()  # noqa: SLF001  # the next process's order depends on it
            await broker.stop()
        except BROKER_TROUBLE as error:
            log.info("connection_lost_while_closing", queue=self.name, error=repr(error))


async def _undecoded(message: RabbitMessage, _original: object) -> RabbitMessage:
    # The body is read as part of the message's life, where its errors have a place to go.
    return message

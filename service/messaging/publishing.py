"""The only place that publishes. A publish returns once the broker has confirmed the message, on disk."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

import structlog
from aiormq.exceptions import PublishError
from faststream.rabbit import Channel, RabbitBroker
from opentelemetry.trace import SpanKind

from service import tracing
from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.connections import BROKER_TROUBLE, close_broker, open_broker, unavailable, with_heartbeat
from service.messaging.envelope import NO_ID, Properties, published_attributes
from service.messaging.topology import DEAD_LETTERS, PROBE
from service.metrics import PUBLISHED
from service.tasks import is_cancelled
from whatsapp_qr_contracts.events import Event
from whatsapp_qr_contracts.message import EVENTS, Message
from whatsapp_qr_contracts.partitions import partition_of

log = structlog.get_logger()

APP_ID = "whatsapp-qr"
_PUBLISH_SECONDS = 4.0
_CONNECT_SECONDS = 3.0


def _names(kind: type[Message]) -> set[str]:
    """Return the names of a kind of messages and of those below it."""
    return {kind.name} if hasattr(kind, "name") else set().union(*map(_names, kind.__subclasses__()))


# Only names that we know may be a label: what is passed on or buried may have any other.
_KNOWN = frozenset({PROBE, *_names(Event), *_names(Message)})


class Publisher:
    """Publishes persistent and confirmed, over a connection of its own that is made at the first publish.

    Args:
        url: the broker.
        partitions: partitions of each partitioned queue.
    """

    def __init__(self, url: str, partitions: int) -> None:
        self._url = with_heartbeat(url)
        self._partitions = partitions
        self._broker: RabbitBroker | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def publish(
        self,
        message: Message,
        *,
        message_id: str,
        correlation_id: str,
        key: str,
        headers: Mapping[str, Any] | None = None,
        seconds: float = _PUBLISH_SECONDS,
    ) -> None:
        """Publish one message.

        Args:
            message: the body; its class says where it goes.
            message_id: stable and unique per output and destination; never twice at once.
            correlation_id: the id of the command that caused it.
            key: partition key; decides the partition of partitioned messages.
            headers: further headers.
            seconds: time limit.

        Raises:
            BrokerUnavailable: not confirmed; it may have arrived. Publish it again under the same id.
        """
        partition = partition_of(key, self._partitions) if topology.is_partitioned(type(message)) else 0
        envelope = {"partition-key": key, "schema-version": message.schema_version}
        await self.publish_raw(
            message.wire(),
            exchange=message.exchange,
            routing_key=topology.routing_key(type(message), partition),
            properties=Properties(message_id, correlation_id, message.name, envelope | dict(headers or {})),
            seconds=seconds,
        )

    async def publish_raw(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        properties: Properties,
        seconds: float = _PUBLISH_SECONDS,
    ) -> None:
        """Publish bytes as they are; see `publish` for the guarantees and the error."""
        headers, kind = dict(properties.headers), properties.type if properties.type in _KNOWN else "unknown"
        try:
            attributes = published_attributes(exchange, routing_key, properties)
            with tracing.part(f"publish {exchange}", SpanKind.PRODUCER, attributes):
                if exchange != DEAD_LETTERS:  # a dead letter keeps what it came with, to be put back as it was
                    tracing.inject(headers)
                async with self._connected(min(seconds, _PUBLISH_SECONDS)) as broker:
                    await broker.publish(
                        body,
                        exchange=topology.exchange(exchange),
                        routing_key=routing_key,
                        # Nobody may be listening to an event; everything else must have reached a queue.
                        mandatory=exchange != EVENTS,
                        persist=True,
                        content_type="application/json",
                        message_id=properties.message_id or NO_ID,
                        correlation_id=properties.correlation_id,
                        message_type=properties.type,
                        timestamp=datetime.now(UTC),
                        headers=headers,
                    )
        except Exception as error:
            PUBLISHED.labels(kind, "unroutable" if isinstance(error.__cause__, PublishError) else "failed").inc()
            raise
        PUBLISHED.labels(kind, "confirmed").inc()

    @asynccontextmanager
    async def _connected(self, seconds: float) -> AsyncIterator[RabbitBroker]:
        broker = None
        try:
            async with asyncio.timeout(seconds):
                broker = await self._connection()
                yield broker
        except PublishError as error:
            message = "RabbitMQ has no queue for this message yet: have the consumers been started?"
            raise BrokerUnavailable(message) from error
        except (TimeoutError, asyncio.CancelledError) as error:
            # What is unconfirmed now must not mix with a later publish under the same id.
            self._replace(broker)
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            message = f"RabbitMQ did not confirm within {seconds:.1f} s"
            raise BrokerUnavailable(message) from error
        except BROKER_TROUBLE as error:
            raise unavailable(error) from error
        except Exception as error:
            # A connection that the end of another publish has replaced fails what is in flight with a bare Exception.
            if broker is self._broker:
                raise
            message = "the connection was closed before RabbitMQ confirmed"
            raise BrokerUnavailable(message) from error

    async def _connection(self) -> RabbitBroker:
        while self._broker is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
            # Others wait for it too.
            await asyncio.shield(self._connecting)
        return self._broker

    async def _connect(self) -> None:
        broker = RabbitBroker(
            self._url,
            timeout=_CONNECT_SECONDS,
            reconnect_interval=0.5,
            default_channel=Channel(on_return_raises=True),
            app_id=APP_ID,
            apply_types=False,
        )
        try:
            await open_broker(broker)
            self._broker = broker
        finally:
            self._connecting = None

    def _replace(self, broker: RabbitBroker | None) -> None:
        if broker is not None and broker is self._broker:
            self._broker = None
            closing = asyncio.create_task(close_broker(broker), context=Context())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def waiting(self, queue: topology.PartitionedQueue) -> list[int]:
        """Return how many messages wait in each partition of a queue, without those that a consumer has.

        Raises:
            BrokerUnavailable: the broker does not say.
        """
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS):
                return await topology.waiting(self._url, queue, self._partitions)
        except BROKER_TROUBLE as error:
            raise unavailable(error) from error

    async def ping(self) -> bool:
        """Say whether the broker answers."""
        try:
            async with self._connected(_CONNECT_SECONDS) as broker:
                return await broker.ping(timeout=_CONNECT_SECONDS)
        except BrokerUnavailable:
            return False

    async def close(self) -> None:
        """Close the connection. Everything that publishes must have ended before."""
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._replace(self._broker)
        await asyncio.gather(*self._closing)

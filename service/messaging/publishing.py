"""The only module that publishes. A publish returns once the broker has confirmed that the message is on disk.

Each destination has its own connection. Replacing a connection, after a publish that was not confirmed in time, does
not disturb the others, and a queue that is slow or full delays only the messages for its own destination.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from aio_pika import DeliveryMode
from aio_pika.exceptions import ChannelInvalidStateError, DeliveryError
from aiormq.exceptions import PublishError
from faststream.rabbit import Channel, RabbitBroker
from opentelemetry.trace import SpanKind
from pamqp.commands import Basic

from service import tracing
from service.errors import BrokerUnavailable, PublishRefused
from service.messaging import topology
from service.messaging.connections import (
    BROKER_TROUBLE,
    close_broker,
    new_broker,
    open_broker,
    unavailable,
)
from service.messaging.envelope import NO_ID, Properties
from service.messaging.pipelining import Pipeline
from service.messaging.topology import DEAD_LETTERS, PROBE
from service.metrics import PUBLISHED
from service.tasks import raise_if_cancelled
from whatsapp_qr_contracts.catalogue import BY_NAME
from whatsapp_qr_contracts.message import EVENTS, MAX_BODY_BYTES, Message
from whatsapp_qr_contracts.partitions import partition_of

log = structlog.get_logger()

APP_ID = "whatsapp-qr"
_PUBLISH_SECONDS = 4.0
_CONNECT_SECONDS = 3.0
# Only names that we know may be a label: a message that is rerouted may have any other name.
_KNOWN = frozenset({PROBE, *BY_NAME})


class _Link:
    """A connection for publishing, made at the first publish and again after one that was not confirmed in time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._broker: RabbitBroker | None = None
        self._pipeline: Pipeline | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def connected(self, seconds: float) -> AsyncIterator[RabbitBroker]:
        """Return the connection for one publish, and translate its errors."""
        broker = None
        try:
            async with asyncio.timeout(seconds):
                broker = await self._connection()
                yield broker
        except PublishError as error:
            message = "RabbitMQ has no queue for this message yet: have the consumers been started?"
            raise BrokerUnavailable(message) from error
        except DeliveryError as error:
            raise PublishRefused("a queue has no room for this message: it is full") from error
        except (TimeoutError, asyncio.CancelledError) as error:
            # A publish that is unconfirmed now must not mix with a later publish under the same id.
            self._replace(broker)
            raise_if_cancelled(error)
            raise BrokerUnavailable(f"RabbitMQ did not confirm within {seconds:.1f} s") from error
        except BROKER_TROUBLE as error:
            raise unavailable(error) from error
        except Exception as error:
            # If the end of another publish replaces a connection, the publishes in flight fail with a bare Exception.
            if broker is self._broker:
                raise
            raise BrokerUnavailable("the connection was closed before RabbitMQ confirmed") from error

    async def publish(
        self, body: bytes, exchange: str, routing_key: str, properties: Basic.Properties, seconds: float
    ) -> None:
        """Publish one message; concurrent publishes share few writes."""
        async with self.connected(seconds) as broker:
            # It is not declared: the broker client only caches it.
            channel = (await broker.declare_exchange(topology.exchange(exchange))).channel
            if channel.is_closed:  # the wait until it is opened again may be long
                raise ChannelInvalidStateError(f"{channel} is closed")
            underlay = await channel.get_underlay_channel()
            if self._pipeline is None or self._pipeline.channel is not underlay:  # a new one after each lost connection
                self._drop_pipeline()
                self._pipeline = Pipeline(underlay)
            # An event may have no subscriber; every other message must reach a queue.
            await self._pipeline.publish(body, exchange, routing_key, properties, mandatory=exchange != EVENTS)

    async def _connection(self) -> RabbitBroker:
        while self._broker is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
            # Other publishes wait for it too.
            await asyncio.shield(self._connecting)
        return self._broker

    async def _connect(self) -> None:
        channel = Channel(on_return_raises=True)
        broker = new_broker(self._url, timeout=_CONNECT_SECONDS, default_channel=channel, app_id=APP_ID)
        try:
            await open_broker(broker)
            self._broker = broker
        finally:
            self._connecting = None

    def _drop_pipeline(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _replace(self, broker: RabbitBroker | None) -> None:
        if broker is not None and broker is self._broker:
            self._broker = None
            self._drop_pipeline()
            closing = asyncio.create_task(close_broker(broker), context=Context())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._replace(self._broker)
        await asyncio.gather(*self._closing)


class Publisher:
    """Publishes persistent messages with publisher confirms."""

    def __init__(self, url: str, partitions: int) -> None:
        self.partitions = partitions
        self._url = url
        self._links: dict[str, _Link] = {}

    async def publish(
        self,
        message: Message,
        *,
        message_id: str,
        correlation_id: str,
        headers: Mapping[str, Any] | None = None,
        seconds: float = _PUBLISH_SECONDS,
    ) -> None:
        """Publish one message. Its class sets the exchange and routing key, its partition key sets the partition.

        `message_id` is stable and unique per output and destination, and never published twice at once;
        `correlation_id` is the id of the command that caused the message.

        Raises:
            PublishRefused: a queue is full; other queues that the message is for may have it.
            BrokerUnavailable: not confirmed; it may have arrived. Publish it again under the same id.
        """
        key = message.partition_key
        envelope = {"partition-key": key, "schema-version": message.schema_version}
        await self.publish_raw(
            message.wire(),
            exchange=message.exchange,
            routing_key=topology.routing_key(type(message), partition_of(key, self.partitions)),
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
        """Publish bytes unchanged; see `publish` for the guarantees and the errors.

        Raises:
            ValueError: the body is larger than any reader accepts.
        """
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"a body has at most {MAX_BODY_BYTES} bytes, this one {len(body)}")
        headers, kind = dict(properties.headers), properties.type if properties.type in _KNOWN else "unknown"
        try:
            ids = properties.message_id, properties.correlation_id
            describe = partial(tracing.published, exchange, routing_key, *ids)
            with tracing.part(f"publish {exchange}", SpanKind.PRODUCER, describe):
                if exchange != DEAD_LETTERS:  # a dead letter keeps its original headers, so that it can be replayed
                    tracing.inject(headers)
                await self._link(exchange, routing_key).publish(
                    body, exchange, routing_key, _properties(properties, headers), min(seconds, _PUBLISH_SECONDS)
                )
        except Exception as error:
            PUBLISHED.labels(kind, _outcome(error)).inc()
            raise
        PUBLISHED.labels(kind, "confirmed").inc()

    def _link(self, exchange: str, routing_key: str) -> _Link:
        destination = topology.destination(exchange, routing_key)
        if destination not in self._links:
            self._links[destination] = _Link(self._url)
        return self._links[destination]

    async def ping(self) -> bool:
        """Return whether the broker answers."""
        try:
            async with self._link("", "").connected(_CONNECT_SECONDS) as broker:
                return await broker.ping(timeout=_CONNECT_SECONDS)
        except BrokerUnavailable:
            return False

    async def close(self) -> None:
        """Close the connections. All publishes must have ended before."""
        await asyncio.gather(*(link.close() for link in self._links.values()))


def _properties(properties: Properties, headers: dict[str, Any]) -> Basic.Properties:
    return Basic.Properties(
        app_id=APP_ID,
        content_type="application/json",
        correlation_id=properties.correlation_id,
        delivery_mode=DeliveryMode.PERSISTENT,
        headers=headers,
        message_id=properties.message_id or NO_ID,
        message_type=properties.type,
        timestamp=datetime.now(UTC),
    )


def _outcome(error: Exception) -> str:
    if isinstance(error.__cause__, PublishError):
        return "unroutable"
    return "refused" if isinstance(error, PublishRefused) else "failed"

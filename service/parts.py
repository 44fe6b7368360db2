"""What every consumer process is made of, and the ASGI app around it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from uuid_utils.compat import uuid7

from service.consumers.announcing import Announcer
from service.consumers.sharing import Sharing
from service.gateway import Gateway, Timeouts
from service.health import Health
from service.messaging import topology
from service.messaging.consuming import Consumer, Routes
from service.messaging.holding import Hold
from service.messaging.publishing import Publisher
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.heartbeats import Heartbeats
from service.persistence.schema import Schema
from service.settings import Settings


@dataclass(frozen=True)
class Parts:
    """What every consumer process stands on."""

    settings: Settings
    database: Database
    publisher: Publisher
    confirmations: Confirmations
    announcer: Announcer
    gateway: Gateway
    hold: Hold

    @classmethod
    def of(cls, settings: Settings) -> "Parts":
        """Build the parts; nothing connects yet."""
        database = Database(settings.database_url, settings.database_pool)
        publisher = Publisher(settings.amqp_url, settings.partitions)
        confirmations = Confirmations(database)
        seconds = settings.gateway_timeout
        return cls(
            settings=settings,
            database=database,
            publisher=publisher,
            confirmations=confirmations,
            announcer=Announcer(database, publisher, confirmations),
            gateway=Gateway(
                settings.whatsapp_qr_service_url, Timeouts(send=seconds, init=seconds * 0.8, other=seconds / 2)
            ),
            hold=Hold(settings.give_up_after),
        )

    def consumer(self, queue: topology.PartitionedQueue, routes: Routes, *, ordered: bool = True) -> Consumer:
        """Return the consumer of a queue."""
        return Consumer(
            self.settings.amqp_url,
            queue,
            routes,
            publisher=self.publisher,
            hold=self.hold,
            partitions=self.settings.partitions,
            prefetch=self.settings.prefetch,
            ordered=ordered,
        )

    def sharing(self, queue: topology.PartitionedQueue, consumer: Consumer) -> Sharing:
        """Return what shares a queue's partitions with the other processes of the kind."""
        period = self.settings.heartbeat_period
        process_id = str(uuid7())
        heartbeats = Heartbeats(self.database, process_id, queue.name, period)
        return Sharing(consumer.subscriptions, heartbeats, process_id=process_id, queue=queue.name, period=period)

    async def close(self) -> None:
        """Close what connects; the publisher last, because closing the others may still publish."""
        await self.confirmations.close()
        await self.gateway.close()
        await self.publisher.close()
        await self.database.close()


async def _nothing() -> None:
    """Observe nothing: this process shows only what it does itself."""


def consumer_app(
    parts: Parts,
    consumer: Consumer,
    queue: topology.PartitionedQueue,
    stop: Callable[[], Awaitable[None]],
    *,
    start: Callable[[], None] = lambda: None,
    observe: Callable[[], Awaitable[None]] = _nothing,
    alive: Callable[[], bool] = lambda: True,
) -> Starlette:
    """Return the ASGI app of a consumer process: it consumes while its lifespan runs, and tells how it is.

    Args:
        parts: what it stands on.
        consumer: its partitions.
        queue: what it reads.
        stop: finishes what has begun, before the parts are closed.
        start: begins what it does besides.
        observe: refreshes the metrics that are looked up rather than counted.
        alive: whether what it does besides is still done.
    """
    sharing = parts.sharing(queue, consumer)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        parts.confirmations.start()
        consumer.start(sharing.first_share, sharing.check, declares=parts.settings.declare_topology)
        sharing.start()
        start()
        yield
        await asyncio.gather(sharing.stop(), stop())
        await parts.close()

    def living() -> dict[str, bool]:
        return {
            "consumer": consumer.alive,
            "sharing": sharing.alive,
            "confirmations": parts.confirmations.alive,
            "besides": alive(),
        }

    health = Health(living, lambda: consumer.ready, observe, parts.publisher, parts.database, Schema(parts.database))
    return Starlette(routes=health.routes(), lifespan=lifespan)

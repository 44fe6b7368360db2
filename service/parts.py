"""The parts of every consumer process, and the ASGI app around them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from starlette.applications import Starlette
from uuid_utils.compat import uuid7

from service.consumers.announcing import Announcer
from service.consumers.sharing import Sharing
from service.ending import Ending
from service.health import Health
from service.messaging import topology
from service.messaging.consuming import Consumer
from service.messaging.handling import Handler
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable
from service.persistence.database import Database
from service.persistence.dead_letters import DeadLetters
from service.persistence.heartbeats import Heartbeats
from service.persistence.schema import Schema
from service.persistence.unpublished import Part
from service.settings import Settings

if TYPE_CHECKING:
    from service.gateway import Gateway


@dataclass(frozen=True)
class Parts:
    """The parts that every consumer process needs."""

    settings: Settings
    database: Database
    publisher: Publisher
    retry: RetryWhileUnavailable

    @classmethod
    def of(cls, settings: Settings) -> "Parts":
        """Build the parts; nothing connects yet."""
        return cls(
            settings=settings,
            database=Database(settings.database_url, settings.database_pool),
            publisher=Publisher(settings.amqp_url, settings.partitions),
            retry=RetryWhileUnavailable(settings.release_after),
        )

    @cached_property
    def gateway(self) -> "Gateway":
        """The client of the gateway. A process that does not call it does not import it."""
        from service.gateway import Gateway, Timeouts

        seconds = self.settings.gateway_timeout
        timeouts = Timeouts(send=seconds, init=seconds * 0.8, other=seconds / 2)
        return Gateway(self.settings.whatsapp_qr_service_url, timeouts)

    def consumer(self, queue: topology.PartitionedQueue, handler: Handler, announcer: Announcer) -> Consumer:
        """Return the consumer of a queue; before it releases a partition, the announcer publishes the outputs."""
        return Consumer(
            self.settings.amqp_url,
            queue,
            handler,
            keep_dead_letter=DeadLetters(self.database).keep,
            publisher=self.publisher,
            retry=self.retry,
            prefetch=self.settings.prefetch,
            settle=announcer.settle,
        )

    def part(self, consumer: Consumer) -> Part:
        """Return the rows that a process may publish and send, according to its partitions."""
        return Part(self.settings.partitions, consumer.subscriptions.owned, busy=consumer.busy)

    def sharing(self, queue: topology.PartitionedQueue, consumer: Consumer, ending: Ending) -> Sharing:
        """Return the balancing of a queue's partitions with the other processes of the kind."""
        period = self.settings.heartbeat_period
        process_id = str(uuid7())
        heartbeats = Heartbeats(self.database, process_id, queue.name, period, partitions=self.settings.partitions)
        names = {"process_id": process_id, "queue": queue.name}
        return Sharing(consumer.subscriptions, heartbeats, ending, period=period, **names)

    async def close(self) -> None:
        """Close the connections; the publisher before the database, because closing it may still take a while."""
        if "gateway" in vars(self):
            await self.gateway.close()
        await self.publisher.close()
        await self.database.close()


async def _nothing() -> None:
    """Read nothing: this process has only metrics of its own work."""


class Background(Protocol):
    """Work of a process besides consuming."""

    @property
    def alive(self) -> bool:
        """Whether its tasks run."""

    def start(self) -> None:
        """Begin; returns at once."""

    async def stop(self) -> None:
        """Finish the work in progress."""


def consumer_app(
    parts: Parts,
    consumer: Consumer,
    announcer: Announcer,
    queue: topology.PartitionedQueue,
    background: Background | None = None,
    observe: Callable[[], Awaitable[None]] = _nothing,
) -> Starlette:
    """Return the ASGI app of a consumer process: it consumes while its lifespan runs, and reports its health.

    Args:
        parts: its parts.
        consumer: of its partitions.
        announcer: publishes the outputs.
        queue: that it consumes.
        background: its other work.
        observe: refreshes the metrics that are read from the database.
    """
    ending = Ending()
    sharing = parts.sharing(queue, consumer, ending)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        announcer.start()
        consumer.start(sharing.first_share, sharing.check, declares=parts.settings.declare_topology)
        sharing.start()
        if background is not None:
            background.start()
        yield
        stops = [sharing.stop(), consumer.stop(), *([] if background is None else [background.stop()])]
        await asyncio.gather(*stops)
        await announcer.stop()
        await parts.close()

    def living() -> dict[str, bool]:
        return {
            "consumer": consumer.alive,
            "sharing": sharing.alive,
            "announcer": announcer.alive,
            "background": background is None or background.alive,
        }

    health = Health(living, lambda: consumer.ready, observe, parts.publisher, parts.database, Schema(parts.database))
    app = Starlette(routes=health.routes(), lifespan=lifespan)
    app.state.ending = ending
    return app

"""The composition root: the one place that reads settings and names concrete classes. Each process is an ASGI app.

A process imports only what it runs: that is a third of its start.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uuid_utils.compat import uuid7

from service import metrics
from service.consumers.announcing import Announcer
from service.consumers.sharing import Sharing
from service.domain.sending import SendPolicy
from service.errors import ConfigurationError, DatabaseUnavailable
from service.gateway import Gateway, Timeouts
from service.messaging import topology
from service.messaging.consuming import Consumer, Routes
from service.messaging.holding import Hold
from service.messaging.publishing import Publisher
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.heartbeats import Heartbeats
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.upkeep.hosting import Duty


def migrate(settings: Settings) -> None:
    """Bring the database to the present schema.

    Raises:
        ConfigurationError: the database cannot be reached or is damaged.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from service.persistence import migrations

    try:
        migrations.upgrade(settings.database_url)
    except (SQLAlchemyError, OSError) as error:
        raise ConfigurationError(_database_sentence(settings.database_url, error)) from error


def _database_sentence(url: str, error: Exception) -> str:
    where = url.rpartition("@")[2].rpartition("///")[2]  # without the password
    reason = str(getattr(error, "orig", None) or error).strip().rstrip(".")
    if url.startswith("sqlite"):
        remedy = "Restore it from a backup, or start afresh by moving it away"
    elif "does not exist" in reason:
        remedy = "Create it first, for example with createdb"
    else:
        remedy = "Is PostgreSQL running there, and does it let this user in?"
    return f"The database {where} (DATABASE_URL) cannot be used: {reason}. {remedy}"


def require_keys(settings: Settings) -> None:
    """Raise ConfigurationError where the ingress would let other machines in without a key."""
    from service.ingress.keys import is_loopback

    if not settings.api_keys and not is_loopback(settings.http_host):
        raise ConfigurationError(
            f"HTTP_HOST={settings.http_host} lets other machines in, and without API_KEYS they could send and read "
            "messages. Set API_KEYS, for example to the output of openssl rand -hex 24, or leave HTTP_HOST at 127.0.0.1"
        )


def ingress_app(settings: Settings) -> "FastAPI":
    """Return the door in.

    Raises:
        ConfigurationError: it would be open to other machines.
    """
    require_keys(settings)
    from service.ingress.app import build_ingress
    from service.ingress.keys import Keys
    from service.ingress.waiting import Waiters
    from service.messaging.listening import Listener

    keys = Keys(
        api=tuple(key.get_secret_value() for key in settings.api_keys),
        webhook_token=_revealed(settings.webhook_token),
        webhook_secret=_revealed(settings.webhook_secret),
    )
    publisher = Publisher(settings.amqp_url, settings.partitions)
    database = Database(settings.database_url)
    waiters = Waiters(database)
    listener = Listener(settings.amqp_url, settings.partitions, waiters.hear)
    return build_ingress(publisher, database, listener, waiters, keys, version=version("whatsapp-qr"))


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


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
        database = Database(settings.database_url)
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


def session_consumer_app(settings: Settings) -> Starlette:
    """Return the session consumer: the state machine."""
    from service.consumers.session import SessionConsumer
    from service.upkeep.gauges import Gauges
    from service.upkeep.hosting import Upkeep

    parts = Parts.of(settings)
    handlers = SessionConsumer(parts.database, parts.gateway, parts.announcer, strict=settings.chatbots == "strict")
    consumer = parts.consumer(topology.SESSIONS, handlers.routes())
    upkeep = Upkeep(parts.database, _duties(parts), seconds=settings.lease)

    async def stop() -> None:
        await upkeep.stop()
        await consumer.stop()

    gauges = Gauges(parts.database)
    return _consumer_app(parts, consumer, topology.SESSIONS, stop, start=upkeep.start, observe=gauges.refresh)


def _duties(parts: Parts) -> list["Duty"]:
    """Return what one session consumer at a time does for all processes."""
    from service.domain.reconciling import Patience
    from service.messaging.dead_letter_queue import DeadLetterQueue
    from service.upkeep.dead_letters import DeadLetterStore
    from service.upkeep.hosting import Duty
    from service.upkeep.reconciler import Reconciler
    from service.upkeep.sweeper import Sweeper

    settings = parts.settings
    sweeper = Sweeper(parts.database, parts.announcer, timedelta(seconds=settings.sweep_age))
    patience = Patience(passing=settings.reconcile_age, stuck=settings.stuck_after)
    reconciler = Reconciler(
        parts.database, parts.gateway, parts.publisher, patience=patience, pause=settings.reconcile_pause
    )
    store = DeadLetterStore(parts.database, DeadLetterQueue(settings.amqp_url, settings.partitions))
    return [
        Duty("sweeper", settings.sweep_period, sweeper.run),
        Duty("reconciler", settings.reconcile_period, reconciler.run),
        Duty("dead-letter-store", 1.0, store.run),
    ]


def conversation_consumer_app(settings: Settings) -> Starlette:
    """Return the conversation consumer: messages in both directions, receipts."""
    from service.consumers.conversation import ConversationConsumer

    parts = Parts.of(settings)
    handlers = ConversationConsumer(parts.database, parts.announcer, timedelta(seconds=settings.send_expiry))
    consumer = parts.consumer(topology.CONVERSATIONS, handlers.routes())
    return _consumer_app(parts, consumer, topology.CONVERSATIONS, consumer.stop)


def outbound_consumer_app(settings: Settings) -> Starlette:
    """Return the outbound consumer: sending."""
    from service.consumers.outbound import OutboundConsumer

    parts = Parts.of(settings)
    policy = SendPolicy(
        attempts=settings.send_attempts,
        backoff=settings.send_backoff,
        rate=settings.send_rate,
        burst=settings.send_burst,
        jitter=settings.send_jitter,
        expiry=settings.send_expiry,
        call_timeout=settings.gateway_timeout,
    )
    handlers = OutboundConsumer(parts.database, parts.gateway, parts.announcer, parts.hold, policy)
    # The lane is in the database; a job is only its doorbell and must not wait behind the one that drains it.
    consumer = parts.consumer(topology.SENDS, handlers.routes(), ordered=False)

    async def stop() -> None:
        handlers.stop()
        await consumer.stop()
        await handlers.stopped()

    return _consumer_app(parts, consumer, topology.SENDS, stop)


async def _nothing() -> None:
    """Observe nothing: this process shows only what it does itself."""


def _consumer_app(
    parts: Parts,
    consumer: Consumer,
    queue: topology.PartitionedQueue,
    stop: Callable[[], Awaitable[None]],
    *,
    start: Callable[[], None] = lambda: None,
    observe: Callable[[], Awaitable[None]] = _nothing,
) -> Starlette:
    sharing = parts.sharing(queue, consumer)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        parts.confirmations.start()
        consumer.start(sharing.first_share, sharing.check)
        sharing.start()
        start()
        yield
        await asyncio.gather(sharing.stop(), stop())
        await parts.close()

    async def livez(_request: Request) -> JSONResponse:
        return JSONResponse({"success": True})

    async def readyz(_request: Request) -> JSONResponse:
        checks = {"consuming": consumer.ready, "broker": await parts.publisher.ping(), "database": True}
        try:
            await parts.database.ping()
        except DatabaseUnavailable:
            checks["database"] = False
        ready = all(checks.values())
        return JSONResponse({"success": ready, "checks": checks}, 200 if ready else 503)

    async def metrics_(_request: Request) -> Response:
        await observe()
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    routes = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics_)]
    return Starlette(routes=routes, lifespan=lifespan)


def simulator_app(settings: Settings) -> "FastAPI":
    """Return the gateway simulator; its sessions live in `.local/`."""
    from service.simulator.app import simulator_app as build_simulator
    from service.simulator.signing import Credentials

    return build_simulator(
        callback_url=settings.callback_url,
        state_path=Path(".local") / "simulator.db",
        public_url=f"http://127.0.0.1:{settings.simulator_port}",
        credentials=Credentials(_revealed(settings.webhook_token), _revealed(settings.webhook_secret)),
    )

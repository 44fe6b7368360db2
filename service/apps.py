"""The composition root: the only place that reads settings and names concrete classes. Each process is an ASGI app.

A process imports only the modules that it runs: imports are a third of its start time.
"""

import asyncio
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from service.domain.sending import SendPolicy
from service.errors import ConfigurationError, DatabaseUnavailable
from service.messaging import topology
from service.messaging.publishing import Publisher
from service.parts import Parts, consumer_app
from service.persistence.database import Database, Work
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.applications import Starlette

    from service.singletons.running import SingletonJob


def migrate(settings: Settings, *, repartition: bool = False) -> None:
    """Bring the database to the present schema, and store PARTITIONS in it if no number is stored there.

    Args:
        settings: name the database.
        repartition: store PARTITIONS even if another number is stored there.

    Raises:
        ConfigurationError: the database cannot be reached, is damaged or has another number; with `repartition`: a
            consumer is live.
    """
    from service.persistence import deployment, migrations
    from service.persistence.heartbeats import kept_seconds

    migrations.upgrade_or_explain(settings.database_url)
    work = partial(deployment.agree, partitions=settings.partitions)
    if repartition:
        seconds = kept_seconds(settings.heartbeat_period)
        work = partial(deployment.repartition, partitions=settings.partitions, live_seconds=seconds)
    asyncio.run(_transact(settings, work))


async def _transact(settings: Settings, work: Work[None]) -> None:
    database = Database(settings.database_url)
    try:
        await database.transact(work)
    except DatabaseUnavailable as error:
        raise ConfigurationError(error.detail) from error
    finally:
        await database.close()


def require_keys(settings: Settings) -> None:
    """Raise ConfigurationError if the ingress would accept other machines without a key."""
    from service.loopback import is_loopback

    if not settings.api_keys and not is_loopback(settings.http_host):
        raise ConfigurationError(
            f"HTTP_HOST={settings.http_host} lets other machines in, and without API_KEYS they could send and read "
            "messages. Set API_KEYS, for example to the output of openssl rand -hex 24, or leave HTTP_HOST at 127.0.0.1"
        )


def ingress_app(settings: Settings) -> "FastAPI":
    """Return the ingress.

    Raises:
        ConfigurationError: it would be open to other machines.
    """
    require_keys(settings)
    from service.ingress.app import build_ingress
    from service.ingress.keys import Keys
    from service.ingress.streams import Streams
    from service.messaging.listening import Listener
    from service.waiting import Waiters

    keys = Keys(
        api=tuple(key.get_secret_value() for key in settings.api_keys),
        webhook_token=_revealed(settings.webhook_token),
        webhook_secret=_revealed(settings.webhook_secret),
    )
    publisher = Publisher(settings.amqp_url, settings.partitions)
    database = Database(settings.database_url, settings.database_pool)
    waiters, streams = Waiters(database), Streams(database)

    def hear(correlation_id: str, key: str) -> None:
        waiters.hear(correlation_id)
        streams.hear(key)

    listener = Listener(settings.amqp_url, settings.partitions, hear, declares=settings.declare_topology)
    return build_ingress(
        publisher,
        database,
        listener,
        waiters,
        streams,
        keys,
        version=version("whatsapp-qr"),
        internal_port=settings.internal_port,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def session_consumer_app(settings: Settings) -> "Starlette":
    """Return the session consumer: the state machine."""
    from service.consumers.announcing import OF_SESSIONS, Announcer
    from service.consumers.session import SessionConsumer
    from service.singletons.gauges import Gauges
    from service.singletons.running import SingletonJobs

    parts = Parts.of(settings)
    announcer = Announcer(parts.database, parts.publisher, parts.retry, OF_SESSIONS, lambda: parts.part(consumer))
    handler = SessionConsumer(parts.database, parts.gateway, announcer, strict=settings.chatbots == "strict")
    consumer = parts.consumer(topology.SESSIONS, handler, announcer)
    singletons = SingletonJobs(parts.database, _singleton_jobs(parts), seconds=settings.lease)
    return consumer_app(
        parts, consumer, announcer, topology.SESSIONS, singletons, observe=Gauges(parts.database).refresh
    )


def _singleton_jobs(parts: Parts) -> list["SingletonJob"]:
    """Return the jobs that one session consumer at a time runs for all processes."""
    from service.domain.reconciling import Patience
    from service.messaging.dead_letter_queue import DeadLetterQueue
    from service.persistence.dead_letters import DeadLetters
    from service.singletons.reconciler import Reconciler
    from service.singletons.running import SingletonJob
    from service.singletons.sweeper import Sweeper

    settings = parts.settings
    sweeper = Sweeper(parts.database, timedelta(seconds=settings.sweep_age))
    patience = Patience(passing=settings.reconcile_age, stuck=settings.stuck_after)
    reconciler = Reconciler(
        parts.database, parts.gateway, parts.publisher, patience=patience, pause=settings.reconcile_pause
    )
    queue = DeadLetterQueue(settings.amqp_url, settings.partitions, declares=settings.declare_topology)
    return [
        SingletonJob("sweeper", settings.sweep_period, sweeper.run),
        SingletonJob("reconciler", settings.reconcile_period, reconciler.run),
        SingletonJob("dead-letter-store", 1.0, partial(queue.consume, DeadLetters(parts.database).keep)),
    ]


def conversation_consumer_app(settings: Settings) -> "Starlette":
    """Return the conversation consumer: messages in both directions, receipts."""
    from service.consumers.announcing import OF_CONVERSATIONS, Announcer
    from service.consumers.conversation import ConversationConsumer

    parts = Parts.of(settings)
    announcer = Announcer(parts.database, parts.publisher, parts.retry, OF_CONVERSATIONS, lambda: parts.part(consumer))
    handler = ConversationConsumer(parts.database, announcer, timedelta(seconds=settings.send_expiry))
    consumer = parts.consumer(topology.CONVERSATIONS, handler, announcer)
    return consumer_app(parts, consumer, announcer, topology.CONVERSATIONS)


def outbound_consumer_app(settings: Settings) -> "Starlette":
    """Return the outbound consumer: sending."""
    from service.consumers.announcing import OF_SENDING, Announcer
    from service.consumers.outbound import OutboundConsumer, Sender

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
    announcer = Announcer(parts.database, parts.publisher, parts.retry, OF_SENDING, lambda: parts.part(consumer))
    sender = Sender(parts.database, parts.gateway, parts.retry, announcer, policy, lambda: parts.part(consumer))
    consumer = parts.consumer(topology.SENDS, OutboundConsumer(sender), announcer)
    return consumer_app(parts, consumer, announcer, topology.SENDS, sender)


def simulator_app(settings: Settings) -> "FastAPI":
    """Return the gateway simulator; its sessions are stored in `.local/`."""
    from service.loopback import is_loopback
    from service.simulator.app import simulator_app as build_simulator
    from service.simulator.signing import Credentials

    return build_simulator(
        callback_url=settings.callback_url,
        state_path=Path(".local") / "simulator.db",
        public_url=f"http://127.0.0.1:{settings.simulator_port}",
        credentials=Credentials(_revealed(settings.webhook_token), _revealed(settings.webhook_secret)),
        only_here=is_loopback(settings.simulator_host),
    )

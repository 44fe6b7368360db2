"""Settings and errors that all connections to RabbitMQ share: heartbeats, lost connections, closing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from traceback import clear_frames
from typing import Any, TypeVar

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed, ProbableAuthenticationError
from aiormq.exceptions import ChannelAccessRefused, InvalidFrameError
from faststream.rabbit import RabbitBroker

from service.errors import BrokerUnavailable
from service.tasks import let_end, raise_if_cancelled

log = structlog.get_logger()
T = TypeVar("T")

HEARTBEAT = 5
# aio-pika reports a connection that is being replaced as RuntimeError. If a connection ends during a publish, the end
# of its frames may surface as StopAsyncIteration.
BROKER_TROUBLE = (AMQPError, OSError, RuntimeError, TimeoutError, StopAsyncIteration)
# Closing a dead connection ends by itself after more than a heartbeat; if it is interrupted, the connection reconnects.
_CLOSE_SECONDS = 4.0 * HEARTBEAT


def unavailable(error: BaseException) -> BrokerUnavailable:
    """Return the error of the broker, with the remedy if waiting does not help."""
    match error:
        case ChannelNotFoundEntity():
            why = f"RabbitMQ lacks a queue or exchange ({error}): run whatsapp-qr topology apply"
        case ChannelPreconditionFailed():
            why = f"RabbitMQ has a queue or exchange with other properties ({error}): see whatsapp-qr topology check"
        case ChannelAccessRefused():
            why = f"RabbitMQ does not permit this user the operation ({error}): see whatsapp-qr topology permissions"
        case ProbableAuthenticationError():
            why = "RabbitMQ refuses the user or the password of AMQP_URL"
        case InvalidFrameError():  # the client library expects no refusal at that point
            why = "RabbitMQ refuses the user of AMQP_URL access to its virtual host, or the host does not exist"
        case _:
            return BrokerUnavailable(f"RabbitMQ is not reachable: {type(error).__name__}")
    return BrokerUnavailable(why, refused=True)


async def reach(operation: Callable[[], Awaitable[T]], seconds: float = 20.0) -> T:
    """Run an operation on the broker, for at most so many seconds.

    Raises:
        BrokerUnavailable: it did not succeed.
    """
    try:
        async with asyncio.timeout(seconds):
            return await operation()
    except (*BROKER_TROUBLE, asyncio.CancelledError) as error:
        raise_if_cancelled(error)
        raise unavailable(error) from error


def with_heartbeat(url: str) -> str:
    """Return the broker's URL with a heartbeat of 5 s, so that a dead peer is detected within 15 s."""
    return url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={HEARTBEAT}"


@contextmanager
def _opening() -> Iterator[None]:
    """Release a connection that could not be opened at once.

    Its future, its error and the frames of that error reference each other until the garbage collector runs. The
    connection closes itself when it is collected: in the thread that collects, which may have no event loop to close
    it.
    """
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise


async def connect(url: str, seconds: float = 5.0) -> AbstractConnection:
    """Open a connection that does not reconnect when it is lost.

    Raises:
        aio_pika.exceptions.AMQPException, OSError, TimeoutError: the broker is unavailable, or refuses the connection.
    """
    with _opening():
        return await aio_pika.connect(with_heartbeat(url), timeout=seconds)


def new_broker(url: str, *, timeout: float = 3.0, **more: Any) -> RabbitBroker:
    """Return a broker that is not connected yet; its connection is made again when it is lost."""
    return RabbitBroker(
        with_heartbeat(url),
        timeout=timeout,
        reconnect_interval=0.5,
        graceful_timeout=None,  # the caller that stops it has already waited for the messages in progress
        apply_types=False,
        logger=logging.getLogger("service.faststream"),
        **more,
    )


async def open_broker(broker: RabbitBroker) -> None:
    """Connect a broker: from then on it reconnects whenever the connection is lost, until it is closed.

    A caller that is cancelled meanwhile waits until the attempt has succeeded or failed: 3 s or some heartbeats. If the
    first attempt were interrupted, the connection would go on unattended, and the process could not end.

    Raises:
        aio_pika.exceptions.AMQPException, OSError, TimeoutError: the broker is unavailable, or refuses the connection.
    """
    # Not in the present context: a connection outlives the message that is being handled.
    await let_end(asyncio.create_task(_connect(broker), context=Context()))


async def _connect(broker: RabbitBroker) -> None:
    with _opening():
        await broker.connect()


async def close_all(*closes: Callable[[], Awaitable[Any]]) -> None:
    """Close one after another. One that cannot be closed because its connection is dead does not prevent the next."""
    for close in closes:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await close()
        except (*BROKER_TROUBLE, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            log.info("connection_lost_while_closing", error=repr(error))


async def close_broker(broker: RabbitBroker) -> None:
    """Close a broker and its connection in any state; a connection that is not closed reconnects."""
    connection = broker._connection  # noqa: SLF001  # no public attribute, and the broker drops it when it stops
    await close_all(broker.stop, *(() if connection is None else (connection.close,)))

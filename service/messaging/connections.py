"""What every connection to RabbitMQ has in common: heartbeats, the errors of a lost one, and how it is closed."""

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
# aio-pika reports a connection that is being replaced as RuntimeError; where one ends in the middle of a publish, the
# end of its frames may come through as StopAsyncIteration.
BROKER_TROUBLE = (AMQPError, OSError, RuntimeError, TimeoutError, StopAsyncIteration)
# Closing gives up on a dead link by itself, after more than a heartbeat; cut short, the connection would come back.
_CLOSE_SECONDS = 4.0 * HEARTBEAT


def unavailable(error: BaseException) -> BrokerUnavailable:
    """Return what the trouble with the broker is, and what ends it where waiting does not."""
    match error:
        case ChannelNotFoundEntity():
            why = f"RabbitMQ lacks what is needed here ({error}): run whatsapp-qr topology apply"
        case ChannelPreconditionFailed():
            why = f"RabbitMQ has something else under a name of ours ({error}): see whatsapp-qr topology check"
        case ChannelAccessRefused():
            why = f"RabbitMQ does not let this user do that ({error}): see whatsapp-qr topology permissions"
        case ProbableAuthenticationError():
            why = "RabbitMQ refuses the user or the password of AMQP_URL"
        case InvalidFrameError():  # the client library expects no refusal at that point
            why = "RabbitMQ does not let the user of AMQP_URL into its virtual host, or there is none"
        case _:
            return BrokerUnavailable(f"RabbitMQ is not reachable: {type(error).__name__}")
    return BrokerUnavailable(why, refused=True)


async def reach(operation: Callable[[], Awaitable[T]], seconds: float = 20.0) -> T:
    """Do something with the broker, for at most so many seconds.

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
    """Return the broker's URL with a heartbeat of 5 s, so that a dead peer is noticed within 15 s."""
    return url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={HEARTBEAT}"


@contextmanager
def _opening() -> Iterator[None]:
    """Let go of a connection at once that could not be opened.

    Its future, its error and the frames of that error hold each other until the garbage collector comes, and the
    connection closes itself when it goes: in whichever thread collects, where no loop is there to close it.
    """
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise


async def connect(url: str, seconds: float = 5.0) -> AbstractConnection:
    """Open a connection that is not made again when it is lost.

    Raises:
        aio_pika.exceptions.AMQPException, OSError, TimeoutError: the broker is away, or does not let us in.
    """
    with _opening():
        return await aio_pika.connect(with_heartbeat(url), timeout=seconds)


def new_broker(url: str, *, timeout: float = 3.0, **more: Any) -> RabbitBroker:
    """Return a broker that nothing has connected yet; its connection is made again when it is lost."""
    return RabbitBroker(
        with_heartbeat(url),
        timeout=timeout,
        reconnect_interval=0.5,
        graceful_timeout=None,  # whoever stops it has waited before for what has begun
        apply_types=False,
        logger=logging.getLogger("service.faststream"),
        **more,
    )


async def open_broker(broker: RabbitBroker) -> None:
    """Connect a broker: it then makes its connection again whenever that is lost, until it is closed.

    Whoever is cancelled meanwhile waits until it has succeeded or failed, 3 s or some heartbeats. Cancelled in the
    middle of its first attempt the connection would go on behind our back, and not even let the process end.

    Raises:
        aio_pika.exceptions.AMQPException, OSError, TimeoutError: the broker is away, or does not let us in.
    """
    # Not in the present context: a connection outlives the message that is being handled.
    await let_end(asyncio.create_task(_connect(broker), context=Context()))


async def _connect(broker: RabbitBroker) -> None:
    with _opening():
        await broker.connect()


async def close_all(*closes: Callable[[], Awaitable[Any]]) -> None:
    """Close one after another. One that cannot be closed, its link being dead, does not keep the next from it."""
    for close in closes:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await close()
        except (*BROKER_TROUBLE, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            log.info("connection_lost_while_closing", error=repr(error))


async def close_broker(broker: RabbitBroker) -> None:
    """Close a broker and its connection, whatever state they are in; a connection that is not closed comes back."""
    connection = broker._connection  # noqa: SLF001  # nothing public, and the broker forgets it
    await close_all(broker.stop, *(() if connection is None else (connection.close,)))

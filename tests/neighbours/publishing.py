"""Puts in what harms, from a process of its own: what that costs does not delay those who measure."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError

from tests.system import WARM
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import COMMANDS

_AT_ONCE = 100
PADDING = b"@"
"""What `padding` takes the place of in a body."""


@dataclass(frozen=True)
class Put:
    """A `message.send` as it is put in."""

    message_id: str
    body: bytes
    routing_key: str
    headers: dict[str, Any] = field(default_factory=dict)
    padding: int = 0


class Accepted(NamedTuple):
    """What became of it."""

    began: float
    """By `time.perf_counter`, which is one clock for all processes of a Linux machine."""
    ids: list[str]
    """What the broker has confirmed."""


def a_send(chatbot_id: UUID, to: str, message_id: str, routing_key: str, **headers: Any) -> Put:
    """Return a valid `message.send`."""
    body = SendMessage(chatbot_id=chatbot_id, to=to, message=f"message {message_id}").wire()
    return Put(message_id, body, routing_key, headers)


async def put_in(url: str, puts: Sequence[Put], *, pause: float = 0.0) -> Accepted:
    """Put commands in: as fast as they are confirmed, the last one last; or with pauses, one after another."""
    reader, writer = WARM.Pipe(duplex=False)
    process = WARM.Process(target=_be_a_client, args=(url, list(puts), pause, writer), daemon=True)
    process.start()
    writer.close()
    try:
        accepted: Accepted = await asyncio.to_thread(reader.recv)
    finally:
        reader.close()
        await asyncio.to_thread(process.join)
    return accepted


@asynccontextmanager
async def held_back(url: str, puts: Sequence[Put]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Put commands of one routing key into a queue that keeps them; give what lets the broker move on all at once.

    So no client is busy while they are on their way: it would take the time of what is measured.
    """
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        onward = {"x-dead-letter-exchange": COMMANDS, "x-dead-letter-routing-key": puts[0].routing_key}
        queue = await channel.declare_queue(exclusive=True, arguments=onward)
        await asyncio.gather(*(channel.default_exchange.publish(_message(put), queue.name) for put in puts))
        taken: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(taken.put)
        held = [await taken.get() for _ in puts]
        yield partial(held[-1].nack, multiple=True, requeue=False)


def _be_a_client(url: str, puts: list[Put], pause: float, writer: Connection) -> None:
    writer.send(asyncio.run(_put(url, puts, pause)))


async def _put(url: str, puts: list[Put], pause: float) -> Accepted:
    async with await aio_pika.connect(url) as connection:

        async def opened() -> AbstractExchange:
            return await (await connection.channel()).get_exchange(COMMANDS, ensure=False)

        began = time.perf_counter()
        accepted = await (_slowly(opened, puts, pause) if pause else _quickly(await opened(), puts))
        return Accepted(began, accepted)


async def _quickly(exchange: AbstractExchange, puts: list[Put]) -> list[str]:
    places = asyncio.Semaphore(_AT_ONCE)

    async def publish(put: Put) -> None:
        try:
            await exchange.publish(_message(put), put.routing_key)
        finally:
            places.release()

    async with asyncio.TaskGroup() as tasks:
        for put in puts[:-1]:
            await places.acquire()
            tasks.create_task(publish(put))
    await exchange.publish(_message(puts[-1]), puts[-1].routing_key)
    return [put.message_id for put in puts]


async def _slowly(opened: Callable[[], Any], puts: list[Put], pause: float) -> list[str]:
    accepted: list[str] = []
    exchange = await opened()
    for put in puts:
        try:
            await exchange.publish(_message(put), put.routing_key)
            accepted.append(put.message_id)
        except AMQPError:  # larger than the broker allows: it closes the channel
            exchange = await opened()
        await asyncio.sleep(pause)
    return accepted


def _message(put: Put) -> aio_pika.Message:
    return aio_pika.Message(
        put.body.replace(PADDING, b"x" * put.padding) if put.padding else put.body,
        message_id=put.message_id,
        type=SendMessage.name,
        delivery_mode=2,
        content_type="application/json",
        headers=dict(put.headers),
    )

"""How the outside world gives something to the service: again and again, under the same id, until it is accepted."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aio_pika
import httpx
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError

from service.messaging.connections import connect

_PAUSE = 0.2
_CONFIRM_SECONDS = 6.0


async def until_accepted(call: Callable[[], Awaitable[httpx.Response]], *statuses: int) -> tuple[httpx.Response, int]:
    """Repeat a call until it is answered with one of these; return the answer and how often it was repeated.

    What passes is tried again: no answer, 503, a session that is not connected at this moment.
    """
    repeats = 0
    while True:
        try:
            answer = await call()
        except httpx.TransportError:
            answer = None
        if answer is not None:
            if answer.status_code in statuses:
                return answer, repeats
            passes = answer.status_code == 503 or "not_connected" in answer.text
            assert passes, f"{answer.request.url}: {answer.status_code} {answer.text}"
        repeats += 1
        await asyncio.sleep(_PAUSE)


class AmqpPort:
    """Another team's AMQP client: publishes until the broker has confirmed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connecting = asyncio.Lock()

    async def put(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        message_id: str | None,
        kind: str | None,
        headers: Mapping[str, Any] | None = None,
    ) -> int:
        """Publish until it is confirmed; return how often it was repeated."""
        message = aio_pika.Message(
            body,
            message_id=message_id,
            type=kind,
            delivery_mode=2,
            content_type="application/json",
            headers=dict(headers or {}),
        )
        repeats = 0
        while True:
            channel = None
            try:
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    channel = await self._open()
                    await (await channel.get_exchange(exchange, ensure=False)).publish(message, routing_key)
            except (AMQPError, OSError, RuntimeError, TimeoutError, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                await self._forget(channel)
            else:
                return repeats
            repeats += 1
            await asyncio.sleep(_PAUSE)

    async def _open(self) -> AbstractChannel:
        async with self._connecting:
            if self._channel is None:
                self._connection = await connect(self._url, 3)
                self._channel = await self._connection.channel(on_return_raises=True)
            return self._channel

    async def _forget(self, channel: AbstractChannel | None) -> None:
        if channel is None or channel is not self._channel:
            return
        connection, self._connection, self._channel = self._connection, None, None
        await _closed(connection)

    async def close(self) -> None:
        """Close the connection."""
        await _closed(self._connection)


async def _closed(connection: AbstractConnection | None) -> None:
    if connection is None:
        return
    try:
        async with asyncio.timeout(_CONFIRM_SECONDS):
            await connection.close()
    except (AMQPError, OSError, RuntimeError, TimeoutError):
        return  # it was dead: that is why it is closed

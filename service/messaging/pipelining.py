"""Publishes over one channel so that all publishes of one turn of the event loop share one write.

The client library writes each message separately, and a write costs more than the rest of a publish, here and in the
broker. It has no function for this, so this module uses internals of its channel: confirmations, tags, write queue.
"""

import asyncio
from typing import Any

from aiormq.abc import AbstractChannel, ChannelFrame, FrameType
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader


class Pipeline:
    """The publishes of one channel. Nothing else may publish over it."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel: Any = channel
        self._waiting: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None

    async def publish(
        self, body: bytes, exchange: str, routing_key: str, properties: Basic.Properties, *, mandatory: bool
    ) -> None:
        """Publish one message; returns once it is confirmed.

        Raises:
            aiormq.exceptions.PublishError: it is mandatory and no queue is bound for it.
            aiormq.exceptions.DeliveryError: a queue refused it.
            aiormq.exceptions.AMQPError, asyncio.CancelledError: the channel was closed; it may have arrived.
        """
        channel, message_id = self.channel, str(properties.message_id)
        if channel.is_closed:
            raise ChannelInvalidStateError(f"{channel} is closed")
        publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
        parts = [body[at : at + channel.max_content_size] for at in range(0, len(body), channel.max_content_size)]
        header = ContentHeader(properties=properties, body_size=len(body))
        frames: list[FrameType | ContentBody] = [publish, header, *map(ContentBody, parts)]
        payload = ChannelFrame.marshall(channel.number, frames).payload
        # From here to the write nothing may fail: the broker counts the messages too.
        channel.delivery_tag += 1
        tag, confirmation = channel.delivery_tag, channel.create_future()
        channel.confirmations[tag] = confirmation
        channel.message_id_delivery_tag[message_id] = tag  # needed to find a message that is returned
        self._waiting.append(payload)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        try:
            await confirmation
        finally:
            if channel.message_id_delivery_tag.get(message_id) == tag:
                del channel.message_id_delivery_tag[message_id]

    def close(self) -> None:
        """Write nothing any more: the connection is being replaced, and may never accept the waiting payloads."""
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self) -> None:
        try:
            while self._waiting and not self.channel.is_closed:
                payload = b"".join(self._waiting)
                self._waiting.clear()
                await self.channel.write_queue.put(ChannelFrame(payload, should_close=False))
        finally:
            self._writing = None

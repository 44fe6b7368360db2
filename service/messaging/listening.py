"""Receives the events that callers of one ingress process wait for or follow."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage
from uuid_utils.compat import uuid7

from service.domain.sending import backoff
from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.connections import close_broker, new_broker, open_broker, reach
from service.messaging.partitions import undecoded
from service.tasks import end, let_end
from whatsapp_qr_contracts.message import EVENTS

log = structlog.get_logger()

Hear = Callable[[str, str], None]
"""Receives the correlation id and the partition key of each event; an empty text if the event has none."""

_KEYS = ("session.#", "chatbot.#", "command.#", "message.cancelled")


class Listener:
    """An exclusive queue of session, chatbot and command events.

    Its events are only wake-ups: if one is lost, the waiting caller reads the state some seconds later.
    """

    def __init__(self, url: str, partitions: int, hear: Hear, *, declares: bool = True) -> None:
        self._url = url
        self._partitions = partitions
        self._hear = hear
        self._declares = declares
        self._broker: RabbitBroker | None = None
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen as soon as the broker is available; returns at once."""
        self._starting = asyncio.create_task(self._keep_trying())

    async def _keep_trying(self) -> None:
        failures, told = 0, ""
        while self._broker is None:
            try:
                self._broker = await reach(self._listen)
            except BrokerUnavailable as error:
                failures += 1
                if told != (told := error.detail):
                    log.warning("not_listening_yet", reason=told)
                await asyncio.sleep(backoff(failures))

    async def _listen(self) -> RabbitBroker:
        if self._declares:
            await topology.declare(self._url, self._partitions)
        queue = topology.ingress_queue(uuid7().hex)
        broker = new_broker(self._url, decoder=undecoded)
        channel = Channel(prefetch_count=1000)
        broker.subscriber(queue, channel=channel, ack_policy=AckPolicy.ACK_FIRST, no_reply=True)(
            partial(_tell, self._hear)
        )
        try:
            await open_broker(broker)
            await broker.start()
            declared = await broker.declare_queue(queue)
            for key in _KEYS:
                await declared.bind(EVENTS, key)
        except BaseException:
            await let_end(asyncio.create_task(close_broker(broker)))
            raise
        return broker

    async def stop(self) -> None:
        """Stop listening."""
        if self._starting is not None:
            await end([self._starting])
        if self._broker is not None:
            await close_broker(self._broker)


async def _tell(hear: Hear, delivery: RabbitMessage) -> None:
    hear(delivery.raw_message.correlation_id or "", str(delivery.headers.get("partition-key", "")))

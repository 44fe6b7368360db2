"""Consumes the dead letters' queue. Each is acknowledged once it is stored: none is lost; one may come twice."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from service.domain.dead_letters import DeadLetter
from service.messaging import topology
from service.messaging.connections import reach
from service.messaging.dead_letters import read_dead_letter
from service.messaging.inbox import Inbox
from service.messaging.partitions import Partition
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.tasks import end, let_end

log = structlog.get_logger()

Keep = Callable[[DeadLetter], Awaitable[None]]
"""Stores a dead letter; raises Unavailable if that is not possible at present."""

# Bodies may be large.
_PREFETCH = 20
_GRACE_SECONDS = 10.0
_SUBSCRIBE_SECONDS = 30.0


class DeadLetterQueue:
    """The queue `whatsapp-qr.dead-letters`."""

    def __init__(self, url: str, partitions: int, *, declares: bool = True) -> None:
        self._url = url
        self._count = partitions
        self._declares = declares

    async def consume(self, keep: Keep) -> None:
        """Store incoming dead letters until cancelled; then finish those in progress and release the queue."""
        retry, inbox = RetryWhileUnavailable(), Inbox()
        queue = topology.declared_queue(topology.DEAD_LETTERS)
        reader = Partition(self._url, queue, inbox.add, asyncio.Event(), prefetch=_PREFETCH)
        working: asyncio.Task[None] | None = None
        try:
            await retry(partial(reach, partial(self._subscribe, reader), _SUBSCRIBE_SECONDS))
            working = asyncio.create_task(_work(inbox, retry, keep))
            await asyncio.wait([working])
            working.result()
        finally:
            retry.stop()
            # If a second cancellation interrupted it, a subscription would remain that acknowledges nothing.
            await let_end(asyncio.create_task(_finish(reader, working)))

    async def _subscribe(self, reader: Partition) -> None:
        if self._declares:
            await topology.declare(self._url, self._count)
        await reader.start()


async def _finish(reader: Partition, working: asyncio.Task[None] | None) -> None:
    await reader.release(_GRACE_SECONDS)
    if working is not None:
        await end([working])


async def _work(inbox: Inbox, retry: RetryWhileUnavailable, keep: Keep) -> None:
    while True:
        for delivery in await inbox.take(_PREFETCH):
            try:
                await retry(partial(keep, read_dead_letter(delivery.raw)))
                await delivery.acknowledge()
            except Stopping:
                delivery.gate.closed = True
            finally:
                delivery.gate.leave(delivery)

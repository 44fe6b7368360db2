"""Reads the dead letters' queue. Each is acknowledged once it is kept, so none is lost; one may come twice."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from faststream.rabbit import RabbitMessage

from service.domain.dead_letters import DeadLetter
from service.messaging import topology
from service.messaging.connections import BROKER_TROUBLE, unavailable, with_heartbeat
from service.messaging.dead_letters import read_dead_letter
from service.messaging.holding import Hold, Stopping
from service.messaging.partitions import Partition
from service.tasks import is_cancelled

log = structlog.get_logger()

Keep = Callable[[DeadLetter], Awaitable[None]]
"""Keeps a dead letter for good; raises Unavailable where that is not possible at present."""

# Bodies may be large.
_PREFETCH = 20
_GRACE_SECONDS = 10.0
_SUBSCRIBE_SECONDS = 30.0


class DeadLetterQueue:
    """The queue `whatsapp-qr.dead-letters`.

    Args:
        url: the broker.
        partitions: partitions of each partitioned queue.
        declares: whether it declares all exchanges and queues first; else they have to be there.
    """

    def __init__(self, url: str, partitions: int, *, declares: bool = True) -> None:
        self._url = with_heartbeat(url)
        self._count = partitions
        self._declares = declares

    async def consume(self, keep: Keep) -> None:
        """Keep what comes until cancelled; then finish what has begun and give the queue up."""
        hold = Hold()
        queue = topology.dead_letter_queue()
        reader = Partition(self._url, queue, partial(_live, hold, keep), prefetch=_PREFETCH, ordered=False)
        try:
            await hold(partial(self._subscribe, reader))
            await asyncio.Event().wait()
        finally:
            hold.stop()
            await reader.give_up(_GRACE_SECONDS)

    async def _subscribe(self, reader: Partition) -> None:
        try:
            async with asyncio.timeout(_SUBSCRIBE_SECONDS):
                if self._declares:
                    await topology.declare(self._url, self._count)
                await reader.start()
        except (*BROKER_TROUBLE, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            raise unavailable(error) from error


async def _live(hold: Hold, keep: Keep, delivery: RabbitMessage) -> bool:
    try:
        await hold(partial(keep, read_dead_letter(delivery)))
    except Stopping:
        return False
    return True

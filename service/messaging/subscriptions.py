"""The subscriptions of one process to the partitions of a queue: made, handed over, given up, made again.

One task does it all, one step after another, so that no two changes meet.

Giving up because something is away keeps the order. What is held is left: its `Hold` raises Stopping at its next pause,
so it does no more work; it stays unacknowledged, and the gate of its partition closes with it, so that nothing
behind it begins. What is in the middle of an attempt has the grace to end it. Only then is the channel closed, and
everything unacknowledged goes back to the head of the queue in the old order, where the next process finds it. An
attempt that outlives the grace may still commit: once, because handlers are idempotent and rows are locked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
from uuid_utils.compat import uuid7

from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.connections import reach
from service.messaging.envelope import Properties
from service.messaging.partitions import Partition
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.tasks import end, raise_if_cancelled
from whatsapp_qr_contracts.message import JOBS

log = structlog.get_logger()

Share = Callable[[], Awaitable[Sequence[int]]]
"""Says which partitions to subscribe to before the others."""
Check = Callable[[], Awaitable[None]]
"""Raises Unavailable while a part that the handlers need is away."""

GRACE_SECONDS = 25.0
_OTHERS_FIRST_SECONDS = 0.5
_QUIET_SECONDS = 0.1
_STAND_BY_SECONDS = 1.0
_FIRST_LONGEST_PAUSE = 0.8
_LONGEST_PAUSE = 10.0
# The broker closes a channel whose messages are unacknowledged for 30 min: `contradictions` counts with this.
LONGEST_PATIENCE = 480.0
_END_SECONDS = 10.0


class Subscriptions:
    """All partitions of one queue in this process.

    Args:
        changed: is set when this process becomes active on a partition, or ceases to be.
    """

    def __init__(
        self,
        url: str,
        partitions: Sequence[Partition],
        publisher: Publisher,
        retry: RetryWhileUnavailable,
        changed: asyncio.Event,
    ) -> None:
        self.partitions, self.changed = partitions, changed
        self._url = url
        self._publisher = publisher
        self._retry = retry
        self._patience = retry.patience
        self._orders: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._running: list[asyncio.Task[None]] = []
        self._handing_over: Partition | None = None
        self._withdrawing = False
        self._subscribed_at = float("-inf")

    def start(self, share: Share, check: Check, *, declares: bool = True) -> None:
        """Subscribe as soon as the broker is there, and again after each give-up; returns at once."""
        self._declares = declares
        self._share = share
        self._check = check
        self._orders.put_nowait(partial(self._subscribe, longest=_FIRST_LONGEST_PAUSE))
        self._running = [asyncio.create_task(self._obey()), asyncio.create_task(self._watch())]

    async def _obey(self) -> None:
        while not self._retry.stopped:
            order = await self._orders.get()
            try:
                await order()
            except Stopping:
                continue
            except (Exception, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                log.exception("subscribing_failed", queue=self.partitions[0].name)
                self._orders.put_nowait(self._subscribe_later)

    async def _subscribe_later(self) -> None:
        await self._retry.pause(_FIRST_LONGEST_PAUSE)
        await self._subscribe(longest=_LONGEST_PAUSE)

    async def _subscribe(self, *, longest: float) -> None:
        """Subscribe to every partition that is not subscribed to."""
        await self._retry(partial(reach, self._prepare), longest=longest)
        own = await self._retry(self._share, longest=longest)
        await self._subscribe_to(own, longest)
        if others := [number for number in range(len(self.partitions)) if number not in own]:
            await self._retry.pause(_OTHERS_FIRST_SECONDS)
            await self._subscribe_to(others, longest)
        self._subscribed_at = asyncio.get_running_loop().time()
        self.changed.set()
        log.info("consuming", queue=self.partitions[0].name, partitions=len(self.partitions), first=list(own))

    async def _prepare(self) -> None:
        if self._declares:
            await topology.declare(self._url, self._publisher.partitions)
        else:
            await topology.require(self._url, *(partition.name for partition in self.partitions))

    async def _subscribe_to(self, numbers: Sequence[int], longest: float) -> None:
        new = [number for number in numbers if not self.partitions[number].started]
        for number in new:
            if self._retry.stopped:
                raise Stopping
            await self._retry(partial(reach, self.partitions[number].start), longest=longest)
        await self._retry.pause(_QUIET_SECONDS if new else 0)
        for number in new:
            if not self.partitions[number].active:  # nothing waited for it: a backlog needs no probe behind it
                await self._probe_if_possible(number)

    @property
    def alive(self) -> bool:
        """Whether the task that subscribes is there, or the process ends."""
        return self._retry.stopped or (bool(self._running) and not any(task.done() for task in self._running))

    @property
    def ready(self) -> bool:
        """Whether every partition is subscribed, if only as a stand-by, or just being handed over."""
        return all(partition.subscribed or partition is self._handing_over for partition in self.partitions)

    @property
    def consuming(self) -> bool:
        """Whether this process takes part: it has not given everything up."""
        return any(partition.subscribed for partition in self.partitions)

    @property
    def active(self) -> list[int]:
        """Partitions on which this process is known to be active, in the order in which they came."""
        numbers = [number for number, partition in enumerate(self.partitions) if partition.active]
        return sorted(numbers, key=lambda number: self.partitions[number].active_since)

    @property
    def owned(self) -> dict[int, float]:
        """Partitions whose rows this process tells, without the entry, and since when."""
        numbered = enumerate(self.partitions[: self._publisher.partitions])
        return {number: partition.active_since for number, partition in numbered if partition.owned}

    async def probe(self, number: int) -> None:
        """Let whoever is active on a partition learn that he is.

        Raises:
            BrokerUnavailable: he may not learn it.
        """
        message_id = str(uuid7())
        headers = {"partition-key": message_id}  # a lane of its own
        await self._publisher.publish_raw(
            b"{}",
            exchange=JOBS,
            routing_key=self.partitions[number].name,
            properties=Properties(message_id, message_id, topology.PROBE, headers),
        )

    async def _probe_if_possible(self, number: int) -> None:
        """Let a quiet partition tell its owner at once; without the broker the next delivery does."""
        try:
            await self.probe(number)
        except BrokerUnavailable as error:
            log.info("probe_not_sent", queue=self.partitions[number].name, reason=error.detail)

    def hand_over(self, number: int) -> None:
        """Give up one partition, soon, and stand by for it behind all others."""
        self._orders.put_nowait(partial(self._hand_over, number))

    async def _hand_over(self, number: int) -> None:
        partition = self.partitions[number]
        if not partition.active or self._retry.waiting:
            return
        self._handing_over = partition
        try:
            await partition.release(GRACE_SECONDS)
            self.changed.set()
            log.info("handed_over", queue=partition.name)
            await self._probe_if_possible(number)
            await self._retry.pause(_STAND_BY_SECONDS)
            await self._subscribe_to([number], _FIRST_LONGEST_PAUSE)
        finally:
            self._handing_over = None

    async def _watch(self) -> None:
        """Give up all partitions, soon, each time that something has been held for too long."""
        while True:
            await self._retry.too_long.wait()
            self._retry.too_long.clear()
            if not self._withdrawing and any(partition.started for partition in self.partitions):
                self._withdrawing = True
                self._orders.put_nowait(self._withdraw)

    async def _withdraw(self) -> None:
        """Give up all partitions, wait until all parts are there again, subscribe again."""
        self._withdrawing = False
        if not self._retry.waiting:
            return
        log.warning("releasing_partitions", queue=self.partitions[0].name, held=self._retry.waiting)
        self._be_more_patient()
        self._retry.leave()
        try:
            await self._release(GRACE_SECONDS)
        finally:
            self.changed.set()
            self._retry.resume()
        await self._retry(self._check)
        await self._subscribe(longest=_LONGEST_PAUSE)

    def _be_more_patient(self) -> None:
        """Hold longer after a give-up that changed nothing: each counts as a delivery of all that was prefetched."""
        lasted = asyncio.get_running_loop().time() - self._subscribed_at
        fruitless = lasted < 2 * self._retry.patience
        longest = max(LONGEST_PATIENCE, self._patience)
        self._retry.patience = min(self._retry.patience * 2, longest) if fruitless else self._patience

    async def _release(self, seconds: float) -> None:
        released = (partition.release(seconds) for partition in self.partitions)
        for result in await asyncio.gather(*released, return_exceptions=True):  # each whatever becomes of the others
            if isinstance(result, BaseException):
                log.error("release_failed", queue=self.partitions[0].name, exc_info=result)

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Finish what has begun, for at most so many seconds, and give up all partitions."""
        self._retry.stop()
        self._orders.put_nowait(partial(self._retry.pause, 1))  # wakes the task, so that it ends
        await asyncio.gather(self._release(seconds), self._ended(), return_exceptions=True)
        await self._release(seconds)  # what the task was about to subscribe to

    async def _ended(self) -> None:
        if self._running:
            await asyncio.wait(self._running[:1], timeout=_END_SECONDS)
            await end(self._running)  # where it waits for a link that is dead

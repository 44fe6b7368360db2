"""The subscriptions of one process to the partitions of a queue: subscribe, hand over, release, subscribe again.

One task makes all changes, one after another, so that they cannot interleave.

Releasing partitions while a part is unavailable keeps the order. Each operation that is being retried ends: its
`RetryWhileUnavailable` raises Stopping at its next pause. The message stays unacknowledged, and the gate of its
partition closes, so that no later message begins. An attempt in progress may end within the grace period. Only then is
the channel closed, and all unacknowledged messages return to the head of the queue in the old order, for the next
process. An attempt that outlives the grace period may still commit: once, because handlers are idempotent and rows are
locked.
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
"""Returns the partitions to subscribe to before the others."""
Check = Callable[[], Awaitable[None]]
"""Raises Unavailable while a part that the handlers need is unavailable."""

GRACE_SECONDS = 25.0
_OTHERS_FIRST_SECONDS = 0.5
_QUIET_SECONDS = 0.1
_STAND_BY_SECONDS = 1.0
_FIRST_LONGEST_PAUSE = 0.8
_LONGEST_PAUSE = 10.0
# The broker closes a channel if a message is unacknowledged for 30 min: `contradictions` checks against this value.
LONGEST_PATIENCE = 480.0
_END_SECONDS = 10.0


class Subscriptions:
    """All partitions of one queue in this process.

    Args:
        changed: is set when this process becomes active on a partition, or stops being active.
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
        """Subscribe as soon as the broker is available, and again after each release; returns at once."""
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
        """Subscribe to each partition that has no subscription yet."""
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
            if not self.partitions[number].active:  # with a backlog it may be active already: no probe needed
                await self._probe_if_possible(number)

    @property
    def alive(self) -> bool:
        """Whether the task that subscribes runs, or the process is stopping."""
        return self._retry.stopped or (bool(self._running) and not any(task.done() for task in self._running))

    @property
    def ready(self) -> bool:
        """Whether every partition is subscribed, if only as a stand-by, or is being handed over at this moment."""
        return all(partition.subscribed or partition is self._handing_over for partition in self.partitions)

    @property
    def consuming(self) -> bool:
        """Whether this process has at least one subscription: it has not released all partitions."""
        return any(partition.subscribed for partition in self.partitions)

    @property
    def active(self) -> list[int]:
        """Partitions on which this process is known to be active, in the order in which it became active."""
        numbers = [number for number, partition in enumerate(self.partitions) if partition.active]
        return sorted(numbers, key=lambda number: self.partitions[number].active_since)

    @property
    def owned(self) -> dict[int, float]:
        """Partitions whose outputs this process publishes, without the entry queue, and since when it is active."""
        numbered = enumerate(self.partitions[: self._publisher.partitions])
        return {number: partition.active_since for number, partition in numbered if partition.owned}

    async def probe(self, number: int) -> None:
        """Publish a probe to a partition, so that the active process detects that it is active.

        Raises:
            BrokerUnavailable: the probe may not have arrived.
        """
        message_id = str(uuid7())
        headers = {"partition-key": message_id}  # a key that no other message has
        await self._publisher.publish_raw(
            b"{}",
            exchange=JOBS,
            routing_key=self.partitions[number].name,
            properties=Properties(message_id, message_id, topology.PROBE, headers),
        )

    async def _probe_if_possible(self, number: int) -> None:
        """Send a probe to a quiet partition; without the broker, the next delivery has the same effect."""
        try:
            await self.probe(number)
        except BrokerUnavailable as error:
            log.info("probe_not_sent", queue=self.partitions[number].name, reason=error.detail)

    def hand_over(self, number: int) -> None:
        """Release one partition soon, and subscribe to it again as the last stand-by."""
        self._orders.put_nowait(partial(self._hand_over, number))

    async def _hand_over(self, number: int) -> None:
        partition = self.partitions[number]
        if not partition.active or self._retry.waiting:
            return
        self._handing_over = partition
        try:
            await partition.release(GRACE_SECONDS)
            self.changed.set()
            log.info("partition_handed_over", queue=partition.name)
            await self._probe_if_possible(number)
            await self._retry.pause(_STAND_BY_SECONDS)
            await self._subscribe_to([number], _FIRST_LONGEST_PAUSE)
        finally:
            self._handing_over = None

    async def _watch(self) -> None:
        """Release all partitions soon, each time that an operation has been retried for too long."""
        while True:
            await self._retry.too_long.wait()
            self._retry.too_long.clear()
            if not self._withdrawing and any(partition.started for partition in self.partitions):
                self._withdrawing = True
                self._orders.put_nowait(self._withdraw)

    async def _withdraw(self) -> None:
        """Release all partitions, wait until all parts are available again, subscribe again."""
        self._withdrawing = False
        if not self._retry.waiting:
            return
        log.warning("releasing_partitions", queue=self.partitions[0].name, waiting=self._retry.waiting)
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
        """Retry for longer if a release did not help: each release counts as a delivery of all prefetched messages."""
        lasted = asyncio.get_running_loop().time() - self._subscribed_at
        fruitless = lasted < 2 * self._retry.patience
        longest = max(LONGEST_PATIENCE, self._patience)
        self._retry.patience = min(self._retry.patience * 2, longest) if fruitless else self._patience

    async def _release(self, seconds: float) -> None:
        released = (partition.release(seconds) for partition in self.partitions)
        for result in await asyncio.gather(*released, return_exceptions=True):  # each, even if another fails
            if isinstance(result, BaseException):
                log.error("release_failed", queue=self.partitions[0].name, exc_info=result)

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Finish the messages in progress, for at most so many seconds, and release all partitions."""
        self._retry.stop()
        self._orders.put_nowait(partial(self._retry.pause, 1))  # wakes the task, so that it ends
        await asyncio.gather(self._release(seconds), self._ended(), return_exceptions=True)
        await self._release(seconds)  # partitions that the task has subscribed to meanwhile

    async def _ended(self) -> None:
        if self._running:
            await asyncio.wait(self._running[:1], timeout=_END_SECONDS)
            await end(self._running)  # it may wait for a dead connection

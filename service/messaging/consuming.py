"""Consumes the partitions of one queue: in batches, with slow messages in tasks of their own."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

import structlog

from service.domain.batching import LARGEST, next_size
from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.handling import Batch, BatchProcessor, Handler, KeepDeadLetter
from service.messaging.inbox import Delivery, Inbox
from service.messaging.partitions import Partition, Settle
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received
from service.messaging.retrying import RetryWhileUnavailable
from service.messaging.subscriptions import GRACE_SECONDS, Check, Share, Subscriptions
from service.tasks import end

log = structlog.get_logger()


class Consumer:
    """Consumes the partitions of one queue in this process."""

    def __init__(
        self,
        url: str,
        queue: topology.PartitionedQueue,
        handler: Handler,
        *,
        keep_dead_letter: KeepDeadLetter,
        publisher: Publisher,
        retry: RetryWhileUnavailable,
        prefetch: int,
        settle: Settle | None = None,
    ) -> None:
        self._queue, self._slow, self._publisher, self._retry = queue, handler.slow, publisher, retry
        self._count = publisher.partitions
        self._processor = BatchProcessor(
            queue,
            handler,
            lambda delivery: self.subscriptions.partitions[delivery.number].name,
            keep_dead_letter=keep_dead_letter,
            publisher=publisher,
            retry=retry,
        )
        self._inbox, self._entry = Inbox(), Inbox()
        self._chains: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        names = [queue.queue_name(number) for number in range(self._count)] + ([queue.entry] if queue.entry else [])
        changed = asyncio.Event()
        make = partial(Partition, url, receive=self._receive, changed=changed, settle=settle, prefetch=prefetch)
        partitions = [make(topology.declared_queue(name), number=number) for number, name in enumerate(names)]
        self.subscriptions = Subscriptions(url, partitions, publisher, retry, changed)

    def start(self, share: Share | None = None, check: Check | None = None, *, declares: bool = True) -> None:
        """Subscribe as soon as the broker is available; returns at once.

        Args:
            share: returns the partitions to subscribe to first. Default: all.
            check: raises Unavailable while the database is unavailable; called before subscribing again.
            declares: declare all exchanges and queues first; if False, they must exist.
        """

        async def everything() -> Sequence[int]:
            return range(len(self.subscriptions.partitions))

        async def check_all() -> None:
            if not await self._publisher.ping():
                raise BrokerUnavailable("RabbitMQ is not reachable")
            if check is not None:
                await check()

        self._tasks = [asyncio.create_task(self._work(inbox)) for inbox in (self._inbox, self._entry)]
        self.subscriptions.start(share or everything, check_all, declares=declares)

    @property
    def ready(self) -> bool:
        """Whether every partition is subscribed and no operation is being retried."""
        return self.subscriptions.ready and not self._retry.waiting

    @property
    def alive(self) -> bool:
        """Whether the tasks run; the broker may be unavailable."""
        working = self._retry.stopped or not any(task.done() for task in self._tasks)
        return self.subscriptions.alive and working

    @property
    def busy(self) -> frozenset[str]:
        """Keys that have slow messages, running or waiting."""
        return frozenset(self._chains)

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Finish the messages in progress, for at most so many seconds, and release all partitions."""
        await self.subscriptions.stop(seconds)
        await end([*self._tasks, *self._chains.values()])

    def _receive(self, delivery: Delivery) -> None:
        (self._entry if delivery.number == self._count else self._inbox).add(delivery)

    async def _work(self, inbox: Inbox) -> None:
        most = LARGEST
        while True:
            batch = self._processor.read(await inbox.take(most))
            began = time.perf_counter()
            slow = self._slow_of(batch) if inbox is self._inbox else []
            for received in slow:
                self._chain(received)
            at_once = batch.without(slow)
            if at_once.deliveries:
                for received in await self._processor.process(at_once):
                    self._chain(received)
            most = next_size(most, len(batch.deliveries), time.perf_counter() - began)

    def _slow_of(self, batch: Batch) -> list[Received]:
        """Return the slow messages of a batch, and all messages behind a slow one of the same key."""
        if not self._slow:
            return []
        keys, slow = set(self._chains), []
        for received in batch.readable:
            if received.body.name in self._slow or received.key in keys:
                keys.add(received.key)
                slow.append(received)
        return slow

    def _chain(self, received: Received) -> None:
        """Handle a message in a task, after the earlier messages of its key."""
        task = asyncio.create_task(self._after(self._chains.get(received.key), received))
        self._chains[received.key] = task
        task.add_done_callback(partial(self._unchain, received.key))

    def _unchain(self, key: str, task: asyncio.Task[None]) -> None:
        if self._chains.get(key) is task:
            del self._chains[key]
        if not task.cancelled() and (error := task.exception()):
            log.error("message_not_ended", queue=self._queue.name, exc_info=error)
            self._tasks.append(task)  # reports not alive: only a new process gets the message again

    async def _after(self, before: asyncio.Task[None] | None, received: Received) -> None:
        if before is not None:
            await asyncio.wait([before])
        if received.delivery.is_void:
            received.delivery.gate.leave(received.delivery)
        else:
            await self._processor.process(Batch([received.delivery], [received]), slow=True)

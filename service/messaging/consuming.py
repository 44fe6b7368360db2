"""All partitions of one queue in one process: what comes is taken in batches; what may take long runs beside them."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

import structlog

from service.domain.batching import LARGEST, next_size
from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.handling import Batch, Bury, Handler, Handling
from service.messaging.holding import Hold
from service.messaging.inbox import Delivery, Inbox
from service.messaging.partitions import Partition, Settle
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received
from service.messaging.subscriptions import GRACE_SECONDS, Check, Share, Subscriptions
from service.tasks import end

log = structlog.get_logger()


class Consumer:
    """All partitions of one queue in this process."""

    def __init__(
        self,
        url: str,
        queue: topology.PartitionedQueue,
        handler: Handler,
        *,
        bury: Bury,
        publisher: Publisher,
        hold: Hold,
        prefetch: int,
        settle: Settle | None = None,
    ) -> None:
        self._queue, self._alone, self._publisher, self._hold = queue, handler.alone, publisher, hold
        self._count = publisher.partitions
        self._handling = Handling(
            queue,
            handler,
            lambda delivery: self.subscriptions.partitions[delivery.number].name,
            bury=bury,
            publisher=publisher,
            hold=hold,
        )
        self._inbox, self._entry = Inbox(), Inbox()
        self._chains: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        names = [queue.queue_name(number) for number in range(self._count)] + ([queue.entry] if queue.entry else [])
        changed = asyncio.Event()
        make = partial(Partition, url, receive=self._receive, changed=changed, settle=settle, prefetch=prefetch)
        partitions = [make(topology.declared_queue(name), number=number) for number, name in enumerate(names)]
        self.subscriptions = Subscriptions(url, partitions, publisher, hold, changed)

    def start(self, share: Share | None = None, check: Check | None = None, *, declares: bool = True) -> None:
        """Subscribe as soon as the broker is there; returns at once.

        Args:
            share: says which partitions to subscribe to before the others; all of them, where it is not given.
            check: raises Unavailable while a part besides the broker is away; asked before subscribing again.
            declares: whether it declares all exchanges and queues before; else they have to be there.
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
        """Whether every partition is subscribed and nothing is held."""
        return self.subscriptions.ready and not self._hold.held

    @property
    def alive(self) -> bool:
        """Whether what subscribes and what works is there; the broker may be away."""
        working = self._hold.stopped or not any(task.done() for task in self._tasks)
        return self.subscriptions.alive and working

    @property
    def busy(self) -> frozenset[str]:
        """Keys of which messages are handled alone at this moment, or wait for that."""
        return frozenset(self._chains)

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Finish what has begun, for at most so many seconds, and give up all partitions."""
        await self.subscriptions.stop(seconds)
        await end([*self._tasks, *self._chains.values()])

    def _receive(self, delivery: Delivery) -> None:
        (self._entry if delivery.number == self._count else self._inbox).add(delivery)

    async def _work(self, inbox: Inbox) -> None:
        most = LARGEST
        while True:
            batch = self._handling.read(await inbox.take(most))
            began = time.perf_counter()
            alone = self._to_be_alone(batch) if inbox is self._inbox else []
            for received in alone:
                self._chain(received)
            at_once = batch.without(alone)
            if at_once.deliveries:
                for received in await self._handling.end(at_once):
                    self._chain(received)
            most = next_size(most, len(batch.deliveries), time.perf_counter() - began)

    def _to_be_alone(self, batch: Batch) -> list[Received]:
        """Return the messages of a batch that may take long, and those behind such a one of their key."""
        if not self._alone:
            return []
        keys, alone = set(self._chains), []
        for received in batch.readable:
            if received.body.name in self._alone or received.key in keys:
                keys.add(received.key)
                alone.append(received)
        return alone

    def _chain(self, received: Received) -> None:
        """Let a message be handled behind those of its key, beside all others."""
        task = asyncio.create_task(self._after(self._chains.get(received.key), received))
        self._chains[received.key] = task
        task.add_done_callback(partial(self._unchain, received.key))

    def _unchain(self, key: str, task: asyncio.Task[None]) -> None:
        if self._chains.get(key) is task:
            del self._chains[key]
        if not task.cancelled() and (error := task.exception()):
            log.error("message_not_ended", queue=self._queue.name, exc_info=error)
            self._tasks.append(task)  # not alive any more: only a new process gets the message again

    async def _after(self, before: asyncio.Task[None] | None, received: Received) -> None:
        if before is not None:
            await asyncio.wait([before])
        if received.delivery.is_void:
            received.delivery.gate.leave(received.delivery)
        else:
            await self._handling.end(Batch([received.delivery], [received]), alone=True)

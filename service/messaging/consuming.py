"""The life of a delivery: read it, handle it, acknowledge it. What follows from it is told from the rows, by others.

done          handled: what it asks for is committed                 acknowledged
rerouted      its key belongs to another partition                   acknowledged once the copy is confirmed
dead letter   it can never be processed, or failed three times       acknowledged once it is in the table
held          the database or the broker is away                     waits here, is tried again
left          the process ends, or gives up, while it is held        unacknowledged: another process gets it
"""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar, Protocol

import structlog

from service import tracing
from service.domain.batching import LARGEST, next_size
from service.domain.dead_letters import DeadLetter
from service.domain.sending import backoff
from service.errors import BrokerUnavailable, Undeliverable
from service.messaging import topology
from service.messaging.dead_letters import dead_letter_of
from service.messaging.holding import Hold, Stopping
from service.messaging.inbox import Delivery, Inbox
from service.messaging.partitions import Partition, Settle
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received, is_probe, name_of, read, traced
from service.messaging.rerouting import check_hops, reroute
from service.messaging.subscriptions import GRACE_SECONDS, Check, Share, Subscriptions
from service.metrics import DEAD_LETTERS, HANDLED, HANDLER_ERRORS, HANDLING_SECONDS, MESSAGE_AGE
from service.tasks import end
from whatsapp_qr_contracts.codes import DeadLetterReason
from whatsapp_qr_contracts.message import Message
from whatsapp_qr_contracts.partitions import partition_of

log = structlog.get_logger()

_TRIES = 3
_TRACEBACK_CHARACTERS = 8_000
_UNKNOWN = "unknown"

Failures = list[tuple[Received, Undeliverable]]
Bury = Callable[[DeadLetter], Awaitable[None]]
"""Keeps a dead letter for good; raises Unavailable where that is not possible at present."""


class Handler(Protocol):
    """Does what messages ask for. It may be run again for the same messages at any time."""

    models: ClassVar[Mapping[str, type[Message]]]
    """The messages that it knows, by name."""
    side_by_side: ClassVar[bool]
    """Whether messages of different keys are handled beside each other, one at a time, rather than in one batch."""

    async def handle(self, batch: Sequence[Received]) -> Failures:
        """Do what the messages ask for, in their order, and commit it; return those that can never be processed.

        Raises:
            Unavailable: a part is away; nothing was committed as far as is known.
        """


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
        self._queue, self._handler, self._bury_one, self._publisher, self._hold = queue, handler, bury, publisher, hold
        self._count = publisher.partitions
        # Only names that we know may be a label: anybody may publish any other.
        self._seconds = {name: HANDLING_SECONDS.labels(queue.name, name) for name in (*handler.models, _UNKNOWN)}
        self._age = MESSAGE_AGE.labels(queue.name)
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
        """Keys whose messages are being handled, where that is done side by side."""
        return frozenset(self._chains)

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Finish what has begun, for at most so many seconds, and give up all partitions."""
        await self.subscriptions.stop(seconds)
        await end([*self._tasks, *self._chains.values()])

    def _receive(self, delivery: Delivery) -> None:
        (self._entry if delivery.number == self._count else self._inbox).add(delivery)

    async def _work(self, inbox: Inbox) -> None:
        side_by_side = self._handler.side_by_side and inbox is self._inbox
        most = 1 if side_by_side else LARGEST
        while True:
            batch = self._read(await inbox.take(most))
            if side_by_side:
                self._chain(batch)
                continue
            began = time.perf_counter()
            await self._live(batch)
            most = next_size(most, len(batch.deliveries), time.perf_counter() - began)

    def _chain(self, batch: "_Batch") -> None:
        """Let a message be handled behind those of its key, beside all others."""
        key = batch.readable[0].key if batch.readable else ""
        task = asyncio.create_task(self._after(self._chains.get(key), batch))
        self._chains[key] = task
        task.add_done_callback(partial(self._unchain, key))

    def _unchain(self, key: str, task: asyncio.Task[None]) -> None:
        if self._chains.get(key) is task:
            del self._chains[key]
        if not task.cancelled() and (error := task.exception()):
            log.error("message_not_ended", queue=self._queue.name, exc_info=error)
            self._tasks.append(task)  # not alive any more: only a new process gets the message again

    async def _after(self, before: asyncio.Task[None] | None, batch: "_Batch") -> None:
        if before is not None:
            await asyncio.wait([before])
        if batch.deliveries[0].is_void:
            batch.deliveries[0].gate.leave()
        else:
            await self._live(batch)

    def _read(self, deliveries: list[Delivery]) -> "_Batch":
        batch = _Batch(deliveries)
        for delivery in deliveries:
            raw = delivery.raw
            if raw.timestamp is not None:
                self._age.observe(max(0.0, (datetime.now(UTC) - raw.timestamp).total_seconds()))
            if is_probe(delivery):
                continue
            try:
                received = read(delivery, self._handler.models, self._queue.name)
                if partition_of(received.key, self._count) == delivery.number:
                    batch.readable.append(received)
                else:
                    check_hops(received, self._count)
                    batch.strays.append(received)
            except Undeliverable as error:
                batch.dead.append((delivery, error))
        return batch

    async def _live(self, batch: "_Batch") -> None:
        began = time.perf_counter()
        try:
            if batch.strays:
                strays = list(batch.strays)
                await self._hold(partial(reroute, self._publisher, strays))
            if batch.readable:
                failures = await self._handle(batch.readable)
                batch.dead += [(received.delivery, error) for received, error in failures]
            for delivery, error in batch.dead:
                await self._bury(delivery, error)
        except Stopping:
            for delivery in batch.deliveries:
                delivery.gate.closed = True  # what is left may not be overtaken
        else:
            self._count_ended(batch, time.perf_counter() - began)
            await self._acknowledge(batch.deliveries)
        finally:
            for delivery in batch.deliveries:
                delivery.gate.leave()

    async def _handle(self, batch: Sequence[Received], attempt: int = 1) -> Failures:
        """Handle a batch; one that fails for a reason of its own is split until the culprit is alone."""
        try:
            return await self._hold(partial(self._handler.handle, batch))
        except Stopping:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop those behind it
            failure = error
        if len(batch) > 1:
            log.warning("batch_split", queue=self._queue.name, messages=len(batch), error=type(failure).__name__)
            half = len(batch) // 2
            return [*await self._handle(batch[:half]), *await self._handle(batch[half:])]
        [received] = batch
        HANDLER_ERRORS.labels(self._queue.name, type(received.body).name).inc()
        with received.traced(self._queue.name) as span:
            log.error("handler_failed", queue=self._queue.name, attempt=attempt, exc_info=failure)
            tracing.failed(span, failure)
        if attempt == _TRIES:
            reason = "".join(traceback.format_exception(failure))[-_TRACEBACK_CHARACTERS:]
            return [(received, Undeliverable(reason, code=DeadLetterReason.HANDLER_FAILED))]
        await asyncio.sleep(backoff(attempt))
        return await self._handle(batch, attempt + 1)

    async def _bury(self, delivery: Delivery, error: Undeliverable) -> None:
        with traced(delivery, self._queue.name) as span:
            log.error("dead_letter", queue=self._queue.name, code=error.code)
            tracing.failed(span, error)
        source = topology.name_of(self.subscriptions.partitions[delivery.number].name)
        await self._hold(partial(self._bury_one, dead_letter_of(delivery.raw, error, queue=source)))
        DEAD_LETTERS.labels(error.code).inc()

    def _count_ended(self, batch: "_Batch", seconds: float) -> None:
        dead = {delivery for delivery, _ in batch.dead}
        ended = [(one.body.name, "done") for one in batch.readable if one.delivery not in dead]
        ended += [(one.body.name, "rerouted") for one in batch.strays]
        ended += [(name_of(delivery), "dead_letter") for delivery in dead]
        for name, outcome in ended:
            known = name if name in self._seconds else _UNKNOWN
            HANDLED.labels(self._queue.name, known, outcome).inc()
            self._seconds[known].observe(seconds)

    async def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        multiple = not self._handler.side_by_side  # else others that came before may not have ended
        last = {delivery.number: delivery for delivery in deliveries}.values()
        for delivery in last if multiple else deliveries:
            await delivery.acknowledge(multiple=multiple)


@dataclass(slots=True)
class _Batch:
    """Deliveries that were taken together, and what they are."""

    deliveries: list[Delivery]
    readable: list[Received] = field(default_factory=list)
    strays: list[Received] = field(default_factory=list)
    dead: list[tuple[Delivery, Undeliverable]] = field(default_factory=list)

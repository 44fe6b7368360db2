"""The life of a delivery: read it, handle it, acknowledge it. What follows from it is told from the rows, by others.

done          handled: what it asks for is committed                 acknowledged
rerouted      its key belongs to another partition                   acknowledged once the copy is confirmed
dead letter   it can never be processed, or failed three times       acknowledged once it is in the table
alone         it may take long                                       handled beside the others, behind those of its key
held          the database or the broker is away                     waits here, is tried again
left          the process ends, or gives up, while it is held        unacknowledged: another process gets it
"""

import asyncio
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

import structlog

from service import tracing
from service.domain.dead_letters import DeadLetter
from service.domain.sending import backoff
from service.errors import Undeliverable
from service.messaging import topology
from service.messaging.dead_letters import dead_letter_of
from service.messaging.holding import Hold, Stopping
from service.messaging.inbox import Delivery
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received, is_probe, name_of, read, traced
from service.messaging.rerouting import check_hops, reroute
from service.metrics import DEAD_LETTERS, HANDLED, HANDLER_ERRORS, HANDLING_SECONDS, MESSAGE_AGE
from whatsapp_qr_contracts.codes import DeadLetterReason
from whatsapp_qr_contracts.message import Message
from whatsapp_qr_contracts.partitions import partition_of

log = structlog.get_logger()

_TRIES = 3
_TRACEBACK_CHARACTERS = 8_000
_UNKNOWN = "unknown"

NotDone = list[tuple[Received, Undeliverable | None]]
"""Messages of a batch, each with why it can never be processed; with None it is to be handled alone."""
Bury = Callable[[DeadLetter], Awaitable[None]]
"""Keeps a dead letter for good; raises Unavailable where that is not possible at present."""


class Handler(ABC):
    """Does what messages ask for. It may be run again for the same messages at any time."""

    models: ClassVar[Mapping[str, type[Message]]]
    """The messages that it knows, by name."""
    alone: frozenset[str] = frozenset()
    """Names of those that may take long: each is handled alone, beside what has other keys."""

    @abstractmethod
    async def handle(self, batch: Sequence[Received]) -> NotDone:
        """Do what the messages ask for, in their order, and commit it; return those that are not done.

        Raises:
            Unavailable: a part is away; nothing was committed as far as is known.
        """

    async def handle_alone(self, received: Received) -> None:
        """Do what one message asks for, and commit it.

        Raises:
            Undeliverable: it can never be processed.
            Unavailable: a part is away; it is handled again.
        """
        raise NotImplementedError(received.body.name)


@dataclass(slots=True)
class Batch:
    """Deliveries that were taken together, and what they are."""

    deliveries: list[Delivery]
    readable: list[Received] = field(default_factory=list)
    strays: list[Received] = field(default_factory=list)
    dead: list[tuple[Delivery, Undeliverable]] = field(default_factory=list)

    def without(self, received: Sequence[Received]) -> "Batch":
        """Return what is left of it without some messages."""
        gone = {one.delivery for one in received}
        return Batch(
            [delivery for delivery in self.deliveries if delivery not in gone],
            [one for one in self.readable if one.delivery not in gone],
            self.strays,
            self.dead,
        )


class Handling:
    """What becomes of the deliveries of one queue in this process.

    Args:
        source: returns the name of the queue of a delivery.
    """

    def __init__(
        self,
        queue: topology.PartitionedQueue,
        handler: Handler,
        source: Callable[[Delivery], str],
        *,
        bury: Bury,
        publisher: Publisher,
        hold: Hold,
    ) -> None:
        self._queue, self._handler, self._source = queue, handler, source
        self._bury_one, self._publisher, self._hold = bury, publisher, hold
        self._count = publisher.partitions
        # Only names that we know may be a label: anybody may publish any other.
        self._seconds = {name: HANDLING_SECONDS.labels(queue.name, name) for name in (*handler.models, _UNKNOWN)}
        self._age = MESSAGE_AGE.labels(queue.name)

    def read(self, deliveries: list[Delivery]) -> Batch:
        """Return what deliveries are."""
        batch = Batch(deliveries)
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

    async def end(self, batch: Batch, *, alone: bool = False) -> list[Received]:
        """Bring a batch to its end; return the messages that are to be handled alone, and are not at their end."""
        began, left, ended = time.perf_counter(), list[Received](), batch
        try:
            if batch.strays:
                strays = list(batch.strays)
                await self._hold(partial(reroute, self._publisher, strays))
            if batch.readable:
                not_done = await self._handle(batch.readable, alone=alone)
                left = [received for received, error in not_done if error is None]
                ended = batch.without(left)
                ended.dead += [(received.delivery, error) for received, error in not_done if error is not None]
            for delivery, error in ended.dead:
                await self._bury(delivery, error)
        except Stopping:
            left, ended = [], batch
            for delivery in batch.deliveries:
                delivery.gate.closed = True  # what is left may not be overtaken
        else:
            self._count_ended(ended, time.perf_counter() - began)
            await acknowledge(ended.deliveries)
        finally:
            for delivery in ended.deliveries:
                delivery.gate.leave(delivery)
        return left

    async def _handle(self, batch: Sequence[Received], attempt: int = 1, *, alone: bool) -> NotDone:
        """Handle a batch; one that fails for a reason of its own is split until the culprit is alone."""
        try:
            return await self._hold(partial(self._alone if alone else self._handler.handle, batch))
        except Stopping:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop those behind it
            failure = error
        if len(batch) > 1:
            log.warning("batch_split", queue=self._queue.name, messages=len(batch), error=type(failure).__name__)
            half = len(batch) // 2
            return [*await self._handle(batch[:half], alone=alone), *await self._handle(batch[half:], alone=alone)]
        [received] = batch
        HANDLER_ERRORS.labels(self._queue.name, type(received.body).name).inc()
        with received.traced(self._queue.name) as span:
            log.error("handler_failed", queue=self._queue.name, attempt=attempt, exc_info=failure)
            tracing.failed(span, failure)
        if attempt == _TRIES:
            reason = "".join(traceback.format_exception(failure))[-_TRACEBACK_CHARACTERS:]
            return [(received, Undeliverable(reason, code=DeadLetterReason.HANDLER_FAILED))]
        await asyncio.sleep(backoff(attempt))
        return await self._handle(batch, attempt + 1, alone=alone)

    async def _alone(self, batch: Sequence[Received]) -> NotDone:
        [received] = batch
        try:
            await self._handler.handle_alone(received)
        except Undeliverable as error:
            return [(received, error)]
        return []

    async def _bury(self, delivery: Delivery, error: Undeliverable) -> None:
        with traced(delivery, self._queue.name) as span:
            log.error("dead_letter", queue=self._queue.name, code=error.code)
            tracing.failed(span, error)
        source = topology.name_of(self._source(delivery))
        await self._hold(partial(self._bury_one, dead_letter_of(delivery.raw, error, queue=source)))
        DEAD_LETTERS.labels(error.code).inc()

    def _count_ended(self, batch: Batch, seconds: float) -> None:
        dead = {delivery for delivery, _ in batch.dead}
        ended = [(one.body.name, "done") for one in batch.readable if one.delivery not in dead]
        ended += [(one.body.name, "rerouted") for one in batch.strays]
        ended += [(name_of(delivery), "dead_letter") for delivery in dead]
        for name, outcome in ended:
            known = name if name in self._seconds else _UNKNOWN
            HANDLED.labels(self._queue.name, known, outcome).inc()
            self._seconds[known].observe(seconds)


async def acknowledge(deliveries: Sequence[Delivery]) -> None:
    """Acknowledge deliveries: those of a queue by one acknowledgement, where nothing before the last is unfinished."""
    ended, last = set(deliveries), {delivery.gate: delivery for delivery in deliveries}
    for gate, newest in last.items():
        if gate.is_all_before(newest, ended):
            await newest.acknowledge(multiple=True)
        else:
            for delivery in deliveries:
                if delivery.gate is gate:
                    await delivery.acknowledge()

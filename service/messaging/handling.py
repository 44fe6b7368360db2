"""The processing of a delivery: read, handle, acknowledge. The relays publish the outputs later, from the rows.

A delivery ends in one of four ways:

done          the handler has committed                             acknowledged
rerouted      the key belongs to another partition                  acknowledged after the copy is confirmed
dead letter   it can never be processed, or failed three times      acknowledged after it is in the table
left          the process stops, or releases its partitions         not acknowledged: the broker delivers it again

A slow message is handled in a task of its own, after the earlier messages of its key. If the database or the broker is
unavailable, the handler is retried here until it succeeds.
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
from service.messaging.inbox import Delivery
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received, is_probe, name_of, read, traced
from service.messaging.rerouting import check_hops, reroute
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.metrics import DEAD_LETTERS, HANDLED, HANDLER_ERRORS, HANDLING_SECONDS, MESSAGE_AGE
from whatsapp_qr_contracts.codes import DeadLetterReason
from whatsapp_qr_contracts.message import Message
from whatsapp_qr_contracts.partitions import partition_of

log = structlog.get_logger()

_TRIES = 3
_TRACEBACK_CHARACTERS = 8_000
_UNKNOWN = "unknown"

NotDone = list[tuple[Received, Undeliverable | None]]
"""Messages of a batch that are not done: each with the reason if it can never be processed, or with None if it must be
handled as a slow message.
"""
KeepDeadLetter = Callable[[DeadLetter], Awaitable[None]]
"""Stores a dead letter; raises Unavailable if that is not possible at present."""


class Handler(ABC):
    """Handles the messages of one queue. It must be idempotent: any message may be delivered again."""

    models: ClassVar[Mapping[str, type[Message]]]
    """The message models that it accepts, by name."""
    slow: frozenset[str] = frozenset()
    """Names of slow messages: each is handled by itself, concurrently with messages of other keys."""

    @abstractmethod
    async def handle(self, batch: Sequence[Received]) -> NotDone:
        """Process the messages in their order and commit; return those that are not done.

        Raises:
            Unavailable: the database or the broker is unavailable; as far as is known, nothing was committed.
        """

    async def handle_slow(self, received: Received) -> None:
        """Process one message and commit.

        Raises:
            Undeliverable: it can never be processed.
            Unavailable: the database or the broker is unavailable; the message is handled again.
        """
        raise NotImplementedError(received.body.name)


@dataclass(slots=True)
class Batch:
    """Deliveries that were taken together, sorted by the processing that they need."""

    deliveries: list[Delivery]
    readable: list[Received] = field(default_factory=list)
    strays: list[Received] = field(default_factory=list)
    dead: list[tuple[Delivery, Undeliverable]] = field(default_factory=list)

    def without(self, received: Sequence[Received]) -> "Batch":
        """Return the batch without these messages."""
        gone = {one.delivery for one in received}
        return Batch(
            [delivery for delivery in self.deliveries if delivery not in gone],
            [one for one in self.readable if one.delivery not in gone],
            self.strays,
            self.dead,
        )


class BatchProcessor:
    """Processes the deliveries of one queue in this process.

    Args:
        source: returns the name of the queue of a delivery.
    """

    def __init__(
        self,
        queue: topology.PartitionedQueue,
        handler: Handler,
        source: Callable[[Delivery], str],
        *,
        keep_dead_letter: KeepDeadLetter,
        publisher: Publisher,
        retry: RetryWhileUnavailable,
    ) -> None:
        self._queue, self._handler, self._source = queue, handler, source
        self._keep_dead_letter, self._publisher, self._retry = keep_dead_letter, publisher, retry
        self._count = publisher.partitions
        # Only names that we know may be a label: any client may publish other names.
        self._seconds = {name: HANDLING_SECONDS.labels(queue.name, name) for name in (*handler.models, _UNKNOWN)}
        self._age = MESSAGE_AGE.labels(queue.name)

    def read(self, deliveries: list[Delivery]) -> Batch:
        """Read the deliveries and sort them."""
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

    async def process(self, batch: Batch, *, slow: bool = False) -> list[Received]:
        """Process a batch to its end; return the deferred ones, to be handled as slow messages."""
        began, deferred, ended = time.perf_counter(), list[Received](), batch
        try:
            if batch.strays:
                strays = list(batch.strays)
                await self._retry(partial(reroute, self._publisher, strays))
            if batch.readable:
                not_done = await self._handle(batch.readable, slow=slow)
                deferred = [received for received, error in not_done if error is None]
                ended = batch.without(deferred)
                ended.dead += [(received.delivery, error) for received, error in not_done if error is not None]
            for delivery, error in ended.dead:
                await self._dead_letter(delivery, error)
        except Stopping:
            deferred, ended = [], batch
            for delivery in batch.deliveries:
                delivery.gate.closed = True  # a later message must not overtake one that is left
        else:
            self._count_ended(ended, time.perf_counter() - began)
            await acknowledge(ended.deliveries)
        finally:
            for delivery in ended.deliveries:
                delivery.gate.leave(delivery)
        return deferred

    async def _handle(self, batch: Sequence[Received], attempt: int = 1, *, slow: bool) -> NotDone:
        """Handle a batch. If it fails, split it until the failing message is found."""
        try:
            return await self._retry(partial(self._slow if slow else self._handler.handle, batch))
        except Stopping:
            raise
        except Exception as error:  # noqa: BLE001  # no error of one message may stop the messages behind it
            failure = error
        if len(batch) > 1:
            log.warning("batch_split", queue=self._queue.name, messages=len(batch), error=type(failure).__name__)
            half = len(batch) // 2
            return [*await self._handle(batch[:half], slow=slow), *await self._handle(batch[half:], slow=slow)]
        [received] = batch
        HANDLER_ERRORS.labels(self._queue.name, type(received.body).name).inc()
        with received.traced(self._queue.name) as span:
            log.error("handler_failed", queue=self._queue.name, attempt=attempt, exc_info=failure)
            tracing.failed(span, failure)
        if attempt == _TRIES:
            reason = "".join(traceback.format_exception(failure))[-_TRACEBACK_CHARACTERS:]
            return [(received, Undeliverable(reason, code=DeadLetterReason.HANDLER_FAILED))]
        await asyncio.sleep(backoff(attempt))
        return await self._handle(batch, attempt + 1, slow=slow)

    async def _slow(self, batch: Sequence[Received]) -> NotDone:
        [received] = batch
        try:
            await self._handler.handle_slow(received)
        except Undeliverable as error:
            return [(received, error)]
        return []

    async def _dead_letter(self, delivery: Delivery, error: Undeliverable) -> None:
        with traced(delivery, self._queue.name) as span:
            log.error("dead_letter", queue=self._queue.name, code=error.code)
            tracing.failed(span, error)
        source = topology.name_of(self._source(delivery))
        await self._retry(partial(self._keep_dead_letter, dead_letter_of(delivery.raw, error, queue=source)))
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
    """Acknowledge deliveries; with one acknowledgement for a channel if all its earlier deliveries are finished."""
    ended, last = set(deliveries), {delivery.gate: delivery for delivery in deliveries}
    for gate, newest in last.items():
        if gate.is_all_before(newest, ended):
            await newest.acknowledge(multiple=True)
        else:
            for delivery in deliveries:
                if delivery.gate is gate:
                    await delivery.acknowledge()

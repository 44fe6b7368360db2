"""Publishes the outputs of rows: directly after the commit, and, if that was not confirmed, from the rows.

A destination is direct or relayed. Direct: outputs are published right after their commit. If a publish is not
confirmed, the destination becomes relayed: outputs committed from then on stay in their rows, and pages of rows are
published in order, until none is left. So nothing overtakes an unpublished output, and no handler waits for a
destination. A process that takes a partition over begins relayed: the previous owner may have left rows unpublished.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from service import tracing
from service.consumers.row_outputs import Output
from service.domain.sending import backoff
from service.errors import BrokerUnavailable, PublishRefused
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.metrics import EVENTS_REFUSED, RELAYED, RELAYING
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.unpublished import PAGE, Part, Unpublished
from service.tasks import Loop, happens

log = structlog.get_logger()

_MOST_DIRECT = 2000
_UNDER_WAY = 16
"""Unconfirmed publishes, at most: other publishes over the same connection wait for so many."""
_LOOK_EVERY_SECONDS = 1.0
_SETTLED_SECONDS = 3.0
"""A row that has not changed for so long is not being published by any process."""
EVENT_TRIES = 3
_TRY_AGAIN_SECONDS = (1.0, 5.0)


@dataclass(frozen=True)
class Source:
    """Rows of one table that have outputs.

    Args:
        outputs: returns the outputs of one row.
        settled: seconds for which a row must not have changed, if another process may be about to publish it.
    """

    unpublished: Unpublished
    outputs: Callable[[Any], list[Output]]
    settled: float = _SETTLED_SECONDS


@dataclass(frozen=True, slots=True)
class _Refused:
    """An event that a queue refused, and when it is published again."""

    output: Output
    tries: int
    due: float


class Relay(Loop):
    """The relay of one destination, in this process.

    Args:
        skips_refused: whether an output counts as confirmed after EVENT_TRIES refusals, as events do. The refusal does
            not name the bound queue that was full, and the others have the event.
    """

    def __init__(
        self,
        name: str,
        publisher: Publisher,
        database: Database,
        retry: RetryWhileUnavailable,
        confirmations: Confirmations,
        sources: Sequence[Source],
        part: Callable[[], Part],
        *,
        skips_refused: bool = False,
    ) -> None:
        self.name = name
        self._publisher, self._database, self._retry, self._confirmations = publisher, database, retry, confirmations
        self._sources, self._part, self._skips_refused = sources, part, skips_refused
        self._waiting: list[Output] = []
        self._refused: dict[str, _Refused] = {}
        self._places = asyncio.Semaphore(_UNDER_WAY)
        self._in_trouble = False
        """Whether a publish of this step was not confirmed: outputs not begun yet are left in the rows."""
        self._owned: Mapping[int, float] = {}
        self._relayed = False
        self._skipped = False
        """Whether outputs were committed, and left in their rows, since the last look began."""
        self._failures = 0
        self._looked_at = float("-inf")
        # Not all at the same moment: messages handled meanwhile would wait for all relays.
        self._look_every = _LOOK_EVERY_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311  # spreads load, protects nothing
        self._wake = asyncio.Event()
        self._published = asyncio.Event()
        """Set while no output waits, no publish of a waiting output is in progress, and no page of rows either."""
        self._published.set()
        RELAYING.labels(name).set_function(lambda: float(self._relayed))

    def publish_soon(self, outputs: Sequence[Output]) -> None:
        """Publish committed outputs soon; if the destination is relayed, they are published from the rows."""
        self._notice_taken_over()
        if self._relayed or len(self._waiting) + len(outputs) > _MOST_DIRECT:
            if not self._relayed:
                log.warning("relaying", destination=self.name, reason="too many outputs wait")
            self._go_by_the_rows()
        else:
            self._waiting.extend(outputs)
            self._published.clear()
        self._wake.set()

    def _notice_taken_over(self) -> None:
        owned = self._part().owned
        if owned.items() - self._owned.items():
            self._go_by_the_rows()
        self._owned = owned

    def _go_by_the_rows(self) -> None:
        self._relayed = self._skipped = True
        self._waiting.clear()

    async def settle(self, seconds: float) -> None:
        """Publish the waiting outputs, for at most so many seconds; the rest stay in the rows."""
        if self.alive:
            await happens(self._published, seconds)

    async def _run(self) -> None:
        while True:
            await self._pause()
            try:
                self._notice_taken_over()
                went_well = await self._step()
            except Stopping:  # the rest is in the rows, for the next owner of their partitions
                went_well = False
            except Exception:
                log.exception("relay_failed", destination=self.name)
                went_well = False
            if went_well:
                self._failures = 0
            else:
                self._failures += 1
                self._go_by_the_rows()

    async def _step(self) -> bool:
        """Do the next step; return whether it succeeded."""
        self._in_trouble = False
        if self._waiting:
            outputs = list(self._waiting)
            self._waiting.clear()
            return await self._publish(outputs)
        if self._refused:
            await self._try_again()
        if self._relayed or time.monotonic() - self._looked_at >= self._look_every:
            return await self._look()
        return True

    async def _pause(self) -> None:
        if not self._waiting:
            self._published.set()
        if self._failures:
            await asyncio.sleep(backoff(self._failures))
            return
        if self._waiting or (self._relayed and self._skipped):
            return
        self._wake.clear()
        await happens(self._wake, self._look_every)

    async def _look(self) -> bool:
        """Publish the unpublished rows, page by page; once none is left, the destination is direct again."""
        self._skipped = False
        await self._retry(self._confirmations.flush)
        for source in self._sources:
            while outputs := await self._page(source):
                RELAYED.labels(self.name).inc(len(outputs))
                self._published.clear()
                if not await self._publish(outputs):
                    return False
                await self._retry(self._confirmations.flush)
        self._looked_at = time.monotonic()
        if self._relayed and not self._skipped:
            self._relayed = False
        return True

    async def _page(self, source: Source) -> list[Output]:
        age = 0.0 if self._relayed else source.settled
        # The page contains refused outputs that are retried later; they must not fill it.
        part = replace(self._part(), age=age, page=PAGE + len(self._refused))
        if not part.owned:
            return []
        rows = await self._retry(partial(self._database.read, partial(source.unpublished.page, part=part)))
        outputs = [output for row in rows for output in self._outputs(source, row)]
        return [output for output in outputs if output.message_id not in self._refused]

    def _outputs(self, source: Source, row: Any) -> list[Output]:
        try:
            return source.outputs(row)
        except Exception:  # perhaps written by a newer version, which can publish it: it must not block the others
            log.exception("row_not_understood", destination=self.name)
            return []

    async def _publish(self, outputs: Sequence[Output]) -> bool:
        """Publish outputs, those of one order one after another; return whether none is left for the rows."""
        orders: dict[str, list[Output]] = defaultdict(list)
        for output in outputs:
            orders[output.order].append(output)
        return all(await asyncio.gather(*map(self._publish_in_order, orders.values())))

    async def _publish_in_order(self, outputs: Sequence[Output]) -> bool:
        for output in outputs:
            if not await self._publish_one(output, tries=1):
                return False
        return True

    async def _publish_one(self, output: Output, tries: int) -> bool:
        try:
            async with self._places:
                if self._in_trouble:
                    return False
                with tracing.continued(output.traceparent):
                    await self._publisher.publish(
                        output.message,
                        message_id=output.message_id,
                        correlation_id=output.correlation_id,
                        headers=output.headers,
                    )
        except BrokerUnavailable as error:
            if isinstance(error, PublishRefused) and self._skips_refused:
                self._refuse(output, tries)
                return True
            return self._failed(error.detail)
        self._confirmations.note(output.confirmation)
        return True

    def _failed(self, reason: str) -> bool:
        if not self._failures and not self._in_trouble:
            log.warning("relaying", destination=self.name, reason=reason)
        self._in_trouble = True
        return False

    def _refuse(self, output: Output, tries: int) -> None:
        """Retry an event later, a bounded number of times: it does not block other outputs."""
        if tries < EVENT_TRIES and len(self._refused) < _MOST_DIRECT:
            due = time.monotonic() + _TRY_AGAIN_SECONDS[tries - 1]
            self._refused[output.message_id] = _Refused(output, tries, due)
            return
        EVENTS_REFUSED.labels(output.message.name).inc()
        self._confirmations.note(output.confirmation)

    async def _try_again(self) -> None:
        at = time.monotonic()
        due = [refused for refused in self._refused.values() if refused.due <= at]
        for refused in due:
            del self._refused[refused.output.message_id]
        await asyncio.gather(*(self._publish_one(refused.output, refused.tries + 1) for refused in due))

"""Distributes the partitions of a queue evenly over the processes of one kind.

The broker chooses the process that is active on a partition and does not report it. A process detects it by the first
delivery on its channel; that works on every RabbitMQ and costs nothing while there is traffic. For a queue without
traffic there is the probe: an empty message through the queue itself, acknowledged by the active process. It is
published only when a partition has just been released, and on each heartbeat for partitions that no live row claims: so
never while nothing changes. Rows and probes only balance; while the database is unavailable every process keeps its
partitions.
"""

import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from service.domain import sharing
from service.domain.sharing import Peer
from service.ending import Ending
from service.errors import ConfigurationError, DatabaseUnavailable, Unavailable
from service.messaging.retrying import Stopping
from service.messaging.subscriptions import Subscriptions
from service.metrics import PARTITIONS_OWNED
from service.persistence.heartbeats import Heartbeats
from service.tasks import Loop, happens

log = structlog.get_logger()

# Share of a period: 10 s of 15.
_BETWEEN_MOVES = 2 / 3


class Sharing(Loop):
    """The loop that balances one process with the others."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        heartbeats: Heartbeats,
        ending: Ending,
        *,
        process_id: str,
        queue: str,
        period: float,
    ) -> None:
        self._subscriptions = subscriptions
        self._heartbeats = heartbeats
        self._ending = ending
        self._id = process_id
        self._period = period
        self._moved_at = float("-inf")
        self._asked: dict[int, float] = {}
        self._trouble = ""
        PARTITIONS_OWNED.labels(queue).set_function(lambda: len(subscriptions.owned))

    async def first_share(self) -> Sequence[int]:
        """Return the partitions to subscribe to before the others.

        Raises:
            DatabaseUnavailable: the rows cannot be read; the process must not subscribe.
            Stopping: the database has another PARTITIONS than this process, which stops.
        """
        try:
            others = await self._heartbeats.beat([])
        except ConfigurationError as error:
            self._ending.because(error)
            raise Stopping from error
        return sharing.first_share(self._id, others, len(self._subscriptions.partitions))

    async def check(self) -> None:
        """Check that the database can be written; record that this process has released its partitions.

        Raises:
            DatabaseUnavailable: it cannot be written.
            Stopping: the database has another PARTITIONS than this process, which stops.
        """
        try:
            await self._heartbeats.stand_by()
        except ConfigurationError as error:
            self._ending.because(error)
            raise Stopping from error

    async def _run(self) -> None:
        while True:
            regular = not await happens(self._subscriptions.changed, self._pause())
            self._subscriptions.changed.clear()
            try:
                if self._subscriptions.consuming:
                    await self._look(regular=regular)
                else:
                    await self._heartbeats.stand_by()
                self._trouble = ""
            except Unavailable as error:
                if error.detail != self._trouble:
                    log.warning("not_sharing", code=error.code, reason=error.detail)
                self._trouble = error.detail
            except ConfigurationError as error:  # a backup was restored, or PARTITIONS changed during an outage
                self._ending.because(error)
            except Exception:
                log.exception("sharing_failed")

    def _pause(self) -> float:
        until_move = self._moved_at + self._period * _BETWEEN_MOVES - time.monotonic()
        return min(self._period, until_move) if until_move > 0 else self._period

    async def _look(self, *, regular: bool) -> None:
        """Record the partitions on which this process is active, and act on the records of the others."""
        others = await self._heartbeats.beat(self._subscriptions.active)
        mine = self._subscriptions.active
        if regular:
            await self._settle(sharing.contested(mine, others))
        number = sharing.surplus(mine, others)
        if number is not None and time.monotonic() >= self._moved_at + self._period * _BETWEEN_MOVES:
            self._moved_at = time.monotonic()
            self._subscriptions.hand_over(number)
        await self._probe_unclaimed(mine, others)

    async def _probe_unclaimed(self, mine: Sequence[int], others: Sequence[Peer]) -> None:
        for number in sharing.unclaimed(mine, others, len(self._subscriptions.partitions)):
            await self._subscriptions.probe(number)

    async def _settle(self, contested: Sequence[int]) -> None:
        """Probe partitions that two processes claim; if this one gets nothing until the next beat, it is inactive."""
        for number in contested:
            partition = self._subscriptions.partitions[number]
            if partition.delivered_at < self._asked.get(number, 0.0):
                partition.assume_inactive()
            self._asked[number] = time.monotonic()
            await self._subscriptions.probe(number)

    async def stop(self) -> None:
        """Stop sharing and delete the row, so that the others need not wait until it expires."""
        await self.end()
        with suppress(DatabaseUnavailable):
            await self._heartbeats.remove()

"""Publishes the outputs of committed rows: one relay for each destination."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from service.consumers import row_outputs
from service.consumers.relay import Relay, Source
from service.consumers.row_outputs import Output
from service.messaging import topology
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable
from service.messaging.topology import SENDS
from service.persistence import unpublished
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.unpublished import Part
from whatsapp_qr_contracts.jobs import IncomingJob, SendJob
from whatsapp_qr_contracts.message import EVENTS, Message
from whatsapp_qr_contracts.partitions import partition_of

Sources = Mapping[str, Sequence[Source]]
"""The rows that a kind of consumer publishes, by destination: only one kind for each pair of row and destination."""

OF_SESSIONS: Sources = {
    EVENTS: (Source(unpublished.COMMANDS, row_outputs.of_command), Source(unpublished.SESSIONS, row_outputs.of_session))
}
OF_CONVERSATIONS: Sources = {
    EVENTS: (
        Source(unpublished.CONVERSATIONS, row_outputs.of_conversation),
        Source(unpublished.RECEIVED, row_outputs.event_of),
        Source(unpublished.MESSAGE_COMMANDS, row_outputs.of_command),
    ),
    IncomingJob.name: (Source(unpublished.TO_THE_WORKERS, row_outputs.job_of),),
    SendJob.name: (Source(unpublished.TO_THE_LANES, row_outputs.job_of),),
}
OF_SENDING: Sources = {EVENTS: (Source(unpublished.STATUSES, row_outputs.event_of),)}

_SETTLE_SECONDS = 3.0


class Announcer:
    """Publishes committed outputs. A handler passes them to it and continues: it never waits for a destination."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        retry: RetryWhileUnavailable,
        sources: Sources,
        part: Callable[[], Part],
    ) -> None:
        self.confirmations = Confirmations(database)
        self._partitions, self._part = publisher.partitions, part
        self._relays: dict[str, Relay] = {}
        for name, rows in sources.items():
            parts = {name: part}
            if name == SENDS.name:  # each partition's queue may be full alone: it must not delay the other jobs
                parts = {SENDS.queue_name(n): partial(_one, part, n) for n in range(self._partitions)}
            for queue, of in parts.items():
                relay = Relay(
                    queue, publisher, database, retry, self.confirmations, rows, of, skips_refused=name == EVENTS
                )
                self._relays[queue] = relay

    def start(self) -> None:
        """Begin to publish; returns at once."""
        self.confirmations.start()
        for relay in self._relays.values():
            relay.start()

    @property
    def alive(self) -> bool:
        """Whether all its tasks run."""
        return self.confirmations.alive and all(relay.alive for relay in self._relays.values())

    def publish_soon(self, outputs: Sequence[Output]) -> None:
        """Publish committed outputs soon; those that are not confirmed are published from their rows.

        The same applies to outputs of a partition that this process has just lost: its next owner publishes the earlier
        ones.
        """
        owned = self._part().owned
        by_destination: dict[str, list[Output]] = defaultdict(list)
        for output in outputs:
            number = partition_of(output.message.partition_key, self._partitions)
            if number in owned:
                by_destination[_destination(output.message, number)].append(output)
        for name, some in by_destination.items():
            self._relays[name].publish_soon(some)

    async def published(self, seconds: float) -> None:
        """Wait, for at most so many seconds, until the waiting outputs are published."""
        await asyncio.gather(*(relay.settle(seconds) for relay in self._relays.values()))

    async def settle(self) -> None:
        """Publish waiting outputs and store confirmations, as far as that is possible soon.

        A process that takes a partition over reads its rows at once, and publishes again each output without a stored
        confirmation.
        """
        await self.published(_SETTLE_SECONDS)
        await self.confirmations.settle(_SETTLE_SECONDS)

    async def stop(self) -> None:
        """Settle, and end."""
        await self.settle()
        await asyncio.gather(*(relay.end() for relay in self._relays.values()))
        await self.confirmations.end()
        await self.confirmations.settle(_SETTLE_SECONDS)


def _destination(message: Message, number: int) -> str:
    return EVENTS if message.exchange == EVENTS else topology.routing_key(type(message), number)


def _one(part: Callable[[], Part], number: int) -> Part:
    whole = part()
    return replace(whole, owned={one: since for one, since in whole.owned.items() if one == number})

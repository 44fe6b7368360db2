"""Tells everybody what was committed: one relay for each destination."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from service.consumers import telling
from service.consumers.relay import Relay, Source
from service.consumers.telling import Output
from service.messaging import topology
from service.messaging.publishing import Publisher
from service.persistence import untold
from service.persistence.database import Database
from service.persistence.marks import Marks
from service.persistence.untold import Part
from whatsapp_qr_contracts.jobs import IncomingJob, SendJob
from whatsapp_qr_contracts.message import EVENTS

Sources = Mapping[str, Sequence[Source]]
"""By destination, the rows that a kind of consumer tells: one kind alone for each destination of a row."""

OF_SESSIONS: Sources = {
    EVENTS: (
        Source(partial(untold.commands, about_messages=False), telling.of_command),
        Source(untold.sessions, telling.of_session),
    )
}
OF_CONVERSATIONS: Sources = {
    EVENTS: (
        Source(untold.conversations, telling.of_conversation),
        Source(untold.received, telling.event_of),
        Source(partial(untold.commands, about_messages=True), telling.of_command),
    ),
    IncomingJob.name: (Source(untold.to_hand_over, telling.job_of),),
    SendJob.name: (Source(untold.to_enqueue, telling.job_of),),
}
OF_SENDING: Sources = {EVENTS: (Source(untold.statuses, telling.event_of),)}

_CLOSE_SECONDS = 5.0


class Announcer:
    """Tells what was committed. A handler gives it the outputs and goes on: it never waits for a destination.

    Args:
        database: the rows.
        publisher: publishes.
        sources: the rows that this kind of consumer tells.
        part: says which partitions this process owns.
    """

    def __init__(self, database: Database, publisher: Publisher, sources: Sources, part: Callable[[], Part]) -> None:
        self.marks = Marks(database)
        self._relays = {
            name: Relay(name, publisher, database, self.marks, rows, part, gives_up=name == EVENTS)
            for name, rows in sources.items()
        }

    def start(self) -> None:
        """Begin to tell; returns at once."""
        self.marks.start()
        for relay in self._relays.values():
            relay.start()

    @property
    def alive(self) -> bool:
        """Whether all its tasks are there."""
        return self.marks.alive and all(relay.alive for relay in self._relays.values())

    def tell(self, outputs: Sequence[Output]) -> None:
        """Publish what was committed, soon; what is not confirmed is told from its rows."""
        by_destination: dict[str, list[Output]] = defaultdict(list)
        for output in outputs:
            message = output.message
            by_destination[topology.destination(message.exchange, message.name)].append(output)
        for name, some in by_destination.items():
            self._relays[name].tell(some)

    async def stop(self) -> None:
        """Publish what waits, and write down what is confirmed."""
        await asyncio.gather(*(relay.close(_CLOSE_SECONDS) for relay in self._relays.values()))
        await self.marks.close()

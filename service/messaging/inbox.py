"""Delivered messages that wait to be handled: in order of arrival for each queue, fairly between the queues."""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import structlog
from aio_pika.exceptions import ChannelInvalidStateError

from service.messaging.connections import BROKER_TROUBLE
from service.tasks import happens

log = structlog.get_logger()

_SUSPICIOUS_DELIVERIES = 2


class Gate:
    """Tracks the deliveries in progress of one subscription; once closed, no further delivery begins."""

    def __init__(self) -> None:
        self.closed = False
        self._begun: dict[Delivery, None] = {}
        """In order of arrival; without those that have ended."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """How many have begun and not ended."""
        return len(self._begun)

    def enter(self, delivery: "Delivery") -> None:
        """Record that the handling of a delivery begins."""
        self._begun[delivery] = None
        self._idle.clear()

    def leave(self, delivery: "Delivery") -> None:
        """Record that the handling of a delivery has ended."""
        del self._begun[delivery]
        if not self._begun:
            self._idle.set()

    def is_all_before(self, last: "Delivery", ended: Collection["Delivery"]) -> bool:
        """Return whether a delivery and all that began before it are among those that are about to end."""
        for delivery in self._begun:
            if delivery not in ended:
                return False
            if delivery is last:
                return True
        return False

    async def close(self, seconds: float) -> None:
        """Let no delivery begin any more and wait, for at most so many seconds, until those in progress have ended."""
        self.closed = True
        if not await happens(self._idle, seconds):
            log.warning("released_with_work_in_progress", running=self.running)


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One delivery of a message."""

    raw: Any
    number: int
    gate: Gate

    @property
    def is_void(self) -> bool:
        """Whether it will be delivered again, here or elsewhere: its channel is closed or its partition released."""
        try:
            return self.gate.closed or bool(self.raw.channel.is_closed)
        except ChannelInvalidStateError:  # a message has no channel once that is closed
            return True

    @property
    def is_suspicious(self) -> bool:
        """Whether processes ended, or lost their connection, several times while they handled it."""
        count = (self.raw.headers or {}).get("x-delivery-count", 0)
        return isinstance(count, int) and count >= _SUSPICIOUS_DELIVERIES

    async def acknowledge(self, *, multiple: bool = False) -> None:
        """Acknowledge it, or all deliveries of its channel up to it; if that is not possible, it is delivered again."""
        try:
            await self.raw.ack(multiple=multiple)
        except BROKER_TROUBLE as error:
            log.info("ack_lost", error=repr(error))


class Inbox:
    """The waiting deliveries of several queues."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Delivery]] = {}
        self._some = asyncio.Event()

    def add(self, delivery: Delivery) -> None:
        """Append a delivery to those of its queue."""
        self._waiting.setdefault(delivery.number, deque()).append(delivery)
        self._some.set()

    async def take(self, most: int) -> list[Delivery]:
        """Wait for deliveries; return the first of each queue in turn, and count them as begun.

        A suspicious delivery is returned alone.
        """
        while True:
            await self._some.wait()
            taken = self._take(most)
            if taken:
                return taken
            self._some.clear()

    def _take(self, most: int) -> list[Delivery]:
        taken: list[Delivery] = []
        for last in list(self._waiting)[:1]:  # rotate: a suspicious delivery is taken only from the first queue
            self._waiting[last] = self._waiting.pop(last)
        queues = [waiting for waiting in self._waiting.values() if waiting]
        while queues:
            for waiting in list(queues):
                while waiting and waiting[0].is_void:
                    waiting.popleft()
                if not waiting or (waiting[0].is_suspicious and taken):
                    queues.remove(waiting)
                    continue
                delivery = waiting.popleft()
                delivery.gate.enter(delivery)
                taken.append(delivery)
                if delivery.is_suspicious or len(taken) == most:
                    return taken
        return taken

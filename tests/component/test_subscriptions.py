"""Giving up and returning, with partitions that only remember: what must hold whatever the client library does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import BrokerUnavailable, DatabaseUnavailable
from service.messaging import subscriptions as subscriptions_module
from service.messaging import topology
from service.messaging.envelope import Properties
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.messaging.subscriptions import Subscriptions
from tests.system import SECONDS, eventually


class Remembering:
    """Stands for a partition: started or not; `trouble` is what closing it raises, once."""

    def __init__(self, number: int, log: list[str]) -> None:
        self.name = str(number)
        self.started = self.subscribed = self.active = False
        self.delivers = False
        self.trouble: BaseException | None = None
        self._log = log

    async def start(self) -> None:
        self._log.append(f"start {self.name}")
        self.started = self.subscribed = True
        self.active = self.delivers

    async def release(self, _seconds: float) -> None:
        self._log.append(f"give up {self.name}")
        self.started = self.subscribed = self.active = False
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble


class World:
    """Three partitions in one process, and the publisher of their probes: `log` is what happened, in order."""

    partitions = 3

    def __init__(self, *, away: bool) -> None:
        self.log: list[str] = []
        self.away = away
        self.stand_ins = [Remembering(number, self.log) for number in range(self.partitions)]
        self.retry = RetryWhileUnavailable(patience=0.05)
        parts: Any = (self.stand_ins, self, self.retry, asyncio.Event())
        self.subscriptions = Subscriptions("amqp://nowhere/", *parts)

    async def publish_raw(self, _body: bytes, *, routing_key: str, properties: Properties, **_: str) -> None:
        assert properties.type == topology.PROBE
        self.log.append(f"probe {routing_key}")
        if self.away:
            raise BrokerUnavailable("away")

    async def logged(self, count: int) -> list[str]:
        async def log() -> list[str]:
            return self.log

        return list(await eventually(log, lambda found: len(found) >= count))


async def _nothing(*_: object) -> None: ...


@asynccontextmanager
async def subscribed(
    monkeypatch: pytest.MonkeyPatch, own: Sequence[int] = range(3), *, away: bool = False
) -> AsyncIterator[World]:
    """Subscribe to three partitions, to `own` before the others."""
    monkeypatch.setattr(topology, "declare", _nothing)
    monkeypatch.setattr(subscriptions_module, "_OTHERS_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(subscriptions_module, "_STAND_BY_SECONDS", 0.0)
    monkeypatch.setattr(subscriptions_module, "_QUIET_SECONDS", 0.0)
    world = World(away=away)

    async def share() -> Sequence[int]:
        return own

    world.subscriptions.start(share, _nothing)
    await world.logged(6)
    yield world
    await asyncio.wait_for(world.subscriptions.stop(), SECONDS)


@pytest.mark.parametrize("away", [False, True])
async def test_what_is_subscribed_to_is_probed(monkeypatch: pytest.MonkeyPatch, *, away: bool) -> None:
    """At once, so that the owner of a quiet partition knows it; without one the next delivery does."""
    async with subscribed(monkeypatch, [2], away=away) as world:
        assert world.log == ["start 2", "probe 2", "start 0", "start 1", "probe 0", "probe 1"]


async def test_a_backlog_gets_no_probe_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was delivered tells the owner: else each start in a crash loop would leave one message more."""
    async with subscribed(monkeypatch) as world:
        await world.subscriptions._release(SECONDS)
        world.stand_ins[1].delivers = True
        await world.subscriptions._subscribe(longest=1)
        assert world.log[9:] == ["start 0", "start 1", "start 2", "probe 0", "probe 2"]


async def test_what_is_handed_over_is_probed_for_its_next_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is given up, and again once this process stands by for it; the others stay."""
    async with subscribed(monkeypatch) as world:
        world.stand_ins[1].active = True  # until it is given up
        world.subscriptions.hand_over(1)
        assert (await world.logged(10))[6:] == ["give up 1", "probe 1", "start 1", "probe 1"]


@pytest.mark.parametrize("trouble", [asyncio.CancelledError("by nobody"), RuntimeError("a bug")], ids=repr)
async def test_everything_returns_whatever_closing_a_partition_raises(
    monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    """Aiormq cancels what waits for a stuck connection: a partition that closes badly keeps no other one away."""

    async def away() -> None:
        raise DatabaseUnavailable("no database")

    async with subscribed(monkeypatch) as world:
        world.stand_ins[1].trouble = trouble
        with pytest.raises(Stopping):
            await world.retry(away)
        everything = [f"{what} {number}" for what in ("start", "probe") for number in range(3)]
        assert (await world.logged(15))[6:] == ["give up 0", "give up 1", "give up 2", *everything]
        assert not world.retry._leaving.is_set()
        assert world.subscriptions.ready

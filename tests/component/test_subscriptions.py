"""Giving up and returning, with partitions that only remember: what must hold whatever the client library does."""

import asyncio
from typing import Any

import pytest

from service.errors import DatabaseUnavailable
from service.messaging import topology
from service.messaging.holding import Hold, Stopping
from service.messaging.subscriptions import Subscriptions
from tests.system import SECONDS, eventually


class Remembering:
    """Stands for a partition: started or not; `trouble` is what closing it raises, once."""

    def __init__(self, number: int) -> None:
        self.name = f"partition {number}"
        self.started = self.subscribed = self.active = False
        self.starts = 0
        self.trouble: BaseException | None = None
        self.on_active: Any = None

    async def start(self) -> None:
        self.started = self.subscribed = True
        self.starts += 1

    async def give_up(self, _seconds: float) -> None:
        self.started = self.subscribed = False
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble


@pytest.mark.parametrize("trouble", [asyncio.CancelledError("by nobody"), RuntimeError("a bug")], ids=repr)
async def test_everything_returns_whatever_closing_a_partition_raises(
    monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    """Aiormq cancels what waits for a stuck connection: a partition that closes badly keeps no other one away."""

    async def declared(*_: object) -> None: ...

    monkeypatch.setattr(topology, "declare", declared)
    partitions = [Remembering(number) for number in range(3)]
    hold = Hold(patience=0.05)
    nobody: Any = None
    subscriptions = Subscriptions("amqp://nowhere/", partitions, nobody, hold)  # type: ignore[arg-type]

    async def share() -> range:
        return range(3)

    async def away() -> None:
        detail = "no database"
        raise DatabaseUnavailable(detail)

    subscriptions.start(share, declared)

    async def starts() -> list[int]:
        return [partition.starts for partition in partitions]

    await eventually(starts, lambda found: found == [1, 1, 1])
    partitions[1].trouble = trouble
    with pytest.raises(Stopping):
        await hold(away)
    await eventually(starts, lambda found: found == [2, 2, 2])
    assert not hold.left
    assert subscriptions.ready
    await asyncio.wait_for(subscriptions.stop(), SECONDS)

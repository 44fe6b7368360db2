"""One harm in one deployment: neighbours are measured while all is quiet, then while the harm goes on, and compared."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import pytest

from tests.neighbours.deployment import Deployment
from tests.neighbours.judging import Line, lines, percentile
from tests.neighbours.load import Kind, Load, Mix, Sample
from tests.neighbours.table import MEASURED, table
from whatsapp_qr_contracts.message import COMMANDS

SAMPLES = int(os.environ.get("SAMPLES", "500"))
"""At least so many are given while the harm goes on."""
RATE = float(os.environ.get("RATE", "30"))
"""Samples a second: two cores that do nothing else carry that and all that measures it."""
_QUIET = 10.0
_CALM = 0.5
_TRIES = 3
_HARMED = 1.05 * SAMPLES / RATE
_MARGIN = 1.5
_SETTLED = 15.0
_HEALED = 120.0

NAMES = {"postgres": "PostgreSQL", "sqlite": "SQLite"}
T = TypeVar("T")
Record = Callable[[str, Any], None]
Begin = Callable[..., AbstractAsyncContextManager["Measurement"]]
"""The fixture `begin`: begins a measurement in a deployment, told the harm's name."""


class Measurement:
    """Measures and judges; `measurement` makes one.

    Args:
        load: gives the samples.
        harm: what is tried.
        partitions: whether the harm is in a partition.
        record: keeps the lines for the table.
    """

    def __init__(self, load: Load, harm: str, record: Record, *, partitions: bool) -> None:
        self.deployment = load.deployment
        self.samples: list[Sample] = []
        self._load = load
        self._harm = harm
        self._partitions = partitions
        self._record = record
        self._quiet: list[Sample] = []

    async def quiet(self) -> None:
        """Measure while nothing else goes on; the first calls are not counted: connections are made then.

        Where the machine is so busy with other things that the limits would say nothing, it is measured again.
        """
        await self._load.arrived(await self._load.give(lambda count, _: count < RATE), _MARGIN)
        for _ in range(_TRIES):
            self._quiet = await self._load.give(lambda _, seconds: seconds < _QUIET)
            await self._load.arrived(self._quiet, _MARGIN)
            if percentile([one.seconds for one in self._load.timed(self._quiet, partitions=False)], 0.99) < _CALM:
                return

    def leave_out(self, kind: Kind) -> None:
        """Give no more samples of a kind: it was there only for what it leaves behind."""
        self._load.mix = {one: share for one, share in self._load.mix.items() if one is not kind}

    async def during(self, harm: Awaitable[Any] | None = None) -> None:
        """Measure while the harm goes on: what is awaited here at the same time, or what was done before."""
        work = asyncio.ensure_future(harm) if harm is not None else None
        self.samples += await self._load.give(lambda _, seconds: seconds < _HARMED)
        if work is not None:
            await work

    async def while_it_lasts(
        self, harm: Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[T]]]], *, samples: int = SAMPLES
    ) -> list[T]:
        """Measure only while the harm is being done, which is repeated until there are samples enough.

        Args:
            harm: makes ready, and gives what does it.
            samples: how many are enough.
        """
        results = []
        while len(self.samples) < samples:
            async with harm() as begin:
                work = asyncio.ensure_future(begin())
                self.samples += await self._load.give(partial(_lasts, work))
                results.append(await work)
            await self._load.arrived(self.samples, _SETTLED)  # making ready keeps this process from hearing them
        return results

    async def judge(self, *, put_in: int = 0, rate: float = math.inf) -> None:
        """Compare, and keep the lines for the table; fail where a neighbour noticed too much.

        Args:
            put_in: how many messages the harm put into its partition at a time.
            rate: how many the service takes in per second.
        """
        assert len(self.samples) >= SAMPLES
        quiet = self._load.timed(self._quiet, partitions=False)

        def found() -> list[Line]:
            during = self._load.timed(self.samples, partitions=self._partitions)
            return lines(self._harm, NAMES[self.deployment.database], quiet, during, put_in=put_in, rate=rate)

        await self._load.arrived(self.samples, max(line["limit"] for line in found()) + _MARGIN)
        judged = found()
        self._record(MEASURED, judged)
        bad = [line for line in judged if not line["in_time"]]
        if bad:
            pytest.fail(f"neighbours were disturbed:\n{table(bad)}", pytrace=False)

    async def healed(self) -> None:
        """Wait until everything that neighbours gave has arrived."""
        left = await self._load.arrived(self.samples, _HEALED)
        assert not left, f"{len(left)} samples never arrived, the first of them: {left[0]}"


def _lasts(work: asyncio.Future[Any], _count: int, _seconds: float) -> bool:
    return not work.done()


@asynccontextmanager
async def measure(
    deployment: Deployment,
    harm: str,
    mix: Mix,
    request: pytest.FixtureRequest,
    *,
    partitions: bool = True,
    shared: Collection[Kind] = (),
    rate: float = RATE,
) -> AsyncIterator[Measurement]:
    """Begin a measurement; see `Load` for `shared` and `rate`, and `Measurement` for the rest."""

    def record(name: str, value: Any) -> None:
        request.node.user_properties.append((name, value))

    async with deployment.channel() as channel:
        load = Load(deployment, mix, rate, await channel.get_exchange(COMMANDS, ensure=False), shared)
        one = Measurement(load, harm, record, partitions=partitions)
        await one.quiet()
        yield one

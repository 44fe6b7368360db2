"""One run: load and faults together, then everything well again, then the judge."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.checker import Verdict, judge
from tests.faults.deployment import Deployment, a_deployment
from tests.faults.fault_catalogue import MAY_FAIL
from tests.faults.load import Load
from tests.faults.other_traffic import OtherTraffic
from tests.faults.schedule import Planned
from tests.servers import Broker, Postgres


@dataclass(frozen=True)
class Outcome:
    """What a run has shown."""

    verdict: Verdict
    seconds: float
    settled_after: float
    """Seconds from the end of load and faults until nothing was left to do."""


@dataclass(frozen=True)
class Size:
    """How much a run does."""

    links: int
    """Chatbots that are linked."""
    messages: int
    """That each sends, and that its customer writes."""
    seconds: float
    """In which they are given if all goes well."""
    patience: float = 120.0
    """Seconds without any news after which it is not waited for any more."""


FULL = Size(links=6, messages=44, seconds=35)


async def run(
    broker: Broker,
    postgres: Postgres | None,
    folder: Path,
    faults: Sequence[Planned],
    *,
    seed: int = 0,
    size: Size = FULL,
    **settings: Any,
) -> Outcome:
    """Play a schedule and judge what has become of everything; for `settings` see `a_deployment`."""
    started = time.monotonic()
    async with a_deployment(broker, postgres, folder, **settings) as deployment:
        load = Load(
            deployment.system,
            deployment.broker_url,
            deployment.ledger,
            random.Random(seed),
            size.messages,
            size.seconds,
        )
        await load.link(size.links)
        deployment.ledger.may_fail = {
            code: share for planned in faults for code, share in MAY_FAIL.get(planned.name, {}).items()
        }
        await asyncio.gather(load.run(), OtherTraffic(load).run(), _suffer(deployment, faults))
        await load.close()
        await deployment.ready()
        settled_after = await deployment.settled(size.patience)
        verdict = judge(deployment.ledger, await deployment.facts())
    return Outcome(verdict, time.monotonic() - started, settled_after)


async def _suffer(deployment: Deployment, faults: Sequence[Planned]) -> None:
    """Let each fault come when it is due; the same one never meets itself."""
    meeting: dict[str, asyncio.Lock] = {}

    async def suffer(planned: Planned) -> None:
        # What is done to one server cannot be done to it twice at a time.
        one_at_a_time = meeting.setdefault(planned.name.split()[0].removesuffix("'s"), asyncio.Lock())
        async with one_at_a_time, planned.fault(deployment, random.Random(planned.seed)):
            await asyncio.sleep(planned.lasts)

    async with asyncio.TaskGroup() as suffering:
        for planned in faults:
            await asyncio.sleep(planned.pause)
            suffering.create_task(suffer(planned))

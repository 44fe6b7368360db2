"""Whatever is away for a whole minute: work waits, nothing becomes a dead letter for it, and all resumes by itself."""

from pathlib import Path

import pytest

from tests.faults.fault_catalogue import ANYWHERE
from tests.faults.run import Size, run
from tests.faults.schedule import Planned
from tests.servers import Broker, Postgres

A_MINUTE = 60.0
SIZE = Size(links=4, messages=40, seconds=70)


@pytest.mark.long
@pytest.mark.parametrize("name", ["database away", "gateway away", "broker restarted", "gateway refuses"])
async def test_a_minute_away(name: str, postgres: Postgres | None, breakable_broker: Broker, tmp_path: Path) -> None:
    """Messages are given all the time; at the end each has arrived, once and in order."""
    faults = [Planned(name, ANYWHERE[name], pause=3, lasts=A_MINUTE, seed=0)]
    outcome = await run(breakable_broker, postgres, tmp_path, faults, size=SIZE)
    assert outcome.verdict.faults == []

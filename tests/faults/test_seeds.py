"""Random schedules of faults: nothing lost, nothing doubled, nothing out of order, whatever comes together."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.run import run
from tests.faults.schedule import schedule, skews
from tests.faults.table import RUN, Line
from tests.servers import Broker, Postgres

FIRST = int(os.environ.get("FIRST_SEED", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("SEEDS", "1")))
FAULTS_PER_RUN = 10


@pytest.mark.one_database("postgres")
@pytest.mark.parametrize("seed", SEEDS)
async def test_seed(
    seed: int,
    postgres: Postgres | None,
    breakable_broker: Broker,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A run with the faults of a seed keeps every promise."""
    faults = schedule(seed, postgres=postgres is not None, count=FAULTS_PER_RUN)
    clocks = skews(seed) if postgres else {}  # SQLite means one machine and one clock
    outcome = await run(breakable_broker, postgres, tmp_path, faults, seed=seed, skews=clocks)
    verdict = outcome.verdict
    line = Line(
        database="PostgreSQL" if postgres else "SQLite",
        seed=seed,
        accepted=verdict.accepted,
        faults=len(faults),
        lost=len(verdict.lost),
        doubled=len(verdict.doubled),
        disordered=len(verdict.disordered),
        wrong=len(verdict.wrong),
        unknown=len(verdict.unknown),
        seconds=round(outcome.seconds),
        settled_after=round(outcome.settled_after),
    )
    record_property(RUN, line)
    names = ", ".join(planned.name for planned in faults)
    assert verdict.faults == [], f"seed {seed} with {names}: {verdict}"

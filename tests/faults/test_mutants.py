"""The judge is shown to find what it looks for: with each of these defects the same run goes red."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.faults.deployment import Deployment
from tests.faults.fault_catalogue import ANYWHERE, Fault, failing
from tests.faults.harms import flagged, rolled_out
from tests.faults.mutants import MUTANTS
from tests.faults.run import Size, run
from tests.faults.schedule import Planned
from tests.servers import Broker
from tests.system import eventually

SMALL = Size(links=4, messages=24, seconds=8)
# Each of several kills needs traffic: it comes when a process has something to tell.
LONGER = Size(links=4, messages=90, seconds=30)
# What a defect loses the sweeper may find again: it is another's work that is judged here.
NO_SWEEPER = {"SWEEP_AGE": "3600", "SWEEP_PERIOD": "3600"}


def killed_at(process: str, handler: str, step: int | str) -> Fault:
    """Return the fault that whoever comes to this step, a number or a kind, is killed."""

    @asynccontextmanager
    async def fault(deployment: Deployment, _dice: Random) -> AsyncIterator[None]:
        plan = deployment.flags / "crash"
        plan.write_text(f"{process} {handler} {step}")

        async def claimed() -> bool:
            return not plan.exists()

        await eventually(claimed)
        yield

    return fault


@asynccontextmanager
async def killed_while_refused(deployment: Deployment, dice: Random) -> AsyncIterator[None]:
    """Kill a process that has left jobs in their rows; what they follow from is acknowledged."""
    kill = killed_at("conversation-consumer", "look incoming-messages", "page")
    async with flagged("refused")(deployment, dice), kill(deployment, dice):
        yield


def rolled_senders(deployment: Deployment, dice: Random) -> AbstractAsyncContextManager[None]:
    """Replace both outbound consumers, one after another."""
    return rolled_out(deployment, dice, "outbound-consumer")


def planned(name: str, fault: Fault, *, pause: float = 1.0, lasts: float = 0.2) -> Planned:
    """Return a fault with its time."""
    return Planned(name, fault, pause, lasts, seed=0)


def of_the_menu(name: str, *, pause: float = 1.0, lasts: float = 0.2) -> Planned:
    """Return a fault of the catalogue with its time."""
    return planned(name, ANYWHERE[name], pause=pause, lasts=lasts)


UNPUBLISHED = [planned("killed while jobs are refused", killed_while_refused, pause=2) for _ in range(3)]
# Acknowledged first, that is the commit; else it is what comes after.
AFTER_AN_ACK = [planned("killed at", killed_at("conversation-consumer", "gateway.message", 3)) for _ in range(3)]
BLACK_HOLES = [of_the_menu("broker in a black hole", lasts=2.0), of_the_menu("broker in a black hole", lasts=2.0)]
# Who is told to end gives its partitions up at once, and waits for what is on its way. A gateway with ids of its own
# takes a repetition for another message: see the limits of G6.
TWO_SENDERS = [
    planned("gateway has ids of its own", failing(ownIds=True, latency=0.8), pause=0, lasts=12),
    *(planned("rolling", rolled_senders, pause=3) for _ in range(2)),
]
BACKLOG = [of_the_menu("database away", pause=1, lasts=25)]  # one writer after another gives up, 5 s each
# Its status stays well: a session that an old report ends, where nobody contradicts that, is given nothing meanwhile,
# and what is given afterwards wakes its lane.
NOTHING_GOES_OUT = [
    planned("gateway says not connected", failing(failureRate=1, failureKind="not_connected"), pause=4, lasts=12)
]
FULL = [of_the_menu("broker's queue of jobs full", lasts=8)]
REFUSED = [of_the_menu("broker's refusal of a job", lasts=8)]
UNSURE = [of_the_menu("database's answers lost", lasts=8)]

CASES = {
    "skips duplicates": (UNSURE, "disordered"),
    "acknowledges first": (AFTER_AN_ACK, "lost"),
    "reverses batches": (BACKLOG, "disordered"),
    "publishes unconfirmed": (BLACK_HOLES, "lost"),
    "claims too briefly": (TWO_SENDERS, "doubled"),
    "forgets due lanes": (NOTHING_GOES_OUT, "wrong"),
    "forgets at take-over": (UNPUBLISHED, "disordered"),
    "overtakes": (FULL, "disordered"),
    "publishes side by side": (REFUSED, "disordered"),
    "marks first": (BLACK_HOLES, "lost"),
}


def test_every_mutant_has_its_case() -> None:
    """None is forgotten."""
    assert CASES.keys() == MUTANTS.keys()


@pytest.mark.long
@pytest.mark.parametrize("mutant", CASES)
async def test_a_mutant_is_found(mutant: str, breakable_broker: Broker, tmp_path: Path) -> None:
    """With the defect the judge finds what it does; the same faults without it are survived."""
    faults, found = CASES[mutant]
    small = LONGER if faults is UNPUBLISHED else SMALL
    folders = tmp_path / "well", tmp_path / "ill"
    for folder in folders:
        folder.mkdir()
    well = await run(breakable_broker, None, folders[0], faults, size=small, **NO_SWEEPER)
    assert well.verdict.faults == []
    await breakable_broker.renew()
    # Enough to be sure of what it finds; much of what is lost would never settle.
    size = replace(small, patience=25 + sum(planned.lasts for planned in faults))
    ill = await run(breakable_broker, None, folders[1], faults, size=size, mutant=mutant, **NO_SWEEPER)
    assert getattr(ill.verdict, found), ill.verdict

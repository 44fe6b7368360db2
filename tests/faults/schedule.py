"""The schedule of a run: which faults come when and for how long, all decided by the seed."""

import random
from dataclasses import dataclass

from tests.faults.deployment import CAST
from tests.faults.fault_catalogue import ANYWHERE, ON_POSTGRES, ON_SQLITE, Fault

_SKEW_SECONDS = 600
_LASTS = (1.5, 7.0)
# Longer than what the service waits for: a claim, the broker's heartbeats, SQLite's own line of waiting writers.
_LASTS_LONGER = {"a process hanging": (12.0, 20.0), "database away": (5.0, 14.0)}


@dataclass(frozen=True)
class Planned:
    """One fault of a schedule."""

    name: str
    fault: Fault
    pause: float
    """Seconds after the one before has begun."""
    lasts: float
    """Seconds."""
    seed: int


def schedule(seed: int, *, postgres: bool, count: int) -> list[Planned]:
    """Return so many faults, those of the seeds before and after this one mostly left out: all come in turn."""
    dice = random.Random(seed)
    fault_catalogue = ANYWHERE | (ON_POSTGRES if postgres else ON_SQLITE)
    names = sorted(fault_catalogue)
    # Half in turn, so that a few seeds have met everything; half by chance, so that every pair may meet.
    chosen = [names[(seed * (count // 2) + place) % len(names)] for place in range(count // 2)]
    chosen += dice.choices(names, k=count - len(chosen))
    dice.shuffle(chosen)
    return [
        Planned(
            name,
            fault_catalogue[name],
            dice.uniform(1, 4),
            dice.uniform(*_LASTS_LONGER.get(name, _LASTS)),
            dice.getrandbits(32),
        )
        for name in chosen
    ]


def skews(seed: int) -> dict[str, int]:
    """Return the seconds by which the clock of each process is wrong."""
    dice = random.Random(seed)
    return {f"{name} {number}": dice.choice((-_SKEW_SECONDS, 0, _SKEW_SECONDS)) for number, name in enumerate(CAST)}

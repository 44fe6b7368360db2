"""What a neighbour may notice: percentiles, the limits, and the lines of the table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

Place = Literal["same", "other", "all"]
"""Where a neighbour stands: behind the harm in a queue, in another partition, or anywhere, where the harm has none."""

TIMES = 2.0
SECONDS = 0.25
"""p99 may be so many times that of the quiet measurement, or so much longer, whichever is more."""


@dataclass(frozen=True)
class Timed:
    """One sample: how long it took, in seconds; without end where it was refused or has not arrived."""

    kind: str
    place: Place
    seconds: float


class Line(TypedDict):
    """A line of the table; times in seconds."""

    harm: str
    database: str
    kind: str
    place: Place
    quiet: tuple[float, float]
    """p50 and p99."""
    harmed: tuple[float, float]
    limit: float
    samples: int
    late: int
    """Those that had not arrived when the measurement was over."""
    in_time: bool


def percentile(found: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: the least value that so large a share does not exceed."""
    return sorted(found)[max(0, math.ceil(share * len(found)) - 1)]


def pair(found: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99."""
    return percentile(found, 0.5), percentile(found, 0.99)


def limit(quiet_p99: float, place: Place, *, put_in: int, rate: float) -> float:
    """Return the limit of p99.

    Args:
        quiet_p99: while all was quiet.
        place: in the harm's own partition what was put in there may have to be taken in first.
        put_in: messages of the harm.
        rate: how many the service takes in per second.
    """
    strict = max(TIMES * quiet_p99, quiet_p99 + SECONDS)
    return strict + put_in / rate if place == "same" else strict


def lines(
    harm: str, database: str, quiet: Iterable[Timed], harmed: Iterable[Timed], *, put_in: int = 0, rate: float = 1.0
) -> list[Line]:
    """Return a line for each kind of sample in each place.

    Raises:
        ValueError: what should have been quiet was not.
    """
    before, during = list(quiet), list(harmed)
    found: list[Line] = []
    for kind, place in sorted({(one.kind, one.place) for one in during}):
        calm = pair([one.seconds for one in before if one.kind == kind])
        if math.isinf(calm[1]):
            raise ValueError(f"{kind}: not even while all was quiet did 99 of 100 arrive")
        took = [one.seconds for one in during if (one.kind, one.place) == (kind, place)]
        most = limit(calm[1], place, put_in=put_in, rate=rate)
        found.append(
            Line(
                harm=harm,
                database=database,
                kind=kind,
                place=place,
                quiet=calm,
                harmed=pair(took),
                limit=most,
                samples=len(took),
                late=sum(map(math.isinf, took)),
                in_time=pair(took)[1] <= most,
            )
        )
    return found

"""The judge sees what is too late."""

import math

import pytest

from tests.neighbours.judging import SECONDS, Timed, limit, lines, percentile


def timed(*seconds: float, place: str = "other") -> list[Timed]:
    return [Timed("a sample", place, one) for one in seconds]  # type: ignore[arg-type]


def test_percentiles_are_values_that_were_seen() -> None:
    """Of 200 samples the second largest is p99."""
    assert percentile(range(1, 201), 0.99) == 198
    assert percentile(range(1, 201), 0.5) == 100
    assert percentile([7.0], 0.99) == 7.0


def test_the_limit_is_the_more_generous_of_two() -> None:
    """Twice, or a quarter of a second more; in the harm's own partition also what was put in."""
    assert limit(0.1, "other", put_in=3000, rate=100) == 0.1 + SECONDS
    assert limit(1.0, "all", put_in=3000, rate=100) == 2.0
    assert limit(1.0, "same", put_in=3000, rate=100) == 32.0


def test_what_is_late_is_seen() -> None:
    """More than one of a hundred beyond the limit is too many; what never arrived is beyond any."""
    quiet = timed(*[0.1] * 100)
    (good,) = lines("h", "d", quiet, timed(*[0.1] * 99, 9.0))
    (bad,) = lines("h", "d", quiet, timed(*[0.1] * 98, 9.0, math.inf))
    assert good["in_time"]
    assert not bad["in_time"]
    assert bad["late"] == 1
    assert math.isinf(lines("h", "d", quiet, timed(math.inf))[0]["harmed"][1])


def test_a_quiet_time_has_to_be_quiet() -> None:
    """Nothing is compared with a measurement that failed."""
    with pytest.raises(ValueError, match="not even while all was quiet"):
        lines("h", "d", timed(math.inf), timed(0.1))

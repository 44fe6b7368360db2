"""The code stays as easy to read as it is: see tests/counts.py."""

import pytest

from tests.counts import Count, counts


@pytest.mark.parametrize("count", counts(), ids=lambda count: count.what)
def test_no_count_is_over_its_limit(count: Count) -> None:
    """What rises above its limit is mended, or the limit is argued for in a commit of its own."""
    assert count.within, f"{count.what}: {count.value:.4g}, at most {count.limit}"

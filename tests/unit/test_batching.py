"""How large batches are: never so large that others wait for long."""

from service.domain import batching
from service.domain.batching import LARGEST, next_size


def test_a_slow_batch_is_followed_by_half_of_it() -> None:
    """Down to a few; a single message that takes long says nothing about batches."""
    sizes = [LARGEST]
    for _ in range(7):
        sizes.append(next_size(sizes[-1], sizes[-1], batching._SECONDS * 2))
    assert sizes == [200, 100, 50, 25, 20, 20, 20, 20]
    assert next_size(LARGEST, 60, batching._SECONDS * 2) == 30
    assert next_size(LARGEST, 1, 60.0) == LARGEST


def test_a_full_batch_that_was_quick_is_followed_by_twice_as_many() -> None:
    """Up to the most; where fewer waited than might have been taken nothing changes."""
    assert next_size(5, 5, 0.0) == 10
    assert next_size(150, 150, 0.0) == next_size(LARGEST, LARGEST, 0.0) == LARGEST
    assert next_size(40, 39, 0.0) == 40

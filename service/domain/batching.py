"""The size of a batch: small enough that messages waiting for its end are not delayed noticeably."""

LARGEST = 200
_SMALLEST = 20
# A new message waits for the batch before its own, in several processes one after another. Smaller batches cost more.
_SECONDS = 0.05


def next_size(most: int, taken: int, seconds: float) -> int:
    """Return how many messages the next batch may take.

    Args:
        most: the limit of the last batch.
        taken: how many it took.
        seconds: how long they took.
    """
    if seconds > _SECONDS:
        return max(_SMALLEST, taken // 2) if taken > _SMALLEST else most
    return min(LARGEST, 2 * most) if taken == most else most

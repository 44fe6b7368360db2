"""How many messages a batch takes: as many as can be done before others, who wait for its end, notice it."""

LARGEST = 200
_SMALLEST = 20
# What comes waits for the batch before its own, in several processes one after another. Smaller batches cost more.
_SECONDS = 0.05


def next_size(most: int, taken: int, seconds: float) -> int:
    """Return how many messages the next batch may take.

    Args:
        most: how many the last one might have taken.
        taken: how many it took.
        seconds: how long they took.
    """
    if seconds > _SECONDS:
        return max(_SMALLEST, taken // 2) if taken > _SMALLEST else most
    return min(LARGEST, 2 * most) if taken == most else most

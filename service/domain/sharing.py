"""How processes of a kind share the partitions of their queue. The broker alone decides who is active on one.

All of this may be decided on stale or missing facts: a wrong decision costs one needless hand-over, never a message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """A live process of the kind, as its heartbeat row tells."""

    id: str
    active: frozenset[int]
    """Partitions that it says it is active on."""


def first_share(me: str, peers: Iterable[Peer], partitions: int) -> list[int]:
    """Return the partitions that a process subscribes to before the others: its share by rank.

    Processes that start together so wait at the head of the line for different partitions.
    """
    ranked = sorted({peer.id for peer in peers} | {me})
    return list(range(ranked.index(me), partitions, len(ranked)))


def surplus(mine: Sequence[int], others: Iterable[Peer]) -> int | None:
    """Return the partition to give up, or None: somebody else must have at least two fewer.

    The broker gives it to whoever waits longest for it, who need not be the one that has too few. Giving up the
    partition that came last lets the same one travel on, to somebody who has not had it, until it is where it is
    needed: a process with too few never gives one up, so it only moves forward in every line.

    Args:
        mine: partitions that this process is active on, in the order in which they came.
        others: the other live processes.
    """
    fewest = min((len(other.active) for other in others), default=len(mine))
    return mine[-1] if len(mine) - fewest >= 2 else None  # noqa: PLR2004  # with one fewer they would only swap


def unclaimed(mine: Iterable[int], others: Iterable[Peer], partitions: int) -> list[int]:
    """Return the partitions of which nobody alive says that he is active on them."""
    claimed = set(mine).union(*(other.active for other in others))
    return [number for number in range(partitions) if number not in claimed]


def contested(mine: Iterable[int], others: Iterable[Peer]) -> list[int]:
    """Return the partitions on which this process and another both believe that they are active."""
    claimed = frozenset[int]().union(*(other.active for other in others))
    return [number for number in mine if number in claimed]

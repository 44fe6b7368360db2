"""The distribution of a queue's partitions over the processes of a kind. Only the broker chooses the active process.

Decisions may use stale or missing data: a wrong one costs one unnecessary hand-over, never a message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """A live process of the kind, from its heartbeat row."""

    id: str
    active: frozenset[int]
    """Partitions on which it reports to be active."""


def first_share(me: str, peers: Iterable[Peer], partitions: int) -> list[int]:
    """Return the partitions to which a process subscribes before the others: its share by rank.

    So processes that start together are first in line for different partitions.
    """
    ranked = sorted({peer.id for peer in peers} | {me})
    return list(range(ranked.index(me), partitions, len(ranked)))


def surplus(mine: Sequence[int], others: Iterable[Peer]) -> int | None:
    """Return the partition to release, or None: another process must have at least two fewer.

    The broker gives it to the process that has waited longest, which need not be the one with too few. The partition
    that came last is released, so that the same one moves on, to a process that has not had it, until it reaches the
    one that needs it: a process with too few never releases one, so it only moves forward in every queue of waiting
    processes.

    Args:
        mine: partitions on which this process is active, in the order in which they came.
        others: the other live processes.
    """
    fewest = min((len(other.active) for other in others), default=len(mine))
    return mine[-1] if len(mine) - fewest >= 2 else None  # noqa: PLR2004  # with one fewer they would only swap


def unclaimed(mine: Iterable[int], others: Iterable[Peer], partitions: int) -> list[int]:
    """Return the partitions on which no live process reports to be active."""
    claimed = set(mine).union(*(other.active for other in others))
    return [number for number in range(partitions) if number not in claimed]


def contested(mine: Iterable[int], others: Iterable[Peer]) -> list[int]:
    """Return the partitions on which both this process and another one report to be active."""
    claimed = frozenset[int]().union(*(other.active for other in others))
    return [number for number in mine if number in claimed]

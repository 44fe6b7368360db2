"""How processes decide to share partitions: even in the end, whatever the order of events, and nobody acts in vain."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.sharing import Peer, contested, first_share, surplus, unclaimed


def peer(name: str, *active: int) -> Peer:
    return Peer(name, frozenset(active))


@given(st.sets(st.text(min_size=1), min_size=1), st.integers(min_value=1, max_value=64))
def test_first_shares_cover_every_partition_once(names: set[str], partitions: int) -> None:
    """Processes that see each other begin with disjoint, even shares that leave no partition out."""
    peers = [peer(name) for name in names]
    shares = [first_share(name, [other for other in peers if other.id != name], partitions) for name in names]
    assert sorted(number for share in shares for number in share) == list(range(partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        ([0, 1, 2, 3], [], None),
        ([0, 1, 2, 3], [peer("b")], 3),
        ([2, 0], [peer("b")], 0),  # the one that came last
        ([0, 1], [peer("b", 2)], None),
        ([0, 1, 2], [peer("b", 3), peer("c", 4, 5, 6, 7)], 2),
        ([0], [peer("b")], None),
        ([], [peer("b", 0)], None),
    ],
)
def test_surplus(mine: Sequence[int], others: list[Peer], expected: int | None) -> None:
    """A partition is given up only where somebody has at least two fewer; the one that came last."""
    assert surplus(mine, others) == expected


class World:
    """Processes, and partitions as the broker sees them: who is active first in line, then who has waited longest."""

    def __init__(self, partitions: int, chance: random.Random) -> None:
        self.chance = chance
        self.lines: list[list[int]] = [[] for _ in range(partitions)]
        self.came: dict[int, list[int]] = {}
        """Partitions of each process in the order in which they came."""

    def start(self, *names: int) -> None:
        for name in names:
            self.came[name] = []
        for number, line in enumerate(self.lines):
            waiting = self.chance.sample(names, len(names))
            if not line and waiting:
                self.came[waiting[0]].append(number)
            line.extend(waiting)

    def end(self, name: int) -> None:
        for number in self.came.pop(name):
            self._next(number)
        for line in self.lines:
            if name in line:
                line.remove(name)

    def _next(self, number: int) -> int:
        line = self.lines[number]
        was = line.pop(0)
        self.came[line[0]].append(number)
        return was

    def step(self, name: int) -> bool:
        """Let a process give up what it should, and say whether it did."""
        others = [peer(str(other), *active) for other, active in self.came.items() if other != name]
        number = surplus(self.came[name], others)
        if number is None:
            return False
        self.came[name].remove(number)
        self.lines[number].append(self._next(number))
        return True


@given(st.integers(1, 16), st.integers(1, 6), st.integers(0, 3), st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_start_and_end_settles(partitions: int, first: int, joins: int, ends: int, chance: random.Random) -> None:
    """Whoever starts and ends, giving up what is too much makes the shares even; no partition is ever without one."""
    world = World(partitions, chance)
    world.start(*range(first))
    for newcomer in range(first, first + joins):
        world.start(newcomer)
    for _ in range(min(ends, first + joins - 1)):
        world.end(chance.choice(list(world.came)))
    for _ in range(partitions * len(world.came) + 1):
        alive = chance.sample(list(world.came), len(world.came))
        if not sum(world.step(name) for name in alive):
            break
    counts = [len(active) for active in world.came.values()]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == partitions
    assert all(sorted(line) == sorted(world.came) for line in world.lines)


def test_unclaimed_and_contested() -> None:
    """What nobody claims is probed, and so is what two claim."""
    others = [peer("b", 1, 2), peer("c", 2)]
    assert unclaimed([0], others, 5) == [3, 4]
    assert contested([0, 1], others) == [1]

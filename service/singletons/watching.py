"""Tells what stands still from what moves, by looking again."""

import time
from collections.abc import Callable, Hashable, Mapping


class Watch:
    """Remembers since when each of many things has looked the same.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, tuple[Hashable, float]] = {}

    def look(self, seen: Mapping[str, Hashable]) -> dict[str, float]:
        """Return for how many seconds each has looked as it does now. What is not seen any more is forgotten."""
        at, before = self._clock(), self._since
        self._since = {}
        for name, looks in seen.items():
            looked, since = before.get(name, (None, at))
            self._since[name] = (looks, since if looked == looks else at)
        return {name: at - since for name, (_, since) in self._since.items()}

"""Measures since when observations have not changed."""

import time
from collections.abc import Callable, Hashable, Mapping


class Watch:
    """Stores since when each of many names has had the same observation.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, tuple[Hashable, float]] = {}

    def look(self, seen: Mapping[str, Hashable]) -> dict[str, float]:
        """Return for how many seconds each observation has been the same. Names that are missing now are removed."""
        at, before = self._clock(), self._since
        self._since = {}
        for name, looks in seen.items():
            looked, since = before.get(name, (None, at))
            self._since[name] = (looks, since if looked == looks else at)
        return {name: at - since for name, (_, since) in self._since.items()}

"""Says what is worse than it was, and whether the targets are met."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

TARGETS = {"inbound": (5.5, 800), "send": (8.0, 600), "webhook": (5.5, 850)}
"""By path: hops, at most, and messages a second where a raw hop makes HOPS_PER_SECOND."""
HOPS_PER_SECOND = 9400
MOST_CONFIRMS = {"inbound": 10, "send": 15}
"""p99 at 50 a second, in times of the median of one confirmed publish that is alone, 50 a second too."""
MOST_MEGABYTES = 115
MOST_BY_TWO_REPLICAS = 1.25
MOST_GROWTH = 1.15
_TOLERATED = 1.15


def baseline_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what later runs are compared with: hops and rates, in the median."""
    return {
        kind: {
            name: {"hops": round(median(path["hops"]), 2), "rate": round(median(path["rate"]), 4)}
            for name, path in of["paths"].items()
        }
        for kind, of in found.items()
    }


def median(values: list[float]) -> float:
    """Return the value in the middle."""
    return float(statistics.median(values))


def worse(found: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[str]:
    """Say what costs, or takes, over 15 % more than it did."""
    for kind, of in found.get("table", {}).items():
        for name, before in baseline.get(kind, {}).items():
            path = of["paths"][name]
            hops, rate = median(path["hops"]), median(path["rate"])
            if hops > before["hops"] * _TOLERATED:
                yield f"{kind}: {name} costs {hops:.2f} hops, and cost {before['hops']:.2f}"
            if rate * _TOLERATED < before["rate"]:
                yield f"{kind}: {name} makes {rate:.3f} of a raw hop's rate, and made {before['rate']:.3f}"

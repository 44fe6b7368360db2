"""The table of all harms, for the terminal and for the guarantees page."""

import math
from collections.abc import Sequence
from pathlib import Path

from tests.neighbours.judging import Line

MEASURED = "neighbours"
"""The property under which a test gives its lines."""
_BEGIN, _END = "<!-- neighbour-table -->", "<!-- /neighbour-table -->"
_HEAD = ("Harm", "Database", "Sample", "Partition", "Quiet p50 / p99, ms", "Harmed p50 / p99, ms", "Limit, ms")


def table(lines: Sequence[Line]) -> str:
    """Return the lines as Markdown."""
    head = (*_HEAD, "Samples", "Verdict")
    rows = [head, (*("---" for _ in range(4)), *("--:" for _ in range(4)), "---"), *map(_cells, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(line: Line) -> tuple[str, ...]:
    late = f" ({line['late']} late)" if line["late"] else ""
    return (
        line["harm"],
        line["database"],
        line["kind"],
        line["place"],
        _pair(line["quiet"]),
        _pair(line["harmed"]),
        _ms(line["limit"]),
        f"{line['samples']}{late}",
        "kept" if line["in_time"] else "**too late**",
    )


def _pair(seconds: tuple[float, float]) -> str:
    return " / ".join(map(_ms, seconds))


def _ms(seconds: float) -> str:
    return "late" if math.isinf(seconds) else f"{seconds * 1000:.0f}"


def publish(page: Path, lines: Sequence[Line]) -> None:
    """Put the table into the guarantees page: between its marks, or at the end where there are none."""
    text = page.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{table(lines)}\n\n{_END}{after}")

"""The table of all runs, for the terminal and for the guarantees page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

RUN = "fault run"
"""The property under which a test gives its line, also from another process."""
_BEGIN, _END = "<!-- fault-table -->", "<!-- /fault-table -->"
_HEAD = ("Database", "Seed", "Accepted", "Faults", "Lost", "Under two ids", "Out of order", "Wrong", "Unknown", "Took")


class Line(TypedDict):
    """What one run has shown."""

    database: str
    seed: int
    accepted: int
    faults: int
    lost: int
    doubled: int
    disordered: int
    wrong: int
    unknown: int
    """Messages FAILED with `outcome_unknown`: an honest limit, not a fault."""
    seconds: int
    settled_after: int


def table(lines: Sequence[Line]) -> str:
    """Return the lines as Markdown, with their sums."""
    rows = [_HEAD, ("---", *("--:" for _ in _HEAD[1:]))]
    rows += [_cells(line) for line in sorted(lines, key=lambda line: (line["database"], line["seed"]))]
    sums = [sum(column) for column in zip(*map(_numbers, lines), strict=True)]
    rows.append(("**All**", f"**{len(lines)}**", *(f"**{number}**" for number in sums), ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _numbers(line: Line) -> tuple[int, ...]:
    found = (line["accepted"], line["faults"], line["lost"], line["doubled"], line["disordered"])
    return (*found, line["wrong"], line["unknown"])


def _cells(line: Line) -> tuple[str, ...]:
    return (line["database"], str(line["seed"]), *map(str, _numbers(line)), f"{line['seconds']} s")


def publish(page: Path, lines: Sequence[Line]) -> None:
    """Put the table into the guarantees page."""
    text = page.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{table(lines)}\n\n{_END}{after}")

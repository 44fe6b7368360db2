"""Measures the whole path of a message through the service on real servers, and what each part of it costs.

    python tests/bench/run.py [table] [loads] [shapes] [replicas] [growth] [memory]

`make bench` runs all of it, on PostgreSQL and SQLite, in about half an hour: on a machine that does nothing else, or
the figures say little. Costs are told in hops: the CPU of all our processes, the broker and the database, divided by
that of one raw hop through the broker in the same minute. It fails where a path costs, or takes, over 15 % more than
baseline.json says. RECORD=1 writes that file, docs/capacity.json and docs/capacity.md anew.
"""

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench import comparing, needs, parts, table
from tests.servers import REPOSITORY

PAGE = REPOSITORY / "docs" / "capacity.md"
DATA = REPOSITORY / "docs" / "capacity.json"
BASELINE = Path(__file__).with_name("baseline.json")


def machine() -> dict[str, Any]:
    """Say what was measured on."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return {
        "day": time.strftime("%Y-%m-%d"),
        "processor": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
    }


async def main(names: list[str]) -> int:
    """Measure, print, record where asked for, and compare with the baseline; return the exit status."""
    found: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = await parts.PARTS[name](Path(folder))
        print(table.part(name, found), flush=True)
        if os.environ.get("RECORD"):
            record(name, found[name])
    worse = list(comparing.worse(found, json.loads(BASELINE.read_text())))
    for sentence in worse:
        print(f"worse: {sentence}", file=sys.stderr)
    return 1 if worse else 0


def record(name: str, found: dict[str, Any]) -> None:
    """Write down what a part has found, and what follows from it once the parts are there that it follows from."""
    recorded = (json.loads(DATA.read_text()) if DATA.exists() else {}) | {"machine": machine(), name: found}
    DATA.write_text(json.dumps(recorded, indent=1) + "\n")
    if name == "table":
        BASELINE.write_text(json.dumps(comparing.baseline_of(found), indent=1) + "\n")
    if {"table", "loads"} <= recorded.keys():
        needed = {"carried": needs.carried(recorded), "model": needs.scales(recorded)}
        table.publish(PAGE, measured=table.everything(recorded), **needed)


if __name__ == "__main__":
    sys.exit(uvloop.run(main(sys.argv[1:] or list(parts.PARTS))))

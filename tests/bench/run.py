"""Measures every process of the service on real servers, and what its work costs them.

    python tests/bench/run.py [sqlite] [postgres]

`make bench` runs it on both; RECORD=1 puts the result into docs/capacity.md and docs/capacity.json, from which the
model there is calculated. MESSAGES and SESSIONS say how much is measured. CPU seconds mean something on any machine;
rates and waiting times only on one that does nothing else.
"""

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench import cases, needs, table
from tests.bench.cases import Costs, Size
from tests.bench.measuring import Cost
from tests.bench.stage import Stage, staged
from tests.servers import REPOSITORY

PAGE = REPOSITORY / "docs" / "capacity.md"
DATA = REPOSITORY / "docs" / "capacity.json"


async def measure(kind: str, size: Size) -> dict[str, Any]:
    """Measure everything with one kind of database; tell what is known so far."""
    costs: Costs = {}

    def add(**found: Cost) -> None:
        for name, one in found.items():
            print(f"{kind}: {name}: {one.as_json()}", file=sys.stderr)
        costs.update(found)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with staged(kind, folder) as stage:
            idle = cases.memories(stage)
            add(**{"idle, one second": await cases.idle(stage)})
            add(**{"session, a pairing": await cases.pairing(stage, size)})
            add(**await cases.whole(stage, size))
            busy = cases.memories(stage)
            await stage.stop(*cases.CONSUMERS)
            for case in (cases.doors, cases.conversations, cases.sends, cases.receipts):
                add(**await case(stage, size))
            await stage.start("session-consumer")
            for case in (cases.facts, cases.duties):
                add(**await case(stage, size))
            compared = await cases.compared(stage, size, folder)
            rows = await _sizes(stage) if kind == "postgres" else {}
    return {
        "costs": {name: one.as_json() for name, one in costs.items()},
        "memory": {name: {"idle": round(idle[name]), "busy": round(busy[name])} for name in cases.PROCESSES},
        "compared": {name: {door: _short(one) for door, one in doors.items()} for name, doors in compared.items()},
        "rows": rows,
    }


def _short(milliseconds: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in milliseconds.items()}


async def _sizes(stage: Stage) -> dict[str, float]:
    """Return the bytes of a row, with its share of the indexes, by table."""
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(stage.system.database_url.replace("+asyncpg", ""))
    try:
        found = {}
        for name in ("messages", "conversations", "sessions"):
            await connection.execute(f"VACUUM ANALYZE {name}")
            size, rows = await connection.fetchrow(
                f"SELECT pg_total_relation_size('{name}'), (SELECT count(*) FROM {name})"  # noqa: S608  # our own names
            )
            found[name] = float(f"{size / max(rows, 1):.3g}")
        return found
    finally:
        await connection.close()


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


async def main(kinds: list[str]) -> None:
    """Measure, print, and record where asked for."""
    size = Size(int(os.environ.get("MESSAGES", "2000")), int(os.environ.get("SESSIONS", "1000")))
    found = {kind: {"machine": machine(), "size": vars(size)} | await measure(kind, size) for kind in kinds}
    print(json.dumps(found, indent=1))
    print(table.measured(found))
    if os.environ.get("RECORD"):
        found = (json.loads(DATA.read_text()) if DATA.exists() else {}) | found
        DATA.write_text(json.dumps(found, indent=1) + "\n")
        table.publish(PAGE, measured=table.measured(found), carried=needs.carried(found), model=needs.scales(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["sqlite", "postgres"]))

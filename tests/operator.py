"""An operator at a terminal: `whatsapp-qr` as a process of its own, beside a running service."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from tests.system import System


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit status."""

    status: int
    out: str
    error: str

    def objects(self) -> list[dict[str, Any]]:
        """What it printed as JSON, one object per line."""
        return [json.loads(line) for line in self.out.splitlines()]


async def operate(system: System, *arguments: str, **settings: str) -> Answer:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.cli",
        *arguments,
        cwd=system.folder,
        env=system._process("operator", **settings)._environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), error.decode())


async def listed(system: System, *arguments: str) -> list[dict[str, Any]]:
    """List dead letters."""
    answer = await operate(system, "dead-letters", "list", "--json", "--limit", "10000", *arguments)
    assert answer.status == 0, answer.error
    return answer.objects()

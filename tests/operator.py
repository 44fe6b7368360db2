"""An operator at a terminal: `whatsapp-qr` as a process of its own, beside a running service."""

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system import SECONDS, WARM, System


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
    environment = system._process("operator", **settings)._environment
    with tempfile.TemporaryDirectory(dir=system.folder) as folder:
        process = WARM.Process(target=be_a_command, args=(arguments, environment, system.folder, Path(folder)))
        process.start()
        await asyncio.to_thread(process.join, SECONDS)
        assert process.exitcode is not None, f"{arguments} does not end"
        return Answer(process.exitcode, *((Path(folder) / name).read_text() for name in ("out", "error")))


def be_a_command(arguments: tuple[str, ...], environment: dict[str, str], folder: Path, printed: Path) -> None:
    """Be `python -m service.cli ARGUMENTS`, with its environment and folder, and with files for a terminal."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate((Path(os.devnull), printed / "out", printed / "error")):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "w" if number else "r") for number in range(3))
    from service import cli  # noqa: PLC0415  # only here: the parent is not one of them

    sys.argv = ["whatsapp-qr", *arguments]
    cli.main()


async def listed(system: System, *arguments: str) -> list[dict[str, Any]]:
    """List dead letters."""
    answer = await operate(system, "dead-letters", "list", "--json", "--limit", "10000", *arguments)
    assert answer.status == 0, answer.error
    return answer.objects()

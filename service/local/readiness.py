"""Waiting until every program answers, or saying why one does not."""

import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from service.errors import ConfigurationError
from service.local.output import say
from service.local.ports import is_free
from service.local.programs import Program
from service.local.supervision import program_log, require_alive, supervisor_log

if TYPE_CHECKING:
    import subprocess

START_TIMEOUT = 90.0


def wait_until_ready(
    programs: list[Program], folder: Path, supervisor: "subprocess.Popen[bytes]", stop: threading.Event
) -> None:
    """Return once every program is ready, or as soon as `stop` is set.

    Raises:
        ConfigurationError: supervisord ended, a program has given up, or it takes too long.
    """
    say("Starting " + ", ".join(program.name for program in programs))
    waiting = list(programs)
    deadline = time.monotonic() + START_TIMEOUT
    with httpx.Client(timeout=3, trust_env=False) as client:
        while waiting and not stop.wait(0.2):
            require_alive(supervisor, folder)
            failed = _given_up(programs, folder) or (waiting[0] if time.monotonic() > deadline else None)
            if failed:
                raise ConfigurationError(_failure(failed, folder))
            for program in [program for program in waiting if _is_ready(program, client)]:
                waiting.remove(program)
                say(f"  {program.name} is ready")


def _is_ready(program: Program, client: httpx.Client) -> bool:
    if not program.health:
        return not is_free(program.host, program.port)
    try:
        return all(client.get(program.url + path).status_code == httpx.codes.OK for path in program.health)
    except httpx.HTTPError:
        return False


def _given_up(programs: list[Program], folder: Path) -> Program | None:
    """Find a program that ended saying that it cannot start like this (exit status 2, or 78 from a script)."""
    log = supervisor_log(folder)
    ended = re.findall(r"exited: (\S+) \(exit status (?:2|78);", log.read_text() if log.exists() else "")
    return next((program for program in programs if program.name in ended), None)


def _failure(program: Program, folder: Path) -> str:
    log = program_log(program, folder)
    lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
    return "\n  ".join([f"{program.name} did not become ready. The end of {log}:", *lines])

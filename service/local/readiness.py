"""Waits until every program answers, or reports why one does not."""

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
TELL_EVERY = 10.0


def wait_until_ready(
    programs: list[Program], folder: Path, supervisor: "subprocess.Popen[bytes]", stop: threading.Event
) -> None:
    """Return once every program is ready, or as soon as `stop` is set.

    Raises:
        ConfigurationError: supervisord ended, a program cannot start, or it takes too long.
    """
    say("Starting " + ", ".join(program.name for program in programs))
    waiting = [program for program in programs if program.port]
    deadline = time.monotonic() + START_TIMEOUT
    told = time.monotonic()
    with httpx.Client(timeout=3, trust_env=False) as client:
        while waiting and not stop.wait(0.2):
            require_alive(supervisor, folder)
            failed = _given_up(programs, folder) or (waiting[0] if time.monotonic() > deadline else None)
            if failed:
                raise ConfigurationError(_failure(failed, folder))
            missing = {program: reason for program in waiting if (reason := _missing(program, client))}
            for program in [program for program in waiting if program not in missing]:
                waiting.remove(program)
                say(f"  {program.name} is ready")
            if waiting and time.monotonic() > told + TELL_EVERY:
                told = time.monotonic()
                say("  waiting for " + ", ".join(f"{program.name} ({reason})" for program, reason in missing.items()))


def _missing(program: Program, client: httpx.Client) -> str:
    """Return the missing conditions of a program; empty once it is ready."""
    if not program.health:
        return "starts" if is_free(program.host, program.port) else ""
    try:
        answers = [client.get(program.url + path) for path in program.health]
    except httpx.HTTPError:
        return "starts"
    refusals = [answer for answer in answers if answer.status_code != httpx.codes.OK]
    if not refusals:
        return ""
    checks = refusals[0].json().get("checks", {})
    return "not yet: " + ", ".join(name for name, is_there in checks.items() if not is_there)


def _given_up(programs: list[Program], folder: Path) -> Program | None:
    """Return a program that ended because it cannot start like this (exit status 2, or 78 from a script)."""
    log = supervisor_log(folder)
    ended = re.findall(r"exited: (\S+) \(exit status (?:2|78);", log.read_text() if log.exists() else "")
    return next((program for program in programs if program.name in ended), None)


def _failure(program: Program, folder: Path) -> str:
    log = program_log(program, folder)
    lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
    return "\n  ".join([f"{program.name} did not become ready. The end of {log}:", *lines])

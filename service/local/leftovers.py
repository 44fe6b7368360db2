"""One run at a time in a folder, and the processes that a killed run left."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from service.errors import ConfigurationError
from service.local.programs import ECHO_BOT
from service.local.supervision import STOP_TIMEOUT

ORPHAN_TIMEOUT = 15.0
LEAST_FREE_DISK = 300_000_000


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Prevent a second run in this folder; a killed run holds no lock."""
    try:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)  # it contains customers' messages and QR codes
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror}. Does it belong to another user?"
        raise ConfigurationError(message) from error
    if shutil.disk_usage(folder).free < LEAST_FREE_DISK:
        raise ConfigurationError(
            f"The disk of {folder} has less than {LEAST_FREE_DISK // 1_000_000} MB left: free some"
        )
    path = folder / "up.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"It already runs in {folder.parent}: stop that first") from error
        yield
        path.unlink(missing_ok=True)


def end_leftovers(folder: Path) -> bool:
    """End the remaining processes of an earlier run; return whether there were any.

    They are found by their pid files and verified by their command lines.
    """
    supervisor = {folder / "supervisord.pid": str(folder / "supervisord.conf")}
    parts = {path: f"service.cli {path.stem}" for path in (folder / "run").glob("*.pid")}
    parts[folder / "run" / "rabbitmq.pid"] = str(folder / "rabbitmq")
    if (echo_bot := folder / "run" / "echo-bot.pid") in parts:
        parts[echo_bot] = str(ECHO_BOT)
    node = {folder / "rabbitmq" / "rabbitmq.pid": "-whatsapp_qr_node", folder / "rabbitmq" / "epmd.pid": "epmd -port"}
    return any([_end(supervisor, STOP_TIMEOUT), _end(parts, ORPHAN_TIMEOUT), _end(node, ORPHAN_TIMEOUT)])


def _end(marks: dict[Path, str], patience: float) -> bool:
    running = {pid for path, mark in marks.items() if (pid := _read_pid(path)) and mark in _command_line(pid)}
    before = {pid: _command_line(pid) for pid in running}
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while running and time.monotonic() < deadline:
            running = {pid for pid in running if _command_line(pid) == before[pid]}
            time.sleep(0.1)
    for path in marks:
        path.unlink(missing_ok=True)
    return bool(before)


def _read_pid(path: Path) -> int:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else 0


def _command_line(pid: int) -> str:
    """Return the command line of a running process; empty if it does not run."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if Path("/proc/self").exists():
        return ""
    answer = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return answer.stdout.strip()

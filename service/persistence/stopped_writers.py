"""SQLite's one write lock in the hands of a process that was stopped: nobody writes until that process has ended.

SQLite cannot take a lock from its holder, and a stopped process (SIGSTOP, a frozen terminal) neither goes on nor ends
by itself. It is ended here, as a power cut would end it: SQLite then rolls its transaction back, the broker gives its
messages to another, and its supervisor starts it again. Linux says in /proc who holds which lock; elsewhere nothing is
done.
"""

import os
import re
import signal
from pathlib import Path

# Where SQLite's WAL mode locks its one writer: a byte of the -shm file, part of SQLite's file format.
_WRITER_BYTE = 120
_LOCKS = Path("/proc/locks")
_WRITE_LOCK = re.compile(r"POSIX\s+ADVISORY\s+WRITE (\d+) \w+:\w+:(\d+) (\d+) (\d+|EOF)")


def end_stopped_writer(database: str) -> int | None:
    """End the process that holds the write lock of a database file if it is stopped; return its id if it was.

    Called by whoever has waited for the lock in vain. A process that runs is never touched, however long it writes.
    """
    # The files are not opened: closing one would drop every lock that this process has on it.
    try:
        shared = Path(f"{database}-shm").stat()
        held = _WRITE_LOCK.findall(_LOCKS.read_text())
    except OSError:
        return None
    for holder, file, first, last in held:
        covers = int(first) <= _WRITER_BYTE and (last == "EOF" or int(last) >= _WRITER_BYTE)
        if int(file) == shared.st_ino and covers and _is_stopped(int(holder)) and _has_open(int(holder), shared):
            try:
                os.kill(int(holder), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has ended meanwhile, or it is somebody else's
                return None
            return int(holder)
    return None


def _is_stopped(process: int) -> bool:
    try:
        return re.search(r"^State:\s+T ", Path(f"/proc/{process}/status").read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def _has_open(process: int, file: os.stat_result) -> bool:
    """Say whether a process has a file open: another disk may have another file of the same number."""
    try:
        return any(os.path.samestat(opened.stat(), file) for opened in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False

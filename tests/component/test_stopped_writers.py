"""Whoever keeps SQLite's write lock and is stopped is ended; whoever runs is left alone."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence import engines
from service.persistence.database import Database
from service.persistence.stopped_writers import end_stopped_writer

WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO notes VALUES ('of the writer')")
print("locked", flush=True)
sys.stdin.read()
"""


async def note(database: Database, words: str) -> list[str]:
    """Write a note and return all."""

    async def work(tx: AsyncSession) -> list[str]:
        await tx.execute(text("INSERT INTO notes VALUES (:words)"), {"words": words})
        return list(await tx.scalars(text("SELECT words FROM notes ORDER BY rowid")))

    return await database.transact(work)


@contextmanager
def writer(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process in the middle of a transaction."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A database file with one table."""
    file = tmp_path / "a database.db"
    database = Database(f"sqlite+aiosqlite:///{file}")
    await database.transact(lambda tx: tx.execute(text("CREATE TABLE notes (words TEXT)")))
    await database.close()
    return file


async def test_a_stopped_writer_is_ended(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction has not happened, and the next one succeeds."""
    monkeypatch.setattr(engines, "_BUSY_SECONDS", 5)
    database = Database(f"sqlite+aiosqlite:///{file}")
    with writer(file) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(DatabaseUnavailable):
            await note(database, "in vain")
        assert await note(database, "after it") == ["after it"]
        assert process.wait() == -signal.SIGKILL
    await database.close()


async def test_a_writer_that_runs_is_left_alone(file: Path) -> None:
    """However long it writes; and a stopped process that holds no lock is none of our business."""
    database = Database(f"sqlite+aiosqlite:///{file}")
    with writer(file) as process:
        assert end_stopped_writer(str(file)) is None
        assert process.poll() is None
        process.kill()
        process.wait()
        assert await note(database, "after it") == ["after it"]
        assert end_stopped_writer(str(file)) is None
    await database.close()


def test_no_database_no_lock(tmp_path: Path) -> None:
    """A file that is not there is held by nobody."""
    assert end_stopped_writer(str(tmp_path / "none.db")) is None

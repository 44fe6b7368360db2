"""The simulator's state: one SQLite database, in memory if no file is given.

Every change of a session and the callbacks that report it are one transaction, so a restart loses neither.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from whatsapp_qr_contracts.message import SessionStatus

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY, chatbot_id TEXT NOT NULL, status TEXT NOT NULL, phone_number TEXT, qr_code TEXT,
    codes_shown INTEGER NOT NULL, due REAL);
CREATE TABLE IF NOT EXISTS sent (
    position INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, message_id TEXT NOT NULL,
    recipient TEXT NOT NULL, message TEXT NOT NULL, sent_at REAL NOT NULL, UNIQUE (session_id, message_id));
CREATE TABLE IF NOT EXISTS callbacks (
    position INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, path TEXT NOT NULL, body BLOB NOT NULL,
    copies INTEGER NOT NULL, due REAL NOT NULL, traceparent TEXT);
CREATE INDEX IF NOT EXISTS callbacks_in_order ON callbacks (session_id, due, position);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One simulated phone link."""

    session_id: str
    chatbot_id: str
    status: SessionStatus = SessionStatus.DISCONNECTED
    phone_number: str | None = None
    """The linked account; kept while the connection is lost, removed by a logout."""
    qr_code: str | None = None
    codes_shown: int = 0
    """QR codes shown since the pairing began."""
    due: float | None = None
    """Unix time of the pairing's next step: first QR code, next QR code, or connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """A message that the simulated WhatsApp accepted."""

    session_id: str
    message_id: str
    recipient: str
    message: str
    sent_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """A report that the ingress has not accepted yet."""

    session_id: str
    path: str
    body: bytes
    copies: int = 1
    due: float
    """Unix time before which it is not posted; a session's callbacks are posted in this order."""
    position: int = 0
    traceparent: str | None = None
    """The trace of the reported change (W3C Trace Context)."""


class Store:
    """The database. Open it in the thread that uses it."""

    def __init__(self, path: Path | None = None) -> None:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path or ":memory:")
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")  # a crash of the process loses nothing
        self._database.executescript(_SCHEMA)
        columns = {row["name"] for row in self._database.execute("PRAGMA table_info (callbacks)")}
        if "traceparent" not in columns:  # a file from before traces existed
            self._database.execute("ALTER TABLE callbacks ADD COLUMN traceparent TEXT")

    def close(self) -> None:
        """Close the database; nothing can be read afterwards."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes made inside, or none of them."""
        with self._database:
            yield

    def session(self, session_id: str) -> Session | None:
        """Return the session, or None if it is not known."""
        row = self._database.execute("SELECT * FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        return _session(row) if row else None

    def sessions(self) -> list[Session]:
        """Return all sessions, oldest first."""
        return [_session(row) for row in self._database.execute("SELECT * FROM sessions ORDER BY rowid")]

    def next_due(self) -> Session | None:
        """Return the session whose pairing has the earliest next step, or None if there is none."""
        row = self._database.execute("SELECT * FROM sessions WHERE due IS NOT NULL ORDER BY due LIMIT 1").fetchone()
        return _session(row) if row else None

    def save(self, session: Session) -> None:
        """Insert the session or replace its stored state."""
        self._database.execute(
            "INSERT INTO sessions VALUES (:session_id, :chatbot_id, :status, :phone_number, :qr_code, :codes_shown, "
            ":due) ON CONFLICT (session_id) DO UPDATE SET chatbot_id = :chatbot_id, status = :status, "
            "phone_number = :phone_number, qr_code = :qr_code, codes_shown = :codes_shown, due = :due",
            asdict(session) | {"status": session.status.value},
        )

    def forget(self, session_id: str) -> None:
        """Remove the session; sent messages and waiting callbacks are kept."""
        self._database.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))

    def pair_anew(self, now: float) -> None:
        """Make the next step of every pairing due now."""
        with self._database:
            self._database.execute("UPDATE sessions SET due = ? WHERE due IS NOT NULL", (now,))

    def was_sent(self, session_id: str, message_id: str) -> bool:
        """Return whether a message with this id was accepted before."""
        found = self._database.execute(
            "SELECT 1 FROM sent WHERE session_id = ? AND message_id = ?", (session_id, message_id)
        )
        return found.fetchone() is not None

    def add_sent(self, message: SentMessage) -> None:
        """Store an accepted message."""
        self._database.execute(
            "INSERT INTO sent (session_id, message_id, recipient, message, sent_at) "
            "VALUES (:session_id, :message_id, :recipient, :message, :sent_at)",
            asdict(message),
        )

    def sent(self, session_id: str | None = None, recipient: str | None = None) -> list[SentMessage]:
        """Return sent messages, in order, of one session and to one recipient if they are given."""
        rows = self._database.execute(
            "SELECT session_id, message_id, recipient, message, sent_at FROM sent "
            "WHERE (:session_id IS NULL OR session_id = :session_id) "
            "AND (:recipient IS NULL OR recipient = :recipient) ORDER BY position",
            {"session_id": session_id, "recipient": recipient},
        )
        return [SentMessage(**row) for row in rows]

    def add_callback(self, callback: Callback) -> None:
        """Queue a callback."""
        self._database.execute(
            "INSERT INTO callbacks (session_id, path, body, copies, due, traceparent) "
            "VALUES (:session_id, :path, :body, :copies, :due, :traceparent)",
            asdict(callback),
        )

    def next_callback(self, session_id: str) -> Callback | None:
        """Return the session's next callback to post, or None if none waits."""
        row = self._database.execute(
            "SELECT * FROM callbacks WHERE session_id = ? ORDER BY due, position LIMIT 1", (session_id,)
        ).fetchone()
        return Callback(**row) if row else None

    def remove_callback(self, callback: Callback) -> None:
        """Delete a callback that was accepted or dropped."""
        with self._database:
            self._database.execute("DELETE FROM callbacks WHERE position = ?", (callback.position,))

    def waiting_callbacks(self) -> dict[str, int]:
        """Return how many callbacks wait, for each session that has any."""
        rows = self._database.execute("SELECT session_id, count(*) AS waiting FROM callbacks GROUP BY session_id")
        return {row["session_id"]: row["waiting"] for row in rows}


def _session(row: sqlite3.Row) -> Session:
    session = Session(**row)
    return replace(session, status=SessionStatus(session.status))

"""The simulated phones: how a session is paired, linked and lost. No I/O except the store.

DISCONNECTED ─start─> CONNECTING ─advance─> QR_READY ─scan─> CONNECTED ─disconnect, unlink, drop─> DISCONNECTED
                          └─ advance, if a phone is still linked ─────────┘     (a drop keeps the link)
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.errors import Rejected
from service.simulator.qr import pairing_code, qr_image
from service.simulator.reporting import Reports
from service.simulator.store import Session, Store
from whatsapp_qr_contracts.message import SessionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingPace:
    """How a pairing proceeds."""

    connecting_seconds: float
    """From /init to the first QR code, or to the connection if a phone is still linked."""
    qr_seconds: float
    """How long a QR code is shown."""
    qr_limit: int
    """QR codes shown before the pairing ends."""


def unknown_session(session_id: str) -> Rejected:
    """Return the error for a session that is not known."""
    return Rejected(f"There is no session {session_id!r}. Start it with POST /init.", code="unknown_session")


class Phones:
    """All sessions with their phones. `changed` is set whenever the time of the next `advance` may have changed."""

    def __init__(
        self, store: Store, reports: Reports, pace: PairingPace, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._reports = reports
        self._pace = pace
        self._clock = clock
        self.changed = asyncio.Event()

    def resume(self) -> None:
        """Continue after a restart: pairings in progress show a new QR code at once, linked phones stay linked."""
        self._store.pair_anew(self._clock())

    def get(self, session_id: str) -> Session:
        """Return the session.

        Raises:
            Rejected: there is none (`unknown_session`).
        """
        session = self._store.session(session_id)
        if session is None:
            raise unknown_session(session_id)
        return session

    def all(self) -> list[Session]:
        """Return all sessions, oldest first."""
        return self._store.sessions()

    def start(self, session_id: str, chatbot_id: str, *, hangs: bool = False) -> bool:
        """Start a session; return False if it runs already, which changes nothing. A hanging one stays CONNECTING."""
        session = self._store.session(session_id) or Session(session_id=session_id, chatbot_id=chatbot_id)
        if session.status is not SessionStatus.DISCONNECTED:
            return False
        due = None if hangs else self._clock() + self._pace.connecting_seconds
        with self._store.transaction():
            self._save(replace(session, status=SessionStatus.CONNECTING, codes_shown=0, due=due))
        return True

    def next_advance(self) -> float | None:
        """Return the seconds until the next step of a pairing (0 if it is late), or None if there is none."""
        session = self._store.next_due()
        return max(0.0, session.due - self._clock()) if session and session.due is not None else None

    def advance(self) -> Session | None:
        """Take the pairing that is due one step further; return its session, or None if none is due."""
        session = self._store.next_due()
        if session is None or session.due is None or session.due > self._clock():
            return None
        with self._store.transaction():
            if session.phone_number:
                return self._connected(session, session.phone_number)
            if session.codes_shown >= self._pace.qr_limit:
                return self._disconnected(session, "qr_expired")
            return self._next_code(session)

    def scan(self, session_id: str, phone_number: str) -> Session:
        """Scan the session's QR code with the phone of this number.

        Raises:
            Rejected: the session is unknown, or shows no QR code (`no_qr_code`).
        """
        session = self.get(session_id)
        if session.status is not SessionStatus.QR_READY:
            message = f"There is no QR code to scan: the session is {session.status}."
            raise Rejected(message, code="no_qr_code")
        with self._store.transaction():
            return self._connected(session, phone_number)

    def disconnect(self, session_id: str) -> None:
        """End a session and log its phone out, as the gateway's caller requested. An unknown or ended one stays so."""
        session = self._store.session(session_id)
        if session is None or (session.status is SessionStatus.DISCONNECTED and not session.phone_number):
            return
        with self._store.transaction():
            self._disconnected(session)

    def unlink(self, session_id: str) -> Session:
        """Remove the linked device on the phone.

        Raises:
            Rejected: the session is unknown, or no phone is linked (`not_linked`).
        """
        session = self._linked(session_id)
        with self._store.transaction():
            return self._disconnected(session, "logged_out")

    def replace(self, session_id: str) -> Session:
        """End the connection by a second login.

        Raises:
            Rejected: the session is unknown, or no phone is linked (`not_linked`).
        """
        session = self._linked(session_id)
        with self._store.transaction():
            return self._disconnected(session, "replaced")

    def drop(self, session_id: str) -> Session:
        """Lose the connection; the phone stays linked.

        Raises:
            Rejected: the session is unknown or not connected (`not_connected`).
        """
        session = self.get(session_id)
        if session.status is not SessionStatus.CONNECTED:
            message = f"There is no connection to lose: the session is {session.status}."
            raise Rejected(message, code="not_connected")
        with self._store.transaction():
            self._reports.disconnected(session_id)
            return self._save(replace(session, status=SessionStatus.DISCONNECTED))

    def reconnect(self, session_id: str) -> Session:
        """Restore a lost connection, without a QR code; a connected session stays unchanged.

        Raises:
            Rejected: the session is unknown, or no phone is linked (`not_linked`).
        """
        session = self._linked(session_id)
        if session.status is SessionStatus.CONNECTED:
            return session
        with self._store.transaction():
            return self._connected(session, session.phone_number)

    def forget(self, session_id: str) -> None:
        """Lose the session like a gateway whose disk was wiped: it is unknown, and nothing is reported.

        Raises:
            Rejected: the session is unknown.
        """
        self.get(session_id)
        with self._store.transaction():
            self._store.forget(session_id)
        self.changed.set()

    def _linked(self, session_id: str) -> Session:
        session = self.get(session_id)
        if not session.phone_number:
            message = f"No phone is linked: the session is {session.status}. Scan its QR code first."
            raise Rejected(message, code="not_linked")
        return session

    def _next_code(self, session: Session) -> Session:
        qr_code = qr_image(pairing_code())
        self._reports.qr(session.session_id, qr_code)
        due = self._clock() + self._pace.qr_seconds
        shown = session.codes_shown + 1
        return self._save(replace(session, status=SessionStatus.QR_READY, qr_code=qr_code, codes_shown=shown, due=due))

    def _connected(self, session: Session, phone_number: str | None) -> Session:
        self._reports.connected(session.session_id, phone_number)
        connected = SessionStatus.CONNECTED
        return self._save(replace(session, status=connected, phone_number=phone_number, qr_code=None, due=None))

    def _disconnected(self, session: Session, reason: str | None = None) -> Session:
        self._reports.disconnected(session.session_id, reason)
        disconnected = SessionStatus.DISCONNECTED
        return self._save(replace(session, status=disconnected, phone_number=None, qr_code=None, due=None))

    def _save(self, session: Session) -> Session:
        self._store.save(session)
        self.changed.set()
        return session

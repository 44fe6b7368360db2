"""Follows sessions for callers that show a QR code. An event is only a wake-up: the state is read from the row."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress

from service.errors import DatabaseUnavailable
from service.ingress.commands import READ_SECONDS
from service.persistence.database import Database
from service.persistence.reading import current_session
from service.persistence.tables import SessionRow
from whatsapp_qr_contracts.partitions import session_key

_LOOK_EVERY_SECONDS = 15.0


class Streams:
    """The callers of this process that follow sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bells: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._ended = False

    def hear(self, key: str) -> None:
        """Wake the callers that follow a session, because an event with its partition key was received."""
        for bell in self._bells.get(key, ()):
            bell.set()

    def end(self) -> None:
        """End every stream: callers reconnect, to another process."""
        self._ended = True
        for key in self._bells:
            self.hear(key)

    async def follow(self, session_id: str, seen: str | None) -> AsyncIterator[SessionRow]:
        """Yield a session now and after every change, until its chatbot is removed or the process stops.

        Changes in quick succession may be yielded as one.

        Args:
            session_id: the session.
            seen: the version that the caller has received already.
        """
        key, bell = session_key(session_id), asyncio.Event()
        self._bells[key].add(bell)
        try:
            while not self._ended:
                bell.clear()
                with suppress(DatabaseUnavailable):  # it is yielded once it can be read again
                    session = await self._database.read(
                        lambda tx: current_session(tx, session_id=session_id), seconds=READ_SECONDS
                    )
                    if session is None:
                        return
                    if str(session.version) != seen:
                        seen = str(session.version)
                        yield session
                with suppress(TimeoutError):  # an event may be lost: look regardless
                    async with asyncio.timeout(_LOOK_EVERY_SECONDS):
                        await bell.wait()
        finally:
            self._bells[key].discard(bell)
            if not self._bells[key]:
                del self._bells[key]

"""Waits for the outcome of a published command. The event is only a wake-up: the command's row has the outcome."""

import asyncio
import time
from contextlib import suppress
from typing import Any
from uuid import UUID

from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.sessions import command_outcome

_WAIT_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 1.0


class Waiters:
    """The callers of this process that wait for commands.

    Args:
        database: has the outcomes.
        look_every: seconds between two looks while no event is received.
    """

    def __init__(self, database: Database, *, look_every: float = _LOOK_EVERY_SECONDS) -> None:
        self._database, self._look_every = database, look_every
        self._rung: dict[str, asyncio.Event] = {}

    def register(self, command_id: str) -> None:
        """Begin to listen for a command; before it is published, so that no answer is missed."""
        self._rung[command_id] = asyncio.Event()

    def hear(self, correlation_id: str) -> None:
        """Wake the caller that waits for a command, because one of its events was received."""
        if rung := self._rung.get(correlation_id):
            rung.set()

    def forget(self, command_id: str) -> None:
        """Stop listening."""
        self._rung.pop(command_id, None)

    async def outcome(self, chatbot_id: UUID, command_id: str) -> dict[str, Any] | None:
        """Return the event that answers a command (name, message_id, body), or None if there was none within 10 s."""
        rung = self._rung[command_id]
        until = time.monotonic() + _WAIT_SECONDS
        while (left := until - time.monotonic()) > 0:
            with suppress(TimeoutError):  # the event may be lost: look regardless
                async with asyncio.timeout(min(left, self._look_every)):
                    await rung.wait()
            rung.clear()
            try:
                found = await self._database.read(
                    lambda tx: command_outcome(tx, chatbot_id, command_id), seconds=_LOOK_EVERY_SECONDS
                )
            except DatabaseUnavailable:
                continue  # the command is safe in the queue; its outcome may still arrive in time
            if found is not None:
                return found
        return None

"""Lets somebody who published a command wait for its outcome. Its event only wakes: the command's row is the truth."""

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
    """Who waits for which command in this process.

    Args:
        database: has the outcomes.
        look_every: seconds between two looks while no event is heard.
    """

    def __init__(self, database: Database, *, look_every: float = _LOOK_EVERY_SECONDS) -> None:
        self._database, self._look_every = database, look_every
        self._rung: dict[str, asyncio.Event] = {}

    def register(self, command_id: str) -> None:
        """Begin to listen for a command; before it is published, so that no answer is missed."""
        self._rung[command_id] = asyncio.Event()

    def hear(self, correlation_id: str) -> None:
        """Note that an event of a command was heard."""
        if rung := self._rung.get(correlation_id):
            rung.set()

    def forget(self, command_id: str) -> None:
        """Stop listening."""
        self._rung.pop(command_id, None)

    async def outcome(self, chatbot_id: UUID, command_id: str) -> dict[str, Any] | None:
        """Return the event that answers a command (name, message_id, body), or None where 10 s brought none."""
        rung = self._rung[command_id]
        until = time.monotonic() + _WAIT_SECONDS
        while (left := until - time.monotonic()) > 0:
            with suppress(TimeoutError):  # the event may be lost: look all the same
                async with asyncio.timeout(min(left, self._look_every)):
                    await rung.wait()
            rung.clear()
            try:
                found = await self._database.read(
                    lambda tx: command_outcome(tx, chatbot_id, command_id), seconds=_LOOK_EVERY_SECONDS
                )
            except DatabaseUnavailable:
                continue  # the command is safe in the queue; its outcome may still come in time
            if found is not None:
                return found
        return None

"""The turn of each message: one of a key at a time in the order of arrival, none once the partition is given up."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any
from uuid import UUID

import structlog
from faststream import BaseMiddleware

from whatsapp_qr_contracts.partitions import chatbot_key, session_key

log = structlog.get_logger()


def lane_key(body: bytes, headers: Mapping[str, Any] | None) -> str:
    """Return the key whose messages are processed one after another: the chatbot, or a foreign session id.

    The body decides, because a wrong header must not disorder anything; where it cannot be read the header does.
    """
    try:
        content = json.loads(body)
        if isinstance(chatbot := content.get("chatbotId"), str):
            return chatbot_key(UUID(chatbot))  # however it is written
        if isinstance(session := content.get("sessionId"), str):
            return session_key(session)
    except (ValueError, AttributeError, RecursionError):
        pass  # the message's life will say what is wrong with it
    return str((headers or {}).get("partition-key", ""))


class Gate:
    """Counts what has begun, and lets nothing begin once it is closed."""

    def __init__(self) -> None:
        self.closed = False
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Begin."""
        self.running += 1
        self._idle.clear()

    def leave(self) -> None:
        """End what has begun."""
        self.running -= 1
        if not self.running:
            self._idle.set()

    async def close(self, seconds: float) -> None:
        """Let nothing begin any more and wait, for at most so many seconds, until what has begun has ended."""
        self.closed = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("given_up_with_work_in_progress", running=self.running)


class Turn(BaseMiddleware[Any, Any]):
    """The place of one message in the lane of its key."""

    def __init__(
        self,
        gate: Gate,
        lanes: dict[str, asyncio.Future[None]] | None,
        hear: Callable[[Any], None],
        msg: Any,
        /,
        *,
        context: Any,
    ) -> None:
        super().__init__(msg, context=context)
        self._gate = gate
        self._hear = hear
        self._lanes = lanes
        self._key = ""
        self._before: asyncio.Future[None] | None = None
        self._mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_receive(self) -> None:
        """Take the place: runs in the order of arrival, so nothing may be awaited before."""
        self._hear(self.msg)
        if self._lanes is not None:
            self._key = lane_key(self.msg.body, self.msg.headers)
            self._before = self._lanes.get(self._key)
            self._lanes[self._key] = self._mine

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
        """Wait for the turn, then process; with the gate closed, leave the message to the next process."""
        if self._before is not None:
            await asyncio.shield(self._before)  # a cancelled waiter must not cancel the place that it waits for
        if self._gate.closed:
            return None  # unacknowledged: it goes back to the head of the queue when the channel closes
        self._gate.enter()
        try:
            return await call_next(msg)
        finally:
            self._gate.leave()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool | None:
        # Runs however the message ended. One that is cancelled before its turn leaves when its turn would have come:
        # it may be here again, over a new connection, while a cancelled one before it still cleans up.
        if self._before is None:
            self._leave()
        else:
            self._before.add_done_callback(self._leave)
        return await super().__aexit__(exc_type, exc_val, exc_tb)

    def _leave(self, _before: asyncio.Future[None] | None = None) -> None:
        self._mine.set_result(None)
        if self._lanes is not None and self._lanes.get(self._key) is self._mine:
            del self._lanes[self._key]

"""A gateway that costs next to nothing: it takes every send, says that each session is connected, and reports nothing.

It runs in the process of the benchmark, whose CPU is not counted.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class StubGateway:
    """What it was asked, and how long it takes to answer a send."""

    def __init__(self) -> None:
        self.latency = 0.0
        """Seconds that a send takes."""
        self.taken: dict[str, float] = {}
        """When each send came, by the number at the end of its text, while that is noted."""
        self.notes = False
        self.without_receipt: deque[tuple[str, str]] = deque()
        """Session and message id of what was sent, the oldest first."""
        self.statuses: dict[str, str] = {}
        """What it says about sessions."""

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Answer on a port of this machine."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port)
        try:
            yield
        finally:
            server.close()

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """Return the answer to a call."""
        if path == "/send":
            call = json.loads(body)
            self.without_receipt.append((call["sessionId"], call["messageId"]))
            if self.notes:
                self.taken[call["message"].rpartition(" ")[2]] = time.perf_counter()
            return {"success": True, "messageId": call["messageId"]}
        if method == "GET" and path.startswith("/status/"):
            status = self.statuses.get(path.removeprefix("/status/"), "connected")
            return {"success": True, "session": {"status": status, "phoneNumber": "5491100000000"}}
        if path == "/sessions":
            listed = [{"sessionId": name, "status": status} for name, status in self.statuses.items()]
            return {"success": True, "sessions": listed}
        return {"success": True}


class _Connection(asyncio.Protocol):
    def __init__(self, gateway: StubGateway) -> None:
        self._gateway = gateway
        self._transport: Any = None
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._left += data
        head, end, rest = self._left.partition(b"\r\n\r\n")
        if not end:
            return
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split()
        size = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")),
            0,
        )
        if len(rest) < size:
            return
        self._left = b""  # no client sends a second request before it has the answer to the first
        answer = json.dumps(self._gateway.answer(method, path, rest)).encode()
        delay = self._gateway.latency if path == "/send" else 0.0
        if delay:
            asyncio.get_running_loop().call_later(delay, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
        self._transport.write(head.encode() + answer)

"""A caller that costs little, so that it measures others: kept connections, as many as calls are under way."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

NO_ANSWER = 0
_SECONDS = 15.0
_GONE = (asyncio.IncompleteReadError, ConnectionError)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Caller:
    """Calls one HTTP server.

    Args:
        base: what each path is put behind.
    """

    def __init__(self, base: str) -> None:
        url = urlsplit(base)
        self._host, self._port, self._path = url.hostname or "", url.port or 80, url.path
        self._idle: list[Connection] = []

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> int:
        """Post; return the status, 0 where there was no answer in time. Post only what may be posted twice."""
        content = json.dumps(body).encode()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        status, _ = await self._call("POST", path, content, "content-type: application/json", *lines)
        return status

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return the status, 0 where there was no answer in time, and the body."""
        return await self._call("GET", path, b"")

    async def _call(self, method: str, path: str, content: bytes, *lines: str) -> tuple[int, bytes]:
        head = (f"{method} {self._path}{path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(content)}", *lines)
        request = "\r\n".join((*head, "", "")).encode() + content
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._asked(request)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return NO_ANSWER, b""

    async def _asked(self, request: bytes) -> tuple[int, bytes]:
        while self._idle:
            try:
                return await self._ask(self._idle.pop(), request)
            except _GONE:
                continue  # the server closes what was idle for long
        return await self._ask(await asyncio.open_connection(self._host, self._port), request)

    async def _ask(self, connection: Connection, request: bytes) -> tuple[int, bytes]:
        reader, writer = connection
        try:
            writer.write(request)
            status, size = _head(await reader.readuntil(b"\r\n\r\n"))
            body = await reader.readexactly(size)
        except BaseException:
            writer.close()
            raise
        self._idle.append(connection)
        return status, body

    async def close(self) -> None:
        """Close what is idle; nothing may be under way."""
        idle, self._idle = self._idle, []
        for _, writer in idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in idle), return_exceptions=True)


def _head(head: bytes) -> tuple[int, int]:
    first, *lines = head.decode().lower().split("\r\n")
    sizes = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
    return int(first.split()[1]), sizes[0] if sizes else 0

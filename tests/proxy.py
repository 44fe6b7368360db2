"""A TCP proxy in front of a real server, to make its network fail: cut, refuse, delay, hold back, lose what is sent."""

import asyncio
from types import TracebackType
from typing import Self

from yarl import URL

_BYTES = 65_536


class Link:
    """One connection of a client, and the proxy's own to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, *, lost: bool) -> None:
        self.client = client
        self.server = server
        self.lost = lost

    def cut(self) -> None:
        """End both sides at once, as a reset does."""
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Passes on what comes to `url` until it is told otherwise.

    Args:
        url: the server.
    """

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._lost = False
        self._refusing = False
        self._delay = 0.0
        self.url = ""
        self.accepted = 0
        """Connections ever passed on."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = str(self._target.with_port(self._server.sockets[0].getsockname()[1]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open(self) -> int:
        """Connections that a client has open at this moment."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        for link in self._links:
            link.cut()

    def cut_clients(self) -> None:
        """Reset every client's connection and let the server believe that it still has it."""
        for link in self._links:
            link.lost = True
            link.client.transport.abort()

    def refuse(self) -> None:
        """Reset every connection and every attempt to make one."""
        self._refusing = True
        self.cut()

    def lose(self) -> None:
        """Lose every byte from now on, in both directions, and keep the connections open: a black hole."""
        self._lost = True
        for link in self._links:
            link.lost = True

    def hold_answers(self) -> None:
        """Keep back what the server says, while what the client says still arrives."""
        self._answers.clear()

    def slow(self, seconds: float) -> None:
        """Hold every piece of data back for so long, in both directions."""
        self._delay = seconds

    def heal(self) -> None:
        """Be a good network again; a connection that has lost bytes stays lost."""
        self._lost = self._refusing = False
        self._delay = 0.0
        self._answers.set()

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            client.transport.abort()
            return
        try:
            answers, server = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            client.transport.abort()
            return
        link = Link(client, server, lost=self._lost)
        self._links.add(link)
        self.accepted += 1
        try:
            await asyncio.gather(self._pass(link, reader, server), self._pass(link, answers, client))
        finally:
            self._links.discard(link)
            link.cut()

    async def _pass(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_BYTES):
                await asyncio.sleep(self._delay)
                if writer is link.client:
                    await self._answers.wait()
                if not link.lost:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if writer is link.server:
            self._links.discard(link)
        if not link.lost:
            link.cut()

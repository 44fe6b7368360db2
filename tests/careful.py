"""A caller who does what the documentation asks of callers: what is answered with 503 is asked for again."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

PATIENCE = 60.0


class CarefulTransport(httpx.AsyncHTTPTransport):
    """Calls again where a busy machine says 503, unless that could do something twice.

    Not with `careful` off or within `careless`, for tests that take a server away or count what they repeat.
    """

    careful = True

    @contextmanager
    def careless(self) -> Iterator[None]:
        """Take each answer as it is."""
        self.careful = False
        try:
            yield
        finally:
            self.careful = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        until = time.monotonic() + PATIENCE
        while True:
            answer = await super().handle_async_request(request)
            if not self.careful or time.monotonic() > until or not await _passes(request, answer):
                return answer
            await asyncio.sleep(0.1)


async def _passes(request: httpx.Request, answer: httpx.Response) -> bool:
    if answer.status_code != 503 or answer.headers["content-type"] != "application/problem+json":
        return False
    await answer.aread()
    # The broker may have it all the same, and without a key each send is a new message.
    doubles = request.url.path.endswith("/send") and "Idempotency-Key" not in request.headers
    return not doubles or answer.json()["code"] == "database_unavailable"

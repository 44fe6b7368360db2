"""A caller who does what the documentation asks of callers: what is answered with 503 is asked for again."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

PATIENCE = 60.0


class CarefulTransport(httpx.AsyncHTTPTransport):
    """Repeats a call that is answered with 503, if `careful` is set and a repetition cannot do something twice.

    Tests set it that restart something: without it a service that answers 503 for no reason fails the test.
    """

    careful = False

    @contextmanager
    def careless(self) -> Iterator[None]:
        """Take each answer as it is."""
        before, self.careful = self.careful, False
        try:
            yield
        finally:
            self.careful = before

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

"""What is held while a part is away: repeated, counted, and left where somebody else is to go on with it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from service.errors import DatabaseUnavailable
from service.messaging import retrying
from service.messaging.retrying import RetryWhileUnavailable, Stopping


def failing(times: int, before: Callable[[], None] = lambda: None) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    """Return an operation that fails so many times, after `before`, and the numbers of its attempts."""
    attempts: list[int] = []

    async def operation() -> str:
        attempts.append(len(attempts) + 1)
        if len(attempts) <= times:
            before()
            raise DatabaseUnavailable("no database")
        return "done"

    return operation, attempts


@pytest.fixture
def retry(monkeypatch: pytest.MonkeyPatch) -> RetryWhileUnavailable:
    monkeypatch.setattr(retrying, "backoff", lambda _failures: 0.0)
    return RetryWhileUnavailable()


async def test_it_is_repeated_until_it_succeeds(retry: RetryWhileUnavailable) -> None:
    """Counted as held meanwhile; each reason and the end are logged once."""
    counted: list[int] = []
    operation, attempts = failing(3, lambda: counted.append(retry.waiting))
    with capture_logs() as logs:
        assert await retry(operation) == "done"
    assert (attempts, counted, retry.waiting) == ([1, 2, 3, 4], [0, 1, 1], 0)
    assert [line["event"] for line in logs] == ["retrying_while_unavailable", "available_again"]


async def test_what_began_before_a_release_is_left_after_it(retry: RetryWhileUnavailable) -> None:
    """However late its first attempt fails: its message is another process's by then."""

    def release() -> None:
        retry.leave()
        retry.resume()

    operation, attempts = failing(1, release)
    with pytest.raises(Stopping):
        await retry(operation)
    assert (attempts, retry.waiting) == ([1], 0)
    later, attempts = failing(1)
    assert await retry(later) == "done"
    assert attempts == [1, 2]


async def test_what_waits_is_left_at_once(retry: RetryWhileUnavailable, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it was about to wait; once the process stops nothing is held any more."""
    monkeypatch.setattr(retrying, "backoff", lambda _failures: 3600.0)
    operation, attempts = failing(9)
    waiting = asyncio.create_task(retry(operation, longest=3600.0))
    while not retry.waiting:
        await asyncio.sleep(0)
    retry.stop()
    retry.resume()
    with pytest.raises(Stopping):
        await waiting
    with pytest.raises(Stopping):
        await retry(operation)
    assert attempts == [1, 2]
    with pytest.raises(Stopping):
        await retry.pause(3600.0)


async def test_it_says_that_it_lasts_too_long() -> None:
    """Once for each operation, after `patience`; not where it ends before."""
    retry = RetryWhileUnavailable(patience=0.0)
    operation, _ = failing(9)
    waiting = asyncio.create_task(retry(operation))
    await retry.too_long.wait()
    retry.stop()
    with pytest.raises(Stopping):
        await waiting

"""What is held while a part is away: repeated, counted, and left where somebody else is to go on with it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from service.errors import DatabaseUnavailable
from service.messaging import holding
from service.messaging.holding import Hold, Stopping


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
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    monkeypatch.setattr(holding, "backoff", lambda _failures: 0.0)
    return Hold()


async def test_it_is_repeated_until_it_succeeds(hold: Hold) -> None:
    """Counted as held meanwhile; each reason and the end are logged once."""
    counted: list[int] = []
    operation, attempts = failing(3, lambda: counted.append(hold.held))
    with capture_logs() as logs:
        assert await hold(operation) == "done"
    assert (attempts, counted, hold.held) == ([1, 2, 3, 4], [0, 1, 1], 0)
    assert [line["event"] for line in logs] == ["held", "held_no_longer"]


async def test_what_began_before_a_give_up_is_left_after_it(hold: Hold) -> None:
    """However late its first attempt fails: its message is another process's by then."""

    def give_up() -> None:
        hold.leave()
        hold.resume()

    operation, attempts = failing(1, give_up)
    with pytest.raises(Stopping):
        await hold(operation)
    assert (attempts, hold.held) == ([1], 0)
    later, attempts = failing(1)
    assert await hold(later) == "done"
    assert attempts == [1, 2]


async def test_what_waits_is_left_at_once(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it was about to wait; once the process stops nothing is held any more."""
    monkeypatch.setattr(holding, "backoff", lambda _failures: 3600.0)
    operation, attempts = failing(9)
    waiting = asyncio.create_task(hold(operation, longest=3600.0))
    while not hold.held:
        await asyncio.sleep(0)
    hold.stop()
    hold.resume()
    with pytest.raises(Stopping):
        await waiting
    with pytest.raises(Stopping):
        await hold(operation)
    assert attempts == [1, 2]
    with pytest.raises(Stopping):
        await hold.pause(3600.0)


async def test_it_says_that_it_lasts_too_long() -> None:
    """Once for each operation, after `patience`; not where it ends before."""
    hold = Hold(patience=0.0)
    operation, _ = failing(9)
    waiting = asyncio.create_task(hold(operation))
    await hold.too_long.wait()
    hold.stop()
    with pytest.raises(Stopping):
        await waiting

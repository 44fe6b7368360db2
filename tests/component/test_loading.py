"""Look-ups of many callers: who waits while one query runs is served by the next, together with all others."""

import asyncio
from collections.abc import Collection

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from service.persistence.loading import Loader
from tests.system import SECONDS


class Squares:
    """Loads the squares of numbers, and remembers which it was asked for at once; waits until it may go on."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.trouble: Exception | None = None

    async def __call__(self, _tx: AsyncSession, keys: Collection[int]) -> dict[int, int]:
        self.asked.append(sorted(keys))
        self.begun.set()
        await self.go_on.wait()
        if self.trouble is not None:
            raise self.trouble
        return {key: key * key for key in keys if key}


async def test_who_waits_is_served_by_one_query(database: Database) -> None:
    """The first goes alone; those who come while its query runs share the next one, a key that several ask for once."""
    squares = Squares()
    load = Loader(database, squares, SECONDS)
    first = asyncio.create_task(load(1))
    await squares.begun.wait()
    others = [asyncio.create_task(load(number)) for number in (3, 0, 2, 3, 1)]
    await asyncio.sleep(0)
    squares.go_on.set()
    assert await asyncio.gather(first, *others) == [1, 9, None, 4, 9, 1]
    assert squares.asked == [[1], [0, 1, 2, 3]]
    assert await load(5) == 25


async def test_nobody_waits_longer_than_allowed(database: Database) -> None:
    """A query that hangs is no answer; it is given up, and the next one is answered."""
    squares = Squares()
    load = Loader(database, squares, 0.2)
    with pytest.raises(DatabaseUnavailable, match=r"did not answer within 0\.2 s"):
        await load(1)
    squares.go_on.set()
    assert await load(2) == 4


async def test_trouble_is_told_to_all_who_wait(database: Database) -> None:
    """And only to them."""
    squares = Squares()
    load = Loader(database, squares, SECONDS)
    squares.trouble = DatabaseUnavailable("away")
    squares.go_on.set()
    told = await asyncio.gather(load(1), load(2), return_exceptions=True)
    assert [type(one) for one in told] == [DatabaseUnavailable] * 2
    squares.trouble = None
    assert await load(1) == 1

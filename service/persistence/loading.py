"""Loads values by key for many callers: keys requested while one query runs are loaded by the next."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextvars import Context
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence.database import Database

K = TypeVar("K")
V = TypeVar("V")
Load = Callable[[AsyncSession, Collection[K]], Awaitable[Mapping[K, V]]]


class Loader(Generic[K, V]):
    """A data loader.

    Args:
        load: returns the values of keys; those without a value may be left out.
        seconds: how long a caller waits, at most.
    """

    def __init__(self, database: Database, load: Load[K, V], seconds: float) -> None:
        self._database, self._load, self._seconds = database, load, seconds
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._loading: asyncio.Task[None] | None = None

    async def __call__(self, key: K) -> V | None:
        """Return the present value of a key; None if it has none.

        Raises:
            DatabaseUnavailable: the database does not answer in time.
        """
        if key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().create_future()
        value = self._waiting[key]
        if self._loading is None:
            # Not as part of the trace of the first caller.
            self._loading = asyncio.create_task(self._load_all(), context=Context())
        done, _ = await asyncio.wait({value}, timeout=self._seconds)
        if not done:
            raise DatabaseUnavailable(f"the database did not answer within {self._seconds} s")
        return value.result()

    async def _load_all(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, {}
                await self._load_these(waiting)
        finally:
            self._loading = None

    async def _load_these(self, waiting: Mapping[K, asyncio.Future[V | None]]) -> None:
        try:
            found = await self._database.read(lambda tx: self._load(tx, waiting.keys()), seconds=self._seconds)
        except Exception as error:  # noqa: BLE001  # it is raised at all callers that wait
            for value in waiting.values():
                value.set_exception(error)
                value.exception()  # a caller may have given up: mark the error as retrieved
        else:
            for key, value in waiting.items():
                value.set_result(found.get(key))

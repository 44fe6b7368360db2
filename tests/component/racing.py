"""What tests of lanes share: their rows, and something that happens in the middle of a transaction."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence.database import Database
from service.persistence.tables import LaneRow, SessionRow
from tests.system import eventually


async def lane_of(database: Database, session: SessionRow) -> LaneRow:
    return await database.read(lambda tx: tx.get_one(LaneRow, session.session_id))


async def change_lane(database: Database, session: SessionRow, **fields: Any) -> None:
    """Write fields of a lane's row, whatever they were."""

    async def work(tx: AsyncSession) -> None:
        lane = await tx.get_one(LaneRow, session.session_id)
        for name, value in fields.items():
            setattr(lane, name, value)

    await database.transact(work)


def after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, happens: Callable[[], Awaitable[object]]) -> None:
    """Let something happen elsewhere after the next call of a function, before its caller goes on."""
    function, calls = getattr(owner, name), iter([None])

    async def and_then(*given: Any, **more: Any) -> Any:
        result = await function(*given, **more)
        for _ in calls:
            await happens()
        return result

    monkeypatch.setattr(owner, name, and_then)


class Beside:
    """Work of another process that begins in the middle of a transaction and may have to wait for its end.

    Args:
        database: PostgreSQL, as the other process sees it.
        work: what it does.
    """

    def __init__(self, database: Database, work: Callable[[], Awaitable[Any]]) -> None:
        self._database, self._work = database, work
        self._task: asyncio.Future[Any] | None = None

    async def begin(self) -> None:
        """Begin; return once it has ended, or waits for a lock."""
        task = self._task = asyncio.ensure_future(self._work())
        waits = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

        async def ended_or_waits() -> bool:
            return task.done() or bool(await self._database.read(lambda tx: tx.scalar(waits)))

        await eventually(ended_or_waits)

    async def result(self) -> Any:
        """Wait for its end."""
        assert self._task is not None, "it was never begun"
        return await self._task

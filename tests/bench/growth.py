"""What looks through the tables now and then: how long each look takes once very much is stored.

    python tests/bench/growth.py [sqlite] [postgres]

`make growth` runs it on both, with 1 000 000 messages and 100 000 sessions of which 10 000 are live, and fails if one
takes longer than a second. MESSAGES and SESSIONS say how many rows there are.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from service.domain.sending import SendPolicy
from service.persistence import lanes, migrations, observing, sweeping, unpublished
from service.persistence.database import Database
from service.persistence.heartbeats import Heartbeats
from service.persistence.surveying import survey
from service.persistence.tables import SessionRow
from service.persistence.unpublished import Part
from tests.bench.filling import Rows, fill, session_of
from tests.servers import Postgres

LIMIT = 1.0
_RUNS = 5
_PARTITIONS = 4
_EVERYTHING = Part(_PARTITIONS, dict.fromkeys(range(_PARTITIONS), 0.0))
_OF_ROWS = {name: one for name, one in vars(unpublished).items() if isinstance(one, unpublished.Unpublished)}
Look = Callable[[Database], Awaitable[Any]]


async def _void(tx: AsyncSession) -> None:
    await lanes.make_void(tx, await tx.get_one(SessionRow, await _first(tx), with_for_update=True))


async def _first(tx: AsyncSession) -> Any:
    return (await tx.execute(select(SessionRow.id).where(SessionRow.session_id == session_of(1)))).scalar_one()  # type: ignore[arg-type]


async def _claims(database: Database, *, of: list[str] | None = None) -> int:
    """Do a round of all the lanes that are due; return how many messages it claimed."""
    due = of or await database.read(partial(lanes.due, part=_EVERYTHING))
    work = partial(lanes.send_round, answers=[], due=due, policy=SendPolicy())
    return len((await database.transact(work)).claimed)


async def _voids(database: Database) -> None:
    await database.transact(_void)
    assert await _claims(database, of=[session_of(1)]) == 0


async def _page(database: Database, *, of: unpublished.Unpublished) -> None:
    await database.read(partial(of.page, part=_EVERYTHING))


def looks(rows: Rows) -> dict[str, Look]:
    """Return every look, by its name, in the order in which they are taken."""
    listed = [session_of(number) for number in range(1, rows.live + 1)]
    return {
        "sweep: what has expired": lambda database: database.transact(sweeping.wake_expired),
        "sweep: what sleeps": lambda database: database.transact(
            partial(sweeping.wake_forgotten, age=timedelta(minutes=1))
        ),
        "sweep: what is old": lambda database: database.transact(sweeping.forget_old),
        "reconcile: a gateway with a list": lambda database: survey(database, listed),
        "reconcile: a gateway without one": lambda database: survey(database, None),
        "gauges": observing.observe,
        "beat": lambda database: Heartbeats(database, "one", "queue", 15, partitions=_PARTITIONS).beat([0]),
        "lanes that are due": lambda database: database.read(partial(lanes.due, part=_EVERYTHING)),
        "claims of 200 lanes": _claims,
        "a number that has changed": _voids,
        **{f"relay: {name.lower()}": partial(_page, of=one) for name, one in _OF_ROWS.items()},
    }


async def measure(kind: str, rows: Rows) -> list[tuple[str, float]]:
    """Fill a database of a kind and return the longest of five runs of each look, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        async with _database(kind, Path(folder)) as database:
            await _fill(database, rows)
            return [
                (name, max([await _seconds(look, database) for _ in range(_RUNS)]))
                for name, look in looks(rows).items()
            ]


async def _fill(database: Database, rows: Rows) -> None:
    # By an engine of its own: it takes longer than any statement of the service may.
    engine = create_async_engine(database._writer.url)
    async with AsyncSession(engine) as tx, tx.begin():
        await fill(tx, rows)
    await engine.dispose()


async def _seconds(look: Look, database: Database) -> float:
    began = time.perf_counter()
    await look(database)
    return time.perf_counter() - began


@asynccontextmanager
async def _database(kind: str, folder: Path) -> AsyncIterator[Database]:
    server = Postgres() if kind == "postgres" else None
    try:
        if server is None:
            url = f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
        else:
            await server.start()
            url = await server.create_database()
        await asyncio.to_thread(migrations.upgrade, url)
        database = Database(url)
        yield database
        await database.close()
    finally:
        if server is not None:
            await server.stop()


def main() -> int:
    """Measure, print a table, and return the exit status."""
    kinds = sys.argv[1:] or ["sqlite", "postgres"]
    messages, sessions = int(os.environ.get("MESSAGES", "1000000")), int(os.environ.get("SESSIONS", "100000"))
    rows = Rows(messages=messages, sessions=sessions, live=sessions // 10, parked=messages * 15 // 100)
    print(f"{rows}\n\n| database | look | longest of {_RUNS}, ms |\n| --- | --- | --: |")
    slow = 0
    for kind in kinds:
        for name, seconds in asyncio.run(measure(kind, rows)):
            slow += seconds > LIMIT
            print(f"| {kind} | {name} | {seconds * 1000:.0f}{' **too long**' if seconds > LIMIT else ''} |", flush=True)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

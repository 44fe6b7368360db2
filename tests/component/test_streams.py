"""Following a session, on both databases: what is shown is the row, however events come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from service import apps
from service.errors import DatabaseUnavailable
from service.ingress import streams as module
from service.ingress.streams import Streams
from service.messaging import listening
from service.persistence.database import Database
from service.persistence.tables import ChatbotRow, SessionRow
from service.settings import Settings
from tests.component.rows import a_session, change
from tests.system import SECONDS, eventually
from whatsapp_qr_contracts.message import SessionStatus as S


@pytest.fixture(autouse=True)
def only_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself within a test."""
    monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 10 * SECONDS)


class Seen:
    """What one who follows was shown."""

    def __init__(self) -> None:
        self.states: list[tuple[int, S]] = []
        self.ended = False

    async def now(self) -> list[tuple[int, S]]:
        return self.states

    async def over(self) -> bool:
        return self.ended


@asynccontextmanager
async def following(streams: Streams, session: SessionRow, seen: str | None = None) -> AsyncIterator[Seen]:
    shown = Seen()

    async def follow() -> None:
        async for row in streams.follow(session.session_id, seen):
            shown.states.append((row.version, row.status))
        shown.ended = True

    task = asyncio.create_task(follow())
    try:
        yield shown
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def renewed(database: Database, session: SessionRow, **values: Any) -> str:
    """Change a session as its consumer does; return the key of the event."""
    await change(database, session, version=session.version + 1, **values)
    session.version += 1
    return str(session.chatbot_id)


async def test_it_is_shown_now_and_after_each_change(database: Database) -> None:
    """Each version once, also where an event comes twice or is about something else."""
    session, other = await a_session(database), await a_session(database)
    streams, first = Streams(database), (session.version, session.status)
    async with following(streams, session) as shown:
        await eventually(shown.now, lambda states: states == [first])
        streams.hear(str(other.chatbot_id))
        key = await renewed(database, session, status=S.QR_READY)
        for _ in range(3):
            streams.hear(key)
        second = (session.version, S.QR_READY)
        await eventually(shown.now, lambda states: states == [first, second])
        streams.hear(await renewed(database, session, status=S.CONNECTED))
        await eventually(shown.now, lambda states: states == [first, second, (session.version, S.CONNECTED)])
    assert not streams._bells, "nothing is left of those who have gone"


async def test_a_change_while_it_is_read_is_not_missed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event that comes between the look at the row and the wait for the next event makes it look again."""
    session, read = await a_session(database), database.read
    streams = Streams(database)

    async def late(work: Any, *, seconds: float | None = None) -> Any:
        row = await read(work, seconds=seconds)
        if row.version == session.version and row.status is not S.QR_READY:
            streams.hear(await renewed(database, session, status=S.QR_READY))
        return row

    monkeypatch.setattr(database, "read", late)
    async with following(streams, session) as shown:
        await eventually(shown.now, lambda states: [status for _, status in states] == [S.CONNECTED, S.QR_READY])


async def test_who_comes_again_is_shown_what_is_new(database: Database) -> None:
    """The version that was seen is not shown again, the next one is."""
    session = await a_session(database)
    streams = Streams(database)
    async with following(streams, session, seen=str(session.version)) as shown:
        await eventually(lambda: asyncio.sleep(0, bool(streams._bells)))
        streams.hear(await renewed(database, session, status=S.DISCONNECTED))
        await eventually(shown.now, lambda states: states == [(session.version, S.DISCONNECTED)])


async def test_a_lost_event_only_delays(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks by itself now and then."""
    monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 0.1)
    session = await a_session(database)
    async with following(Streams(database), session) as shown:
        await eventually(shown.now)
        await renewed(database, session, status=S.DISCONNECTED)
        await eventually(shown.now, lambda states: states[1:] == [(session.version, S.DISCONNECTED)])


async def test_a_database_that_is_away_does_not_end_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed meanwhile is shown once it is back."""
    monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 0.1)
    session, tried = await a_session(database), asyncio.Event()

    async def away(*_: object, **_options: object) -> None:
        tried.set()
        raise DatabaseUnavailable("no database")

    async with following(Streams(database), session) as shown:
        await eventually(shown.now)
        with monkeypatch.context() as patched:
            patched.setattr(database, "read", away)
            await tried.wait()
        await renewed(database, session, status=S.DISCONNECTED)
        await eventually(shown.now, lambda states: states[1:] == [(session.version, S.DISCONNECTED)])
        assert not shown.ended


@pytest.mark.parametrize("why", ["removed", "told"])
async def test_it_ends(database: Database, why: str) -> None:
    """With the chatbot, and with the process."""
    session = await a_session(database)
    streams = Streams(database)
    async with following(streams, session) as shown:
        await eventually(shown.now)
        if why == "told":
            streams.end()
        else:
            await database.transact(lambda tx: _remove(tx, session))
            streams.hear(str(session.chatbot_id))
        await eventually(shown.over)
    assert not streams._bells
    async with following(streams, session) as late:
        await eventually(late.over)
        assert late.states == []


async def test_a_process_hears_for_its_streams(monkeypatch: pytest.MonkeyPatch, sqlite_database: str) -> None:
    """By the key under which the events of a chatbot are published."""
    heard: list[listening.Hear] = []
    monkeypatch.setattr(listening, "Listener", lambda _url, _partitions, hear, **_: heard.append(hear))
    app = apps.ingress_app(Settings(database_url=sqlite_database))
    bell = asyncio.Event()
    app.state.streams._bells["key"].add(bell)
    heard[0]("a cause", "another key")
    assert not bell.is_set()
    heard[0]("a cause", "key")
    assert bell.is_set()


async def _remove(tx: Any, session: SessionRow) -> None:
    (await tx.get_one(ChatbotRow, session.chatbot_id)).removed_at = datetime.now(UTC)

"""The gauges on both databases: what they show, how fresh it is, and that they forget what they cannot look up."""

import math
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence import observing, sessions
from service.persistence.database import Database
from service.persistence.tables import DeadLetterRow
from service.singletons import gauges as gauges_module
from service.singletons.gauges import Gauges
from tests.component.rows import a_session, change, enqueue, receive
from tests.system import SECONDS
from whatsapp_qr_contracts.message import SessionStatus

WAITS = ("connected", "away")


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"whatsapp_qr_{name}", labels)


def a_dead_letter(reason: str, *, replayed: bool = False) -> DeadLetterRow:
    at = datetime.now(UTC)
    return DeadLetterRow(
        id=uuid4(), reason=reason, source="q", body=b"", died_at=at, replayed_at=at if replayed else None
    )


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a look last for as long as a busy machine needs."""
    monkeypatch.setattr(observing, "_SECONDS", SECONDS)


@pytest.mark.usefixtures("unhurried")
async def test_an_empty_service_shows_zeros(database: Database) -> None:
    """All four states are there from the start, so that a rule about them finds something."""
    await Gauges(database).refresh()
    assert {status: shown("sessions", status=status) for status in SessionStatus} == dict.fromkeys(SessionStatus, 0)
    assert {kind: shown("oldest_pending_seconds", session=kind) for kind in WAITS} == dict.fromkeys(WAITS, 0)
    assert shown("oldest_unhandled_seconds") == 0


@pytest.mark.usefixtures("unhurried")
async def test_the_gauges_show_what_is_there(database: Database) -> None:
    """Sessions by state without removed chatbots, ages of what waits, and dead letters that were not replayed."""
    session = await a_session(database)
    removed = await a_session(database)
    lost = await a_session(database, status=SessionStatus.QR_READY)
    away = await enqueue(database, lost)
    await change(database, away, created_at=datetime.now(UTC) - timedelta(seconds=300))
    pending, unhandled = await enqueue(database, session), await receive(database, session)
    await change(database, pending, created_at=datetime.now(UTC) - timedelta(seconds=100))
    await change(database, unhandled, created_at=datetime.now(UTC) - timedelta(seconds=200))

    async def more(tx: AsyncSession) -> None:
        await sessions.remove_chatbot(tx, removed.chatbot_id)
        tx.add_all([a_dead_letter("bad"), a_dead_letter("bad"), a_dead_letter("bad", replayed=True)])

    await database.transact(more)
    await Gauges(database).refresh()
    assert (shown("sessions", status="CONNECTED"), shown("sessions", status="QR_READY")) == (1, 1)
    assert 100 <= (shown("oldest_pending_seconds", session="connected") or 0) < 130
    assert 300 <= (shown("oldest_pending_seconds", session="away") or 0) < 330
    assert 200 <= (shown("oldest_unhandled_seconds") or 0) < 230
    assert shown("stored_dead_letters", reason="other") == 2
    await database.transact(lambda tx: tx.execute(update(DeadLetterRow).values(replayed_at=datetime.now(UTC))))
    await Gauges(database).refresh()
    assert shown("stored_dead_letters", reason="other") is None


@pytest.mark.usefixtures("unhurried")
async def test_the_database_is_asked_at_most_every_5_s(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often /metrics is asked for; later it looks again."""
    assert gauges_module.FRESH_SECONDS == 5
    monkeypatch.setattr(gauges_module, "FRESH_SECONDS", SECONDS)
    gauges = Gauges(database)
    await gauges.refresh()
    await a_session(database)
    await gauges.refresh()
    assert shown("sessions", status="CONNECTED") == 0
    monkeypatch.setattr(gauges_module, "FRESH_SECONDS", 0)
    await gauges.refresh()
    assert shown("sessions", status="CONNECTED") == 1


@pytest.mark.usefixtures("unhurried")
async def test_without_a_database_nothing_is_shown(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was true before the database went away may not be any more."""
    await a_session(database)
    await database.transact(_add_a_dead_letter)
    await Gauges(database).refresh()

    async def away(*_: object, **__: object) -> None:
        detail = "no database"
        raise DatabaseUnavailable(detail)

    read = database.read
    monkeypatch.setattr(database, "read", away)
    await Gauges(database).refresh()
    assert shown("sessions", status="CONNECTED") is None
    assert shown("stored_dead_letters", reason="rejected") is None
    assert {shown("oldest_pending_seconds", session=kind) for kind in WAITS} == {None}
    assert math.isnan(shown("oldest_unhandled_seconds") or 0)
    monkeypatch.setattr(database, "read", read)
    await Gauges(database).refresh()
    assert shown("sessions", status="CONNECTED") == 1


async def _add_a_dead_letter(tx: AsyncSession) -> None:
    tx.add(a_dead_letter("rejected"))


async def test_the_look_takes_2_s_at_most(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that hangs must not hang /metrics."""
    limits: list[float | None] = []
    read = database.read

    async def watched(work: object, *, seconds: float | None = None) -> object:
        limits.append(seconds)
        return await read(work)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "read", watched)
    await observing.observe(database)
    assert limits == [2]

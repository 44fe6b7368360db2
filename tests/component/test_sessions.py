"""One session per chatbot, changes that were decided on a stale state, commands that are carried out once."""

import asyncio
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence import reading, sessions
from service.persistence.database import Database
from service.persistence.tables import ChatbotRow, CommandRow, SessionRow
from tests.component.rows import a_session, all_of
from whatsapp_qr_contracts.message import SessionStatus as S


async def test_racing_initializes_open_one_session(database: Database, other_process: Database) -> None:
    """Eight first initializes with eight ids of their own: one session, and all are given it."""
    chatbot_id = uuid4()

    async def open_one(database: Database, number: int) -> SessionRow:
        async def work(tx: AsyncSession) -> SessionRow:
            await sessions.register_chatbot(tx, chatbot_id)
            return await sessions.open_session(tx, chatbot_id, f"session_{chatbot_id}_{number}")

        return await database.transact(work)

    opened = await asyncio.gather(*(open_one((database, other_process)[n % 2], n) for n in range(8)))
    assert len({(session.id, session.session_id) for session in opened}) == 1
    assert len(await all_of(database, SessionRow)) == 1


async def test_a_change_decided_on_a_stale_state_is_not_made(database: Database) -> None:
    """Somebody else was faster: decide again. On the present state it is made."""
    seen = await a_session(database, status=S.CONNECTING)

    async def connect(tx: AsyncSession) -> SessionRow:
        session = await sessions.locked_unchanged(tx, seen)
        sessions.move(tx, session, S.CONNECTED, wanted=True)
        return session

    connected = await database.transact(connect)
    assert connected.version == seen.version + 1
    with pytest.raises(DatabaseUnavailable):
        await database.transact(connect)
    assert (await all_of(database, SessionRow))[0].version == connected.version


async def test_racing_changes_have_one_winner(database: Database, other_process: Database) -> None:
    """Of eight changes that were decided on the same state one is made; the others decide again."""
    seen = await a_session(database, status=S.CONNECTING)

    async def change(tx: AsyncSession) -> None:
        sessions.move(tx, await sessions.locked_unchanged(tx, seen), S.QR_READY, wanted=True, qr_code="x")

    ends = await asyncio.gather(
        *((database, other_process)[n % 2].transact(change) for n in range(8)), return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["DatabaseUnavailable"] * 7 + ["NoneType"]


async def test_a_move_keeps_what_belongs_to_the_status(database: Database) -> None:
    """The QR code lives as long as it can be scanned; the number and the last connection stay; every change counts."""
    seen = await a_session(database, status=S.CONNECTING)
    steps = (
        (S.QR_READY, {"qr_code": "data:1"}),
        (S.CONNECTED, {"phone_number": "549110"}),
        (S.DISCONNECTED, {"reason": "logged_out"}),
    )
    rows = []
    for status, fields in steps:

        async def work(tx: AsyncSession, status: S = status, fields: dict[str, str] = fields) -> SessionRow:
            session = await sessions.session_by_id(tx, seen.session_id, lock=True)
            assert session is not None
            sessions.move(tx, session, status, wanted=status is not S.DISCONNECTED, **fields)
            return session

        rows.append(await database.transact(work))
    assert [row.qr_code for row in rows] == ["data:1", None, None]
    assert [row.qr_at is not None for row in rows] == [True, False, False]
    assert [row.phone_number for row in rows] == [None, "549110", "549110"]
    assert [row.status_reason for row in rows] == [None, None, "logged_out"]
    assert [row.version - seen.version for row in rows] == [1, 2, 3]
    assert rows[1].last_connected_at == rows[2].last_connected_at is not None


async def test_a_command_has_one_row(database: Database, other_process: Database) -> None:
    """The same command at once in two processes: one row, and the outcome of the first is what both read."""
    chatbot_id = uuid4()

    async def carry_out(database: Database) -> bool:
        async def work(tx: AsyncSession) -> bool:
            new = CommandRow(chatbot_id=chatbot_id, command_id="c1", name="session.initialize", digest="d")
            row = await sessions.command_row(tx, new)
            first = row.outcome is None
            row.outcome = {"name": "session.connecting", "body": {"é": [1, None]}}
            return first

        return await database.transact(work)

    await asyncio.gather(*(carry_out((database, other_process)[n % 2]) for n in range(8)))
    assert len(await all_of(database, CommandRow)) == 1
    outcome = await database.read(lambda tx: sessions.command_outcome(tx, chatbot_id, "c1"))
    assert outcome == {"name": "session.connecting", "body": {"é": [1, None]}}
    assert not await carry_out(database)
    assert await database.read(lambda tx: sessions.command_outcome(tx, uuid4(), "c1")) is None


async def test_a_removed_chatbot_is_not_shown_and_can_come_back(database: Database) -> None:
    """Its session is hidden, its rows stay; registering it again shows the same session."""
    session = await a_session(database)

    async def shown() -> tuple[bool, bool, bool]:
        async def work(tx: AsyncSession) -> tuple[bool, bool, bool]:
            return (
                await reading.current_session(tx, chatbot_id=session.chatbot_id) is not None,
                await reading.current_session(tx, session_id=session.session_id) is not None,
                await sessions.chatbot_is_known(tx, session.chatbot_id),
            )

        return await database.read(work)

    assert await shown() == (True, True, True)
    for _ in range(2):
        await database.transact(lambda tx: sessions.remove_chatbot(tx, session.chatbot_id))
    assert await shown() == (False, False, False)
    [chatbot] = await all_of(database, ChatbotRow)
    assert isinstance(chatbot.removed_at, datetime)
    assert chatbot.removed_at - chatbot.registered_at < timedelta(minutes=5)
    await database.transact(lambda tx: sessions.register_chatbot(tx, session.chatbot_id))
    assert await shown() == (True, True, True)

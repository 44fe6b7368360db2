"""The schema's history: it ends at the models, can be repeated and raced, and happens wholly or not at all."""

import asyncio
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4, uuid5
from zlib import crc32

import pytest
from alembic import command
from sqlalchemy import Boolean, Integer, Uuid, column, table
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from service.consumers.announcing import OF_CONVERSATIONS, OF_SENDING, OF_SESSIONS
from service.consumers.outcomes import new_row
from service.consumers.row_outputs import Output
from service.domain.identities import whatsapp_message_id
from service.persistence import lanes, migrations
from service.persistence.columns import UtcDateTime
from service.persistence.database import Database
from service.persistence.tables import ChatbotRow, CommandRow, ConversationRow, LaneRow, MessageRow, SessionRow
from service.persistence.unpublished import Part
from service.settings import Settings
from tests.component.rows import CUSTOMER, Outputs, a_session, all_of, handle, receive, send_round
from whatsapp_qr_contracts.commands import CancelMessage
from whatsapp_qr_contracts.message import DeliveryStatus, Role, SessionStatus

UPGRADE = "import sys; from service.persistence import migrations; migrations.upgrade(sys.argv[1])"


AT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
# Columns that 0005 takes away, and those that it brings.
GONE = {
    "announced": Boolean(),
    "announced_version": Integer(),
    "claim": Uuid(),
    "claimed_until": UtcDateTime(),
    "not_before": UtcDateTime(),
}
NEW = {"key_hash", "version", "told_version", "participant", "handed_over", "correlation_id"}
EVERYTHING = Part(4, dict.fromkeys(range(4), 0.0))


async def upgrade_in_a_process(url: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UPGRADE, url, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(60):
        _, error = await process.communicate()
    return error.decode()[-500:] if process.returncode else ""


async def test_the_schema_is_that_of_the_models(migrated_url: str) -> None:
    """Alembic finds nothing to add: no table, column, index or type was forgotten in a migration."""
    await asyncio.to_thread(command.check, migrations.configuration(migrated_url))


async def test_upgrading_again_changes_nothing(migrated_url: str, database: Database) -> None:
    """Every start of the service may migrate; the rows stay."""
    session = await a_session(database)
    stored = await receive(database, session)
    await asyncio.to_thread(migrations.upgrade, migrated_url)
    assert (await receive(database, session)).id == stored.id


async def test_racing_upgrades_all_succeed(database_url: str) -> None:
    """Several processes that start at once may all migrate: each finds the schema complete afterwards."""
    assert await asyncio.gather(*(upgrade_in_a_process(database_url) for _ in range(3))) == [""] * 3
    database = Database(database_url)
    await a_session(database)
    await database.close()


async def test_a_broken_off_migration_leaves_nothing(sqlite_database: str, tmp_path: Path) -> None:
    """SQLite's driver would commit each table by itself: then a crash in between would block every later upgrade."""
    with sqlite3.connect(tmp_path / "whatsapp-qr.db") as file:
        file.execute("CREATE TABLE receipts (in_the_way)")
    with pytest.raises(OperationalError, match="already exists"):
        await asyncio.to_thread(migrations.upgrade, sqlite_database)
    assert [name for (name,) in file.execute("SELECT name FROM sqlite_master")] == ["receipts"]
    file.execute("DROP TABLE receipts")
    file.close()
    await asyncio.to_thread(migrations.upgrade, sqlite_database)


async def test_a_url_as_platforms_give_it_is_accepted(shared_postgres: object, postgres_database: str) -> None:
    """`postgresql://` in DATABASE_URL reaches the database through the asynchronous driver."""
    assert shared_postgres
    plain = postgres_database.replace("+asyncpg", "")
    url = Settings(database_url=plain).database_url
    await asyncio.to_thread(migrations.upgrade, url)
    database = Database(url)
    await database.ping()
    await database.close()


async def test_a_folder_is_made_for_a_new_file(tmp_path: Path) -> None:
    """The default database lies in `.local/`, which a fresh checkout does not have."""
    await asyncio.to_thread(migrations.upgrade, f"sqlite+aiosqlite:///{tmp_path / 'new' / 'folder' / 'x.db'}")
    assert (tmp_path / "new" / "folder" / "x.db").exists()


class Before:
    """Writes rows as revision 0004 had them."""

    def __init__(self, tx: AsyncSession) -> None:
        self.tx = tx

    async def write(self, row: Any, **more: Any) -> None:
        values = {name: value for name, value in row.model_dump().items() if name not in NEW} | more
        types = {one.name: one.type for one in row.__table__.c} | GONE
        columns: list[Any] = [column(name, types[name]) for name in values]
        await self.tx.execute(table(row.__tablename__, *columns).insert().values(values))

    async def session(self, **more: Any) -> SessionRow:
        chatbot_id = uuid4()
        await self.write(ChatbotRow(id=chatbot_id))
        row = SessionRow(chatbot_id=chatbot_id, session_id=f"session_{chatbot_id}_1", status=SessionStatus.CONNECTED)
        row.moved_at = AT
        await self.write(row, **{"version": 1, "announced_version": 1} | more)
        return row

    async def conversation(self, session: SessionRow, *, announced: bool) -> ConversationRow:
        row = ConversationRow(
            id=uuid4(),
            chatbot_id=session.chatbot_id,
            channel="WHATSAPP_QR",
            external_user_id=CUSTOMER,
            last_message_at=AT,
            changed_at=AT,
        )
        await self.write(row, announced=announced)
        return row

    async def message(
        self, conversation: ConversationRow, session: SessionRow, number: int, *, announced: bool = True, **fields: Any
    ) -> UUID:
        gone = {name: fields.pop(name, None) for name in ("claim", "claimed_until", "not_before")}
        message_id, place = uuid4(), "sequence" if fields.get("role") is Role.USER else "lane_number"
        given: dict[str, Any] = {"role": Role.ASSISTANT, "delivery_status": DeliveryStatus.PENDING, place: number}
        row = MessageRow(
            id=message_id,
            conversation_id=conversation.id,
            chatbot_id=session.chatbot_id,
            session_id=session.session_id,
            content="hello",
            whatsapp_message_id=whatsapp_message_id(message_id),
            correlation_id=f"cause {number}",
            external_user_id=CUSTOMER,
            changed_at=AT,
            created_at=AT + timedelta(seconds=number),
            **given | fields,
        )
        await self.write(row, announced=announced, correlation_id=row.correlation_id, **gone)
        return message_id


async def told_by_the_rows(database: Database) -> dict[str, tuple[str, str]]:
    """Return name and cause, by id, of everything that the rows have to tell."""
    sources = [one for of in (OF_SESSIONS, OF_CONVERSATIONS, OF_SENDING) for some in of.values() for one in some]

    async def look(tx: AsyncSession) -> list[Output]:
        pages = [(one.outputs, await one.unpublished.page(tx, EVERYTHING)) for one in sources]
        return [output for outputs, page in pages for row in page for output in outputs(row)]

    outputs = await database.read(look)
    assert len({output.message_id for output in outputs}) == len(outputs)
    return {output.message_id: (output.message.name, output.correlation_id) for output in outputs}


SENT_AT, FAILED_AT = AT + timedelta(seconds=7), AT + timedelta(seconds=8)
CLAIM, CANCELLED = uuid4(), str(uuid4())


async def unfinished(tx: AsyncSession) -> SimpleNamespace:
    """Leave something of every kind to do, in one session with all of it and one with little."""
    old = Before(tx)
    user: dict[str, Any] = {"role": Role.USER, "delivery_status": DeliveryStatus.DELIVERED}
    sent: dict[str, Any] = {"delivery_status": DeliveryStatus.SENT, "sent_at": SENT_AT}
    failed: dict[str, Any] = {"delivery_status": DeliveryStatus.FAILED, "failed_at": FAILED_AT}
    busy, quiet = await old.session(version=3, announced_version=2), await old.session()
    event_id = str(uuid5(busy.id, "version 3"))
    outcome = {"name": "session.connected", "message_id": event_id, "body": {}}
    await old.write(
        CommandRow(chatbot_id=busy.chatbot_id, command_id="asked", name="session.initialize", outcome=outcome)
    )
    began, known = await old.conversation(busy, announced=False), await old.conversation(quiet, announced=True)
    received = await old.message(began, busy, 1, announced=False, **user)
    went = await old.message(began, busy, 3, announced=False, **sent)
    broke = await old.message(began, busy, 4, announced=False, error_code="refused", **failed)
    told = [await old.message(began, busy, 2, **user), await old.message(began, busy, 5, **sent)]
    claimed = await old.message(began, busy, 6, claim=CLAIM, claimed_until=FUTURE)
    behind = await old.message(began, busy, 7)
    taken_back = await old.message(known, quiet, 1, error_code="cancelled", **failed)
    waits = await old.message(known, quiet, 2, claim=uuid4(), not_before=AT)
    cancel = CancelMessage(chatbot_id=quiet.chatbot_id, message_id=taken_back)
    row = new_row(cancel, "cancelled")
    body = {
        "messageId": str(taken_back),
        "conversationId": str(known.id),
        "chatbotId": str(quiet.chatbot_id),
        "sessionId": quiet.session_id,
        "externalUserId": CUSTOMER,
        "whatsappMessageId": "3EB0",
        "occurredAt": FAILED_AT.isoformat(),
        "deliveryStatus": "FAILED",
        "metadata": {},
    }
    row.outcome = {"name": "message.cancelled", "message_id": CANCELLED, "body": body}
    await old.write(row)
    untold = {
        event_id: ("session.connected", "asked"),
        str(uuid5(began.id, "started")): ("conversation.started", "cause 1"),
        str(uuid5(received, "job")): ("incoming-messages", "cause 1"),
        str(uuid5(received, "received")): ("message.received", "cause 1"),
        str(uuid5(went, f"SENT {SENT_AT.isoformat()}")): ("message.sent", "cause 3"),
        str(uuid5(broke, f"FAILED {FAILED_AT.isoformat()}")): ("message.failed", "cause 4"),
    }
    messages = {received, went, broke, *told, claimed, behind, taken_back, waits}
    return SimpleNamespace(
        busy=busy, quiet=quiet, untold=untold, messages=messages, claimed=claimed, waits=waits, cancel=cancel
    )


async def test_what_was_unfinished_is_brought_over(database_url: str) -> None:
    """From 0004: nothing is lost, outputs keep their ids, lanes are awake or wait for a claim, rows know their key."""
    await asyncio.to_thread(command.upgrade, migrations.configuration(database_url), "0004")
    database = Database(database_url)
    left = await database.transact(unfinished)
    await asyncio.to_thread(migrations.upgrade, database_url)
    await asyncio.to_thread(command.check, migrations.configuration(database_url))

    assert await told_by_the_rows(database) == left.untold
    assert {row.id for row in await all_of(database, MessageRow)} == left.messages
    for kind in (SessionRow, CommandRow, ConversationRow, MessageRow):
        for row in await all_of(database, kind):
            assert row.key_hash == crc32(str(row.chatbot_id).encode())

    rows = {row.session_id: row for row in await all_of(database, LaneRow)}
    theirs, free = rows[left.busy.session_id], rows[left.quiet.session_id]
    assert (theirs.claim, theirs.claimed_message) == (CLAIM, left.claimed)
    assert theirs.claimed_until == theirs.wake_at == FUTURE
    assert free.claimed_message is free.claimed_until is None  # an attempt that has ended: nothing is on its way
    assert theirs.key_hash == crc32(str(left.busy.chatbot_id).encode())
    assert await database.read(lambda tx: lanes.due(tx, EVERYTHING)) == [left.quiet.session_id]
    done = await send_round(database, left.busy, left.quiet)
    assert [one.message.id for one in done.claimed] == [left.waits]

    repeated = Outputs()
    assert await handle(database, left.cancel, message_id="cancelled", announcer=repeated) == []
    assert [(one.message.name, one.message_id) for one in repeated.outputs] == [("message.cancelled", CANCELLED)]
    await database.close()

"""What looks through the tables now and then reads them by an index, on both databases, however it is written."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from service.persistence.database import Database, on_sqlite
from service.persistence.lanes import send_round
from service.persistence.reading import before_sends
from tests.bench.filling import Rows, fill
from tests.bench.growth import looks
from tests.component.conversing import a_receipt
from tests.component.rows import POLICY, a_command, a_report, a_session, answered, enqueue, handle
from tests.component.standins import World as SessionWorld
from whatsapp_qr_contracts.gateway import GatewayQr
from whatsapp_qr_contracts.message import SessionStatus

ROWS = Rows(messages=4000, sessions=400, live=40, parked=500)
# Sessions are counted by their status, all of them: 100 000 take some 30 ms, every 5 s at most.
COUNTED = "count(*)"
PARTIAL = {
    index.name
    for table in SQLModel.metadata.tables.values()
    for index in table.indexes
    if index.dialect_options["sqlite"]["where"] is not None
}
GROW = ("messages", "sessions", "lanes", "conversations")
SQLITE = re.compile(r"^SCAN (?P<table>\w+)(?: USING (?:COVERING )?INDEX (?P<index>\w+))?$")
POSTGRES = re.compile(r"(?:Seq|Index|Index Only) Scan(?: Backward)?(?: using (?P<index>\w+))? on (?P<table>\w+)")


@pytest.fixture
async def filled(database: Database) -> Database:
    """A database in which each table of note has rows."""
    await database.transact(partial(fill, rows=ROWS))
    return database


@contextmanager
def heard(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements that read or change rows of the tables that grow."""
    statements: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:  # noqa: FBT001  # SQLAlchemy's
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            statements.append((statement, parameters[0] if many else parameters))

    engines = {database._reader.sync_engine, database._writer.sync_engine}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", keep)
    yield statements
    for engine in engines:
        event.remove(engine, "before_cursor_execute", keep)


async def plan_of(tx: AsyncSession, *, statement: str, parameters: Any) -> list[str]:
    """Return the steps of a statement's plan, where PostgreSQL uses an index if there is one that it can use."""
    connection = (await (await tx.connection()).get_raw_connection()).driver_connection
    assert connection is not None
    if on_sqlite(tx):
        rows = await connection.execute_fetchall(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return [row[3] for row in rows]
    await tx.execute(text("SET LOCAL enable_seqscan = off"))
    return [row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *parameters)]


def reads_all(steps: list[str]) -> list[str]:
    """Return the steps that read the whole of a table that grows, be it in the order of an index that has every row."""
    found = []
    for step, after in itertools.zip_longest(steps, steps[1:], fillvalue=""):
        whole = SQLITE.search(step) or (POSTGRES.search(step) if "Index Cond" not in after else None)
        if whole and whole["table"] in GROW and whole["index"] not in PARTIAL:
            found.append(step)
    return found


async def whole_reads(database: Database, statements: list[tuple[str, Any]]) -> list[str]:
    """Return those statements that read the whole of a table that grows."""
    whole = []
    for statement, parameters in dict(statements).items():
        steps = await database.transact(partial(plan_of, statement=statement, parameters=parameters))
        if COUNTED not in statement and (found := reads_all(steps)):
            whole.append("\n".join((statement, *found)))
    return whole


async def test_every_look_goes_by_an_index(filled: Database) -> None:
    """Sweeps, the reconciler, gauges, claims and relays: none reads a whole table that grows."""
    with heard(filled) as statements:
        for look in looks(ROWS).values():
            await look(filled)
    assert len({statement for statement, _ in statements}) > 20
    assert await whole_reads(filled, statements) == []


async def test_whatever_a_message_needs_goes_by_an_index(filled: Database) -> None:
    """In both directions: storing, sending, its receipt, a new QR code, what the ingress looks for before a send."""
    session, linking = await a_session(filled), await a_session(filled, status=SessionStatus.QR_READY)
    with heard(filled) as statements:
        await handle(filled, a_report(session), a_report(session), a_command(session))
        message = await enqueue(filled, session, wakes=False)
        work = partial(send_round, answers=[], due=[], policy=POLICY, jobs=[message.id], room=1)
        [claimed] = (await filled.transact(work)).claimed
        await answered(filled, claimed, "W1")
        await handle(filled, a_receipt(session, "W1"))
        await SessionWorld(filled).handle(GatewayQr(type="qr", session_id=linking.session_id, data={"qrCode": "x"}))
        await filled.read(partial(before_sends, keys=[(session.chatbot_id, message.id)]))
    assert len({statement for statement, _ in statements}) > 12
    assert await whole_reads(filled, statements) == []

"""What the broker confirmed is written down shortly after, whatever the database does, and says nothing too much."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from service.consumers import row_outputs
from service.errors import DatabaseUnavailable
from service.persistence import confirmations as marks_module
from service.persistence.confirmations import _STATEMENTS, Confirmation, Confirmations, merged
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, SessionRow
from tests.component.conversing import World, a_receipt, confirm
from tests.component.rows import a_session, all_of, change, enqueue, receive, reread, sent
from tests.system import SECONDS
from whatsapp_qr_contracts.commands import CancelMessage, RetryMessage
from whatsapp_qr_contracts.message import DeliveryStatus as D


@pytest.fixture
def confirmations(database: Database) -> Confirmations:
    return Confirmations(database)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


@contextmanager
def away(database: Database, error: Exception) -> Iterator[asyncio.Event]:
    """Let no transaction succeed; the event says that one was tried."""
    tried = asyncio.Event()

    async def fail(_work: object, **_options: object) -> None:
        tried.set()
        raise error

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "transact", fail)
        yield tried


async def handed_over(database: Database, *messages: MessageRow) -> list[bool]:
    return [(await reread(database, message)).handed_over for message in messages]


async def test_each_kind_of_mark_is_written(database: Database, confirmations: Confirmations) -> None:
    """Nothing of a row is untold once its event and its job are confirmed; each has a mark of its own."""
    session = await a_session(database)
    outputs = await World(database).handle(CancelMessage(chatbot_id=session.chatbot_id, message_id=uuid4()))
    message = await receive(database, session)
    [conversation] = await all_of(database, ConversationRow)
    outputs += [
        *row_outputs.of_session(session),
        *row_outputs.of_conversation(conversation),
        *row_outputs.of_message(message),
    ]
    assert {output.confirmation.table for output in outputs} == {SessionRow, CommandRow, ConversationRow, MessageRow}
    confirmations.start()
    for output in outputs[:-1]:
        confirmations.note(output.confirmation)
    await until(lambda: _written(database, message))
    row = await reread(database, message)
    assert (row.handed_over, row.told_version) == (True, 0)
    confirmations.note(outputs[-1].confirmation)
    await confirmations.end()
    await confirmations.settle(SECONDS)
    for table, of in (
        (SessionRow, row_outputs.of_session),
        (CommandRow, row_outputs.of_command),
        (ConversationRow, row_outputs.of_conversation),
        (MessageRow, row_outputs.of_message),
    ):
        assert [of(row) for row in await all_of(database, table)] == [[]], table  # type: ignore[operator]


async def _written(database: Database, message: MessageRow) -> bool:
    return (await handed_over(database, message)) == [True]


async def test_marks_lock_in_one_order() -> None:
    """Whatever order they were noted in: one mark for each row, sorted by its key; what is confirmed adds up."""
    chatbot_id = UUID(int=1)
    noted = [Confirmation(CommandRow, (chatbot_id, str(n)), 1) for n in range(20)]
    noted += [Confirmation(MessageRow, (UUID(int=n),), n) for n in range(20)]
    noted += [Confirmation(MessageRow, (UUID(int=n),), place=n) for n in range(20)]
    noted += [Confirmation(ConversationRow, (UUID(int=7),), 1)]
    noted += [Confirmation(SessionRow, (UUID(int=7),), version) for version in (2, 1)]
    forward, backward = merged(noted), merged(reversed(noted))
    for table, rows in ((CommandRow, 20), (MessageRow, 20), (ConversationRow, 1), (SessionRow, 1)):
        ours = [mark for mark in forward if mark.table is table]
        assert ours == [mark for mark in backward if mark.table is table]
        keys = [[str(part) for part in mark.key] for mark in ours]
        assert (keys, len(keys)) == (sorted(keys), rows)
    assert {Confirmation(SessionRow, (UUID(int=7),), 2), Confirmation(MessageRow, (UUID(int=7),), 7, 7)} <= set(forward)
    assert list(_STATEMENTS) == [SessionRow, ConversationRow, MessageRow, CommandRow]


async def test_closing_writes_what_is_left(database: Database) -> None:
    """A process that ends in order leaves nothing to be repeated, started or not."""
    for start in (False, True):
        session = await a_session(database)
        stored = [await receive(database, session, f"A{n}", **{"from": f"549110000000{n}"}) for n in range(5)]
        confirmations = Confirmations(database)
        if start:
            confirmations.start()
        for message in stored:
            confirmations.note(Confirmation(MessageRow, (message.id,), version=1, place=0))
            confirmations.note(Confirmation(ConversationRow, (message.conversation_id,), 1))
        await confirmations.end()
        await confirmations.settle(SECONDS)
        assert await handed_over(database, *stored) == [True] * 5
        rows = await all_of(database, ConversationRow, chatbot_id=session.chatbot_id)
        assert [row.told_version for row in rows] == [1] * 5


async def test_a_mark_of_an_older_version_says_nothing_about_the_newer(database: Database) -> None:
    """The status rose before the mark was written: its event is still to be told; a late mark takes nothing back."""
    session, world = await a_session(database), World(database)
    await enqueue(database, session)
    message = await sent(database, session)
    first = row_outputs.event_of(message)
    second = await world.handle(a_receipt(session, message.whatsapp_message_id, "read"))
    await world.confirm(first)
    assert row_outputs.event_of(await reread(database, message)) == second
    await world.confirm(second)
    await world.confirm(first)
    assert row_outputs.event_of(await reread(database, message)) == []


async def test_a_mark_of_the_job_before_a_retry_says_nothing_about_the_one_after(database: Database) -> None:
    """It was confirmed at another place of the lane: the message stands at a new one, and needs another job."""
    session, world = await a_session(database), World(database)
    message = await enqueue(database, session)
    first = row_outputs.job_of(message)
    await change(database, message, delivery_status=D.FAILED, error_code="refused")
    outputs = await world.handle(RetryMessage(chatbot_id=session.chatbot_id, message_id=message.id))
    second = [output for output in outputs if output.message.name == "whatsapp-qr-send"]
    assert first[0].message_id != second[0].message_id
    await world.confirm(first)
    assert await handed_over(database, message) == [False]
    await world.confirm(second)
    assert await handed_over(database, message) == [True]


async def test_a_mark_does_not_make_a_row_young(database: Database) -> None:
    """What of it is still untold is told by the age of the row, which a confirmation of something else leaves alone."""
    message = await receive(database, await a_session(database))
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    await change(database, message, changed_at=long_ago)
    await confirm(database, *row_outputs.job_of(message))
    row = await reread(database, message)
    assert (row.handed_over, row.changed_at) == (True, long_ago)


async def test_marks_survive_an_unavailable_database(database: Database, confirmations: Confirmations) -> None:
    """They are kept while the database is away, and written once it is back."""
    message = await receive(database, await a_session(database))
    with away(database, DatabaseUnavailable("away")) as tried:
        confirmations.start()
        confirmations.note(Confirmation(MessageRow, (message.id,), place=0))
        async with asyncio.timeout(SECONDS):
            await tried.wait()
    await until(lambda: _written(database, message))
    await confirmations.end()
    await confirmations.settle(SECONDS)


async def test_an_odd_error_does_not_end_the_writing(database: Database, confirmations: Confirmations) -> None:
    """Whatever a driver says in the middle of a lost connection: it is logged, and all is written with the next try."""
    session = await a_session(database)
    one, two = [await receive(database, session, name) for name in ("A1", "A2")]
    with away(database, RuntimeError("another operation is in progress")) as tried:
        confirmations.start()
        confirmations.note(Confirmation(MessageRow, (one.id,), place=0))
        async with asyncio.timeout(SECONDS):
            await tried.wait()
    confirmations.note(Confirmation(MessageRow, (two.id,), place=0))
    await until(lambda: _written(database, one))
    await until(lambda: _written(database, two))
    assert confirmations.alive
    await confirmations.end()
    await confirmations.settle(SECONDS)


async def test_few_rows_are_locked_at_a_time(
    database: Database, confirmations: Confirmations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much was confirmed: whoever handles a message of one of them waits for a short transaction."""
    monkeypatch.setattr(marks_module, "_AT_ONCE", 2)
    session = await a_session(database)
    messages = [await receive(database, session, f"A{n}") for n in range(5)]
    rows: list[int] = []
    real = marks_module.merged

    def merging(portion: list[Confirmation]) -> list[Confirmation]:
        rows.append(len(portion))
        return real(portion)

    monkeypatch.setattr(marks_module, "merged", merging)
    for message in messages:
        confirmations.note(Confirmation(MessageRow, (message.id,), place=0))
    await confirmations.flush()
    assert rows == [2, 2, 1]
    assert await handed_over(database, *messages) == [True] * 5


async def test_what_cannot_be_written_is_forgotten_in_the_end(
    database: Database, confirmations: Confirmations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has a bound: what is forgotten is published once more, under the same id."""
    monkeypatch.setattr(marks_module, "_MOST", 2)
    session = await a_session(database)
    messages = [await receive(database, session, name) for name in ("A1", "A2", "A3")]
    for message in messages:
        confirmations.note(Confirmation(MessageRow, (message.id,), place=0))
    await confirmations.end()
    await confirmations.settle(SECONDS)
    assert await handed_over(database, *messages) == [False, False, True]

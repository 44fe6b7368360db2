"""What the broker confirmed is known at once and written down shortly after, whatever the database does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from service.errors import DatabaseUnavailable
from service.persistence import confirmations as confirmations_module
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.tables import ConversationRow, MessageRow
from tests.component.rows import a_session, all_of, change, receive, reread
from tests.system import SECONDS
from whatsapp_qr_contracts.message import DeliveryStatus


@pytest.fixture
async def confirmations(database: Database) -> AsyncIterator[Confirmations]:
    confirmations = Confirmations(database)
    yield confirmations
    await confirmations.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_confirmation_is_known_at_once_and_written_later(
    database: Database, confirmations: Confirmations
) -> None:
    """A repetition in the same process publishes nothing again; after a restart the row says so."""
    conversation, message, _ = await receive(database, await a_session(database))
    assert not confirmations.has_message(message)
    assert not confirmations.has_conversation(conversation)
    confirmations.message(message)
    confirmations.conversation(conversation)
    assert confirmations.has_message(message)
    assert confirmations.has_conversation(conversation)
    assert not (await reread(database, message)).announced
    confirmations.start()

    async def written() -> bool:
        [row] = await all_of(database, ConversationRow)
        return bool(row.announced and (await reread(database, message)).announced)

    await until(written)
    assert Confirmations(database).has_message(await reread(database, message))


async def test_closing_writes_what_is_left(database: Database) -> None:
    """A process that ends in order leaves nothing to be repeated, started or not."""
    for start in (False, True):
        session = await a_session(database)
        stored = [await receive(database, session, f"A{n}", **{"from": f"549110000000{n}"}) for n in range(5)]
        confirmations = Confirmations(database)
        if start:
            confirmations.start()
        for one in stored:
            confirmations.message(one.message)
            confirmations.conversation(one.conversation)
        await confirmations.close()
        assert all([(await reread(database, one.message)).announced for one in stored])
        rows = await all_of(database, ConversationRow, chatbot_id=session.chatbot_id)
        assert [row.announced for row in rows] == [True] * 5


async def test_a_confirmation_of_an_older_status_says_nothing_about_the_newer(
    database: Database, confirmations: Confirmations
) -> None:
    """The status rose before the confirmation was written: its event is still to be announced."""
    message = (await receive(database, await a_session(database))).message
    confirmations.message(message)
    await change(database, message, delivery_status=DeliveryStatus.READ)
    await confirmations.close()
    risen = await reread(database, message)
    assert not risen.announced
    assert not confirmations.has_message(risen)


async def test_confirmations_survive_an_unavailable_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay known while the database is away, and are written once it is back."""
    message = (await receive(database, await a_session(database))).message
    tried, transact = asyncio.Event(), database.transact

    async def away(_work: object, **_options: object) -> None:
        tried.set()
        detail = "away"
        raise DatabaseUnavailable(detail)

    monkeypatch.setattr(database, "transact", away)
    confirmations = Confirmations(database)
    confirmations.start()
    confirmations.message(message)
    async with asyncio.timeout(SECONDS):
        await tried.wait()
    assert confirmations.has_message(message)
    monkeypatch.setattr(database, "transact", transact)

    async def written() -> bool:
        return bool((await all_of(database, MessageRow))[0].announced)

    await until(written)
    await confirmations.close()


async def test_an_odd_error_does_not_end_the_writing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a driver says in the middle of a lost connection: it is logged, and all is written with the next try."""
    session = await a_session(database)
    messages = [(await receive(database, session, name)).message for name in ("A1", "A2")]
    failed, transact = asyncio.Event(), database.transact

    async def odd(_work: object, **_options: object) -> None:
        monkeypatch.setattr(database, "transact", transact)
        failed.set()
        detail = "another operation is in progress"
        raise RuntimeError(detail)

    monkeypatch.setattr(database, "transact", odd)
    confirmations = Confirmations(database)
    confirmations.start()
    confirmations.message(messages[0])
    async with asyncio.timeout(SECONDS):
        await failed.wait()
    confirmations.message(messages[1])

    async def written() -> bool:
        return all([(await reread(database, message)).announced for message in messages])

    await until(written)
    await confirmations.close()


async def test_what_cannot_be_written_is_forgotten_in_the_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has a bound: it is published once more, under the same id."""
    monkeypatch.setattr(confirmations_module, "_MOST", 2)
    session = await a_session(database)
    one, two, three = [(await receive(database, session, name)).message for name in ("A1", "A2", "A3")]
    confirmations = Confirmations(database)
    for message in (one, two, three):
        confirmations.message(message)
    assert [confirmations.has_message(message) for message in (one, two, three)] == [False, False, True]
    await confirmations.close()
    assert [(await reread(database, message)).announced for message in (one, two, three)] == [False, False, True]

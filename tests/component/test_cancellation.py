"""Whoever is cancelled in the middle of a transaction leaves no lock behind, on both databases."""

import asyncio
import random
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence.database import Database
from service.persistence.tables import ChatbotRow
from tests.component.rows import all_of
from tests.system import SECONDS

STORMS = 40


async def write(tx: AsyncSession, chatbot_id: UUID | None = None) -> UUID:
    chatbot = ChatbotRow(id=chatbot_id or uuid4())
    tx.add(chatbot)
    await tx.flush()
    await tx.execute(text("SELECT count(*) FROM chatbots"))
    return chatbot.id


@pytest.mark.parametrize("together", [4, 12])
async def test_cancelled_transactions_leave_no_lock(database: Database, other_process: Database, together: int) -> None:
    """After each storm of transactions that are cancelled anywhere another process, and this one, can write at once."""
    chance = random.Random(together)
    await database.transact(write)
    for _ in range(STORMS):
        storm = [asyncio.create_task(database.transact(write)) for _ in range(together)]
        await asyncio.wait(storm, timeout=chance.random() * 0.03)
        for task in storm:
            task.cancel()
        # Cancelled tasks that somebody still refers to keep what they hold: so nothing here lets go of them.
        await asyncio.gather(*storm, return_exceptions=True)
        async with asyncio.timeout(SECONDS):
            await other_process.transact(write)
    async with asyncio.timeout(SECONDS):
        await database.transact(write)


async def test_a_cancelled_transaction_has_ended(database: Database, other_process: Database) -> None:
    """Whoever is cancelled hears of it only when the transaction has ended: it is committed or it never happens."""
    inside, release = asyncio.Event(), asyncio.Event()
    chatbot_id = uuid4()

    async def work(tx: AsyncSession) -> None:
        await write(tx, chatbot_id)
        inside.set()
        await release.wait()

    task = asyncio.create_task(database.transact(work))
    await inside.wait()
    task.cancel()
    for _ in range(20):  # more than a cancellation needs to come through
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row.id for row in await all_of(other_process, ChatbotRow)] == [chatbot_id]


async def test_a_transaction_that_fails_while_it_is_cancelled_is_undone(
    database: Database, other_process: Database
) -> None:
    """The cancellation is what its caller sees; nothing is stored, nothing is locked and no error is left unheard."""
    inside, release = asyncio.Event(), asyncio.Event()

    async def work(tx: AsyncSession) -> None:
        await write(tx)
        inside.set()
        await release.wait()
        raise LookupError

    task = asyncio.create_task(database.transact(work))
    await inside.wait()
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(SECONDS):
        written = await other_process.transact(write)
    assert [row.id for row in await all_of(database, ChatbotRow)] == [written]


async def test_cancelled_reads_leave_their_connections(database: Database, other_process: Database) -> None:
    """Reads that are cancelled anywhere neither use up the pool nor keep anybody from writing."""
    chance = random.Random(1)
    await database.transact(write)
    for _ in range(STORMS):
        storm = [asyncio.create_task(all_of(database, ChatbotRow)) for _ in range(12)]
        await asyncio.wait(storm, timeout=chance.random() * 0.02)
        for task in storm:
            task.cancel()
        await asyncio.gather(*storm, return_exceptions=True)
        async with asyncio.timeout(SECONDS):
            await other_process.transact(write)
    async with asyncio.timeout(SECONDS):
        assert len(await all_of(database, ChatbotRow)) == STORMS + 1

"""Messages enter their conversation once, in order, and receipts find theirs, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence import lanes
from service.persistence.conversations import enter
from service.persistence.database import Database
from service.persistence.intake import Intake
from service.persistence.lanes import Answer
from service.persistence.tables import ConversationRow, MessageRow, ReceiptRow, SessionRow
from tests.component.conversing import World, a_receipt
from tests.component.rows import (
    POLICY,
    a_command,
    a_session,
    all_of,
    answered,
    change,
    claimed,
    enqueue,
    handle,
    receive,
    reread,
    sent,
)
from whatsapp_qr_contracts.message import DeliveryStatus, Role

D = DeliveryStatus


# Received


async def test_a_message_is_stored_once_however_often_it_is_reported(
    database: Database, other_process: Database
) -> None:
    """Twenty reports of one message at once, by two processes: one row, and its number is used up once."""
    session = await a_session(database)
    await asyncio.gather(*(receive((database, other_process)[n % 2], session) for n in range(20)))
    assert len(await all_of(database, MessageRow)) == 1
    [conversation] = await all_of(database, ConversationRow)
    assert conversation.sequence_end == 1


async def test_racing_first_messages_make_one_conversation(database: Database, other_process: Database) -> None:
    """64 first messages of one customer over two processes: one conversation, numbered 1 to 64 without a gap."""
    session = await a_session(database)
    await asyncio.gather(
        *(receive((database, other_process)[n % 2], session, f"A{n}", message=str(n)) for n in range(64))
    )
    [conversation] = await all_of(database, ConversationRow)
    messages = await all_of(database, MessageRow, conversation_id=conversation.id)
    by_time = sorted(messages, key=lambda message: message.created_at)
    assert [message.sequence for message in by_time] == list(range(1, 65))
    assert conversation.sequence_end == 64
    assert conversation.last_message_at == by_time[-1].created_at


async def test_a_received_message_carries_what_was_reported(database: Database) -> None:
    """Text, sender, WhatsApp id, time as given and what is still to tell."""
    session = await a_session(database)
    message = await receive(
        database, session, "A9", message="", type="image", pushName="Ann", timestamp="1700000000123"
    )
    assert (message.role, message.delivery_status) == (Role.USER, D.DELIVERED)
    assert (message.version, message.told_version, message.handed_over) == (1, 0, False)
    assert (message.whatsapp_message_id, message.sent_at_customer) == ("A9", 1_700_000_000_123)
    assert (message.content, message.type, message.push_name, message.lane_number) == ("", "image", "Ann", None)
    assert message.key_hash == session.key_hash


async def test_the_forms_of_a_sender_are_one_customer(database: Database) -> None:
    """Number, JID and a second device lead to one conversation; the same WhatsApp id in another session is another."""
    session, other = await a_session(database), await a_session(database)
    for n, sender in enumerate(("5491112345678", "5491112345678@s.whatsapp.net", "5491112345678:3@c.us")):
        await receive(database, session, f"A{n}", **{"from": sender})
    await receive(database, other, "A0")
    assert len(await all_of(database, ConversationRow, chatbot_id=session.chatbot_id)) == 1
    assert len(await all_of(database, MessageRow, whatsapp_message_id="A0")) == 2


async def test_the_time_of_a_conversation_never_falls(database: Database) -> None:
    """A machine whose clock is behind does not move a conversation back, nor its newest message before the others."""
    session = await a_session(database)
    await receive(database, session, "A1")
    [conversation] = await all_of(database, ConversationRow)
    ahead = datetime.now(UTC) + timedelta(days=1)
    await change(database, conversation, last_message_at=ahead)
    second = await receive(database, session, "A2")
    [conversation] = await all_of(database, ConversationRow)
    assert second.created_at == conversation.last_message_at == ahead + timedelta(microseconds=1)
    assert enter(conversation) > second.created_at


# To be sent


async def test_a_message_to_send_is_stored_once(database: Database, other_process: Database) -> None:
    """The same command twenty times at once, to two processes: one row and one number in the lane."""
    session = await a_session(database)
    command = a_command(session, metadata={"order": 7})
    await asyncio.gather(*(handle((database, other_process)[n % 2], command) for n in range(20)))
    [message] = await all_of(database, MessageRow)
    assert (message.lane_number, message.delivery_status) == (1, D.PENDING)
    assert (message.version, message.told_version, message.handed_over) == (1, 1, False)
    assert message.caller_metadata == {"order": 7}
    [row] = await all_of(database, SessionRow)
    assert row.lane_end == 1


async def test_racing_messages_get_numbers_without_a_gap(database: Database, other_process: Database) -> None:
    """Two processes fill one lane: every number from 1 once, whoever was first."""
    session = await a_session(database)
    await asyncio.gather(*(enqueue((database, other_process)[n % 2], session) for n in range(20)))
    assert sorted(message.lane_number for message in await all_of(database, MessageRow)) == list(range(1, 21))


async def test_a_number_that_was_not_committed_is_used_again(database: Database) -> None:
    """The number in the lane and the message are one transaction: a failure in between leaves no gap."""
    session = await a_session(database)

    async def fails(tx: AsyncSession) -> None:
        rows = Intake(tx)
        await rows.lock_sessions([session.session_id], [])
        rows.sessions[session.session_id].lane_end += 1
        await rows.write()
        message = "after the number was taken"
        raise KeyError(message)

    with pytest.raises(KeyError):
        await database.transact(fails)
    assert (await enqueue(database, session)).lane_number == 1


async def test_a_message_expires_when_its_caller_says_or_by_the_setting(database: Database) -> None:
    """`expiresAt` is kept as given; without it the database's clock and SEND_EXPIRY decide."""
    session = await a_session(database)
    until = datetime(2030, 1, 1, tzinfo=UTC)
    assert (await enqueue(database, session, expiresAt=until)).expires_at == until
    default = await enqueue(database, session, expiry=timedelta(hours=2))
    assert default.expires_at is not None
    assert abs(default.expires_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)


# Receipts that race with the answer


async def test_a_receipt_and_the_id_that_it_waits_for_cannot_miss_each_other(
    database: Database, other_process: Database
) -> None:
    """The receipt looked before the id was recorded and is kept after: without a lock it would wait for ever."""
    message = await enqueue(database, session := await a_session(database))
    answer = Answer(await claimed(database, session), "OWN")
    recorded, kept = asyncio.Event(), asyncio.Event()

    async def record(tx: AsyncSession) -> None:
        await lanes.send_round(tx, answers=[answer], due=[], policy=POLICY)
        await tx.flush()
        recorded.set()
        # Committed only when the receipt has had its chance to look: it is done, or waits for our lock.
        await asyncio.wait([asyncio.create_task(kept.wait())], timeout=0.3)

    async def keep() -> None:
        await recorded.wait()
        await World(other_process).handle(a_receipt(session, "OWN", "read"))
        kept.set()

    await asyncio.gather(database.transact(record), keep())
    assert (await reread(database, message)).delivery_status is D.READ
    assert await all_of(database, ReceiptRow) == []


async def test_a_receipt_may_overtake_the_answer(database: Database) -> None:
    """DELIVERED while the call still runs: recording SENT afterwards does not lower it."""
    session = await a_session(database)
    await enqueue(database, session)
    one = await claimed(database, session)
    await World(database).handle(a_receipt(session, one.message.whatsapp_message_id))
    await answered(database, one, one.message.whatsapp_message_id)
    assert (await reread(database, one.message)).delivery_status is D.DELIVERED
    await enqueue(database, session)
    assert (await sent(database, session)).delivery_status is D.SENT

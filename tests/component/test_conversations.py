"""Messages enter their conversation once, in order, and receipts find theirs, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence import conversations, lanes, sessions
from service.persistence.database import Database
from service.persistence.tables import ConversationRow, MessageRow, ReceiptRow, SessionRow
from tests.component.rows import (
    a_command,
    a_session,
    all_of,
    change,
    claimed,
    enqueue,
    enqueued,
    receive,
    reread,
    sent,
)
from whatsapp_qr_contracts.message import DeliveryStatus, Role

D = DeliveryStatus
AT = datetime(2026, 1, 1, tzinfo=UTC)


async def receipt(database: Database, message: MessageRow, status: DeliveryStatus, **fields: Any) -> MessageRow | None:
    given = {"session_id": message.session_id, "whatsapp_id": message.whatsapp_message_id, "at": AT, "error": None}
    return await database.transact(lambda tx: conversations.apply_receipt(tx, status=status, **(given | fields)))


# Received


async def test_a_message_is_stored_once_however_often_it_is_reported(database: Database) -> None:
    """Thirty reports of one message at once: one row, one new, and all see the same row."""
    session = await a_session(database)
    stored = await asyncio.gather(*(receive(database, session) for _ in range(30)))
    assert [one.is_new for one in stored].count(True) == 1
    assert len({one.message.id for one in stored}) == 1
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
    assert sorted(message.sequence for message in messages) == list(range(1, 65))
    assert conversation.sequence_end == 64
    by_time = sorted(messages, key=lambda message: message.created_at)
    assert [message.sequence for message in by_time] == list(range(1, 65))
    assert conversation.last_message_at == by_time[-1].created_at


async def test_a_received_message_carries_what_was_reported(database: Database) -> None:
    """Text, sender, WhatsApp id, time as given and what is still to do."""
    session = await a_session(database)
    message = (
        await receive(database, session, "A9", message="", type="image", pushName="Ann", timestamp="1700000000123")
    ).message
    message = await reread(database, message)
    assert (message.role, message.delivery_status, message.announced) == (Role.USER, D.DELIVERED, False)
    assert (message.whatsapp_message_id, message.sent_at_customer) == ("A9", 1_700_000_000_123)
    assert (message.content, message.type, message.push_name, message.lane_number) == ("", "image", "Ann", None)


async def test_the_forms_of_a_sender_are_one_customer(database: Database) -> None:
    """Number, JID and a second device lead to one conversation; the same WhatsApp id in another session is another."""
    session, other = await a_session(database), await a_session(database)
    for n, sender in enumerate(("5491112345678", "5491112345678@s.whatsapp.net", "5491112345678:3@c.us")):
        await receive(database, session, f"A{n}", **{"from": sender})
    assert (await receive(database, other, "A0")).is_new
    assert len(await all_of(database, ConversationRow, chatbot_id=session.chatbot_id)) == 1


async def test_the_time_of_a_conversation_never_falls(database: Database) -> None:
    """A machine whose clock is behind does not move a conversation back, nor its newest message before the others."""
    session = await a_session(database)
    first = await receive(database, session, "A1")
    ahead = datetime.now(UTC) + timedelta(days=1)
    await change(database, first.conversation, last_message_at=ahead)
    second = await receive(database, session, "A2")
    assert second.message.created_at == second.conversation.last_message_at == ahead + timedelta(microseconds=1)


# To be sent


async def test_a_message_to_send_is_stored_once(database: Database) -> None:
    """The same command thirty times at once: one row and one number in the lane."""
    session = await a_session(database)
    command = a_command(session, metadata={"order": 7})
    stored = await asyncio.gather(*(enqueued(database, session, command) for _ in range(30)))
    assert [one.is_new for one in stored].count(True) == 1
    message = await reread(database, stored[0].message)
    assert (message.lane_number, message.delivery_status, message.announced) == (1, D.PENDING, True)
    assert message.caller_metadata == {"order": 7}
    [row] = await all_of(database, SessionRow)
    assert row.lane_end == 1


async def test_racing_messages_get_numbers_without_a_gap(database: Database, other_process: Database) -> None:
    """Two processes fill one lane: every number from 1 once, whoever was first."""
    session = await a_session(database)
    await asyncio.gather(*(enqueue((database, other_process)[n % 2], session) for n in range(20)))
    assert sorted(message.lane_number for message in await all_of(database, MessageRow)) == list(range(1, 21))


async def test_a_message_expires_when_its_caller_says_or_by_the_setting(database: Database) -> None:
    """`expiresAt` is kept as given; without it the database's clock and SEND_EXPIRY decide."""
    session = await a_session(database)
    until = datetime(2030, 1, 1, tzinfo=UTC)
    assert (await reread(database, await enqueue(database, session, expiresAt=until))).expires_at == until
    default = await reread(database, await enqueue(database, session, expiry=timedelta(hours=2)))
    assert default.expires_at is not None
    assert abs(default.expires_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)


@pytest.mark.parametrize("other", [{"message": "x"}, {"to": "5491100000000"}, {"metadata": {"a": 1}}])
async def test_the_same_id_with_other_content_is_seen(database: Database, other: dict[str, Any]) -> None:
    """The known row comes back unchanged, and the caller can tell that it is not what was asked for."""
    session = await a_session(database)
    command = a_command(session, messageId="key", metadata={"a": {"b": [1, None, "é"]}})
    await enqueued(database, session, command)
    again = await enqueued(database, session, command.model_copy(update=other))
    assert conversations.same_content(again.message, command)
    assert not conversations.same_content(again.message, command.model_copy(update=other))
    assert not again.is_new


# Receipts


async def test_receipts_raise_the_status_and_keep_the_times(database: Database) -> None:
    """PENDING, SENT, DELIVERED, READ: each with its time; a repeated or late receipt changes nothing."""
    message = await sent(database, await enqueue(database, await a_session(database)))
    assert (message.delivery_status, message.announced) == (D.SENT, False)
    await receipt(database, message, D.READ, at=AT + timedelta(hours=1))
    await receipt(database, message, D.DELIVERED)
    await receipt(database, message, D.FAILED, error="late")
    message = await reread(database, message)
    assert (message.delivery_status, message.error_code, message.failed_at) == (D.READ, None, None)
    assert message.read_at == message.delivered_at == AT + timedelta(hours=1)
    assert message.sent_at is not None


async def test_a_failure_is_recorded_and_corrected(database: Database) -> None:
    """`failed` says why; proof of delivery takes that back."""
    message = await sent(database, await enqueue(database, await a_session(database)))
    await receipt(database, message, D.FAILED, error="no such user")
    failed = await reread(database, message)
    assert (failed.delivery_status, failed.error_code, failed.error_message, failed.failed_at) == (
        *(D.FAILED, "failed_by_whatsapp", "no such user"),
        AT,
    )
    await receipt(database, message, D.DELIVERED)
    delivered = await reread(database, message)
    assert (delivered.delivery_status, delivered.error_code, delivered.failed_at) == (D.DELIVERED, None, None)


async def test_a_receipt_of_an_unknown_message_waits(database: Database) -> None:
    """It is kept once, however often it comes, and says that no message was changed."""
    message = await enqueue(database, await a_session(database))
    for _ in range(2):
        assert await receipt(database, message, D.DELIVERED, whatsapp_id="GATEWAYS-OWN") is None
    assert len(await all_of(database, ReceiptRow)) == 1
    assert (await reread(database, message)).delivery_status is D.PENDING


async def test_a_receipt_never_changes_a_customers_message(database: Database) -> None:
    """A customer's message under the same WhatsApp id is not what the receipt is about."""
    stored = await receive(database, await a_session(database), "A1")
    assert await receipt(database, stored.message, D.READ) is None
    assert (await reread(database, stored.message)).delivery_status is D.DELIVERED


async def test_waiting_receipts_are_applied_when_their_message_gets_its_id(database: Database) -> None:
    """A gateway with ids of its own may report before its answer is recorded: nothing of it is lost."""
    message = await enqueue(database, await a_session(database))
    for status in (D.READ, D.DELIVERED):
        await receipt(database, message, status, whatsapp_id="GATEWAYS-OWN")
    recorded = await sent(database, message, "GATEWAYS-OWN")
    assert (recorded.delivery_status, recorded.whatsapp_message_id) == (D.READ, "GATEWAYS-OWN")
    assert await all_of(database, ReceiptRow) == []


async def test_a_receipt_and_the_id_that_it_waits_for_cannot_miss_each_other(
    database: Database, other_process: Database
) -> None:
    """The receipt looked before the id was recorded and is kept after: without a lock it would wait for ever."""
    message = await enqueue(database, session := await a_session(database))
    recorded, kept = asyncio.Event(), asyncio.Event()

    async def record(tx: AsyncSession) -> None:
        await lanes.record_sent(tx, claimed=message, whatsapp_id="GATEWAYS-OWN")
        await tx.flush()
        recorded.set()
        # Committed only when the receipt has had its chance to look: it is done, or waits for our lock.
        await asyncio.wait([asyncio.create_task(kept.wait())], timeout=0.3)

    async def keep(tx: AsyncSession) -> None:
        await recorded.wait()
        await conversations.apply_receipt(
            tx, session_id=session.session_id, whatsapp_id="GATEWAYS-OWN", status=D.READ, at=AT, error=None
        )

    async def keep_and_tell() -> None:
        await recorded.wait()
        await other_process.transact(keep)
        kept.set()

    await asyncio.gather(database.transact(record), keep_and_tell())
    assert (await reread(database, message)).delivery_status is D.READ


async def test_a_receipt_may_overtake_the_answer(database: Database) -> None:
    """DELIVERED while the call still runs: recording SENT afterwards does not lower it."""
    session = await a_session(database)
    await enqueue(database, session)
    message = await claimed(database, session)
    await receipt(database, message, D.DELIVERED)
    recorded = await sent(database, message)
    assert recorded.delivery_status is D.DELIVERED
    assert recorded.claimed_until is None


async def test_the_lane_is_locked_while_a_message_enters(database: Database) -> None:
    """store_outgoing counts on the locked session row: its number and the message are one transaction."""
    session = await a_session(database)

    async def fails(tx: AsyncSession) -> None:
        locked = await sessions.session_of(tx, session.chatbot_id, lock=True)
        assert locked is not None
        locked.lane_end += 1
        await tx.flush()
        message = "after the number was taken"
        raise KeyError(message)

    with pytest.raises(KeyError):
        await database.transact(fails)
    assert (await enqueue(database, session)).lane_number == 1

"""The conversation consumer on both databases: what follows from each message, also after a failed publish."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.consumers.conversation import ConversationConsumer
from service.domain.identities import conversation_id, incoming_message_id, outgoing_message_id, output_id
from service.errors import BrokerUnavailable, Undeliverable
from service.messaging.envelope import Envelope
from service.persistence import sessions
from service.persistence.database import Database
from service.persistence.tables import MessageRow, ReceiptRow, SessionRow
from tests.component.rows import (
    CUSTOMER,
    a_command,
    a_report,
    a_session,
    all_of,
    change,
    enqueue,
    receive,
    reread,
    sent,
)
from tests.component.standins import CrashError, Recorder, announcer
from whatsapp_qr_contracts.gateway import GatewayReceipt
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import Message

EXPIRY = timedelta(hours=1)


class World:
    """One process with a conversation consumer and its broker."""

    def __init__(self, database: Database) -> None:
        self.broker = Recorder()
        self.consumer = ConversationConsumer(database, announcer(database, self.broker), EXPIRY)

    async def handle(self, message: Message, message_id: str = "c") -> None:
        await self.consumer.routes()[type(message)](message, Envelope(message_id, None, redelivered=False))


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def a_receipt(session: SessionRow, whatsapp_id: str, status: str = "delivered", **data: Any) -> GatewayReceipt:
    data = {"messageId": whatsapp_id, "status": status, **data}
    return GatewayReceipt(type="receipt", session_id=session.session_id, data=data)


# A customer's message


async def test_a_message_becomes_row_job_and_event(database: Database, world: World) -> None:
    """One job for the AI workers and one event, after the conversation's own; all under ids that can be derived."""
    session = await a_session(database)
    await world.handle(a_report(session, "A1", timestamp=1_700_000_000), "report")
    [row] = await all_of(database, MessageRow)
    assert row.id == incoming_message_id(session.id, "A1")
    assert row.conversation_id == conversation_id(session.chatbot_id, CUSTOMER)
    assert world.broker.names[0] == "conversation.started"
    once = {message.name: (message, message_id) for message, message_id, _ in world.broker.out}
    assert {name: message_id for name, (_, message_id) in once.items()} == {
        "conversation.started": output_id(row.conversation_id, "started"),
        "incoming-messages": output_id(row.id, "job"),
        "message.received": output_id(row.id, "received"),
    }
    assert {cause for _, _, cause in world.broker.out} == {"report"}
    job, event = once["incoming-messages"][0], once["message.received"][0]
    assert (job.content, job.external_user_id, job.message_id) == ("hi", CUSTOMER, row.id)
    assert job.metadata == event.metadata
    assert (job.metadata.whatsapp_message_id, job.metadata.timestamp) == ("A1", 1_700_000_000)
    assert (event.content, event.conversation_sequence) == ("hi", 1)


async def test_a_repetition_has_the_same_outputs_or_none(database: Database, world: World) -> None:
    """In the same process what is confirmed is not published again; after a restart it is, under the same ids."""
    session = await a_session(database)
    await world.handle(a_report(session))
    first = list(world.broker.out)
    await world.handle(a_report(session), "again")
    assert world.broker.out == first
    restarted = World(database)
    await restarted.handle(a_report(session, pushName="renamed"), "again")
    assert {(one.wire(), message_id) for one, message_id, _ in restarted.broker.out} == {
        (one.wire(), message_id) for one, message_id, _ in first
    }
    assert len(await all_of(database, MessageRow)) == 1


@pytest.mark.parametrize("when_done", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_message_outlives_a_failed_publish(database: Database, step: int, *, when_done: bool) -> None:
    """Whichever output failed, arrived or not: the repetition publishes what is missing, each under one id."""
    session = await a_session(database)
    world = World(database)
    world.broker.steps.crash_at, world.broker.steps.when_done = step, when_done
    with pytest.raises(CrashError):
        await world.handle(a_report(session))
    assert world.broker.steps.taken == max(step, 3 if step > 1 else 1)
    await world.handle(a_report(session), "again")
    assert sorted({(one.name, message_id) for one, message_id, _ in world.broker.out}) == sorted(
        [
            ("conversation.started", output_id(conversation_id(session.chatbot_id, CUSTOMER), "started")),
            ("incoming-messages", output_id(incoming_message_id(session.id, "A1"), "job")),
            ("message.received", output_id(incoming_message_id(session.id, "A1"), "received")),
        ]
    )
    before = len(world.broker.out)
    await world.handle(a_report(session), "again")
    assert len(world.broker.out) == before


async def test_no_publish_goes_on_while_the_message_is_held(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one output fails the handler waits for the other: it must not run into its own repetition."""
    session = await a_session(database)
    begun, release = asyncio.Event(), asyncio.Event()
    publish = world.broker.publish

    async def half(message: Message, **properties: Any) -> None:
        if message.name == "incoming-messages":
            raise BrokerUnavailable("away")
        if message.name == "message.received":
            begun.set()
            await release.wait()
        await publish(message, **properties)

    monkeypatch.setattr(world.broker, "publish", half)
    task = asyncio.create_task(world.handle(a_report(session)))
    await begun.wait()
    for _ in range(20):  # more than an error needs to come through
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(BrokerUnavailable):
        await task
    assert world.broker.names == ["conversation.started", "message.received"]


async def test_a_second_message_starts_nothing(database: Database, world: World) -> None:
    """One conversation.started for both directions; the second message carries the next number."""
    session = await a_session(database)
    await world.handle(a_command(session))
    await world.handle(a_report(session, "A1"))
    await world.handle(a_report(session, "A2"))
    assert world.broker.names.count("conversation.started") == 1
    numbers = [one.conversation_sequence for one, _, _ in world.broker.out if one.name == "message.received"]
    assert numbers == [1, 2]


# A message to send


async def test_a_command_becomes_row_and_ring(database: Database, world: World) -> None:
    """It stands at the end of the lane with an expiry; the ring's id is the same at every repetition."""
    session = await a_session(database)
    command = a_command(session, messageId="mine", metadata={"order": 7})
    await world.handle(command)
    await world.handle(command, "again")
    [row] = await all_of(database, MessageRow)
    assert row.id == outgoing_message_id(session.chatbot_id, "mine")
    assert (row.delivery_status, row.lane_number, row.correlation_id) == (D.PENDING, 1, "c")
    assert (row.content, row.caller_metadata) == ("hello", {"order": 7})
    assert world.broker.names == ["conversation.started", "whatsapp-qr-send", "whatsapp-qr-send"]
    assert set(world.broker.ids[1:]) == {output_id(row.id, "job")}
    await sent(database, row)
    await world.handle(command, "later")
    assert len(world.broker.out) == 3


@pytest.mark.parametrize("when_done", [False, True])
@pytest.mark.parametrize("step", [1, 2])
async def test_a_command_outlives_a_failed_publish(database: Database, step: int, *, when_done: bool) -> None:
    """Stored once, rung for at last; the conversation's event comes under one id."""
    session = await a_session(database)
    world, command = World(database), a_command(session)
    world.broker.steps.crash_at, world.broker.steps.when_done = step, when_done
    with pytest.raises(CrashError):
        await world.handle(command)
    await world.handle(command)
    [row] = await all_of(database, MessageRow)
    assert {(one.name, message_id) for one, message_id, _ in world.broker.out} == {
        ("conversation.started", output_id(row.conversation_id, "started")),
        ("whatsapp-qr-send", output_id(row.id, "job")),
    }


async def test_the_envelope_may_give_the_id(database: Database, world: World) -> None:
    """Without an id of the caller's the command's own decides what is the same message; with neither it is no good."""
    session = await a_session(database)
    command = a_command(session, messageId=None)
    await world.handle(command, "1")
    await world.handle(command, "1")
    await world.handle(command, "2")
    ids = {row.id for row in await all_of(database, MessageRow)}
    assert ids == {outgoing_message_id(session.chatbot_id, one) for one in ("1", "2")}
    with pytest.raises(Undeliverable) as raised:
        await world.handle(command, "")
    assert raised.value.code == "missing_id"
    assert len(await all_of(database, MessageRow)) == 2


@pytest.mark.parametrize("other", [{"message": "bye"}, {"to": "5491100000000"}, {"metadata": {"a": 1}}])
async def test_an_id_stands_for_one_content(database: Database, world: World, other: dict[str, Any]) -> None:
    """Another content under a known id is rejected, each repetition alike, and the first message stays as it was."""
    session = await a_session(database)
    await world.handle(a_command(session, messageId="mine"), "1")
    before = len(world.broker.out)
    for _ in range(2):
        await world.handle(a_command(session, messageId="mine", **other), "2")
    (first, first_id, cause), (_, second_id, _) = world.broker.out[before:]
    assert (first.name, first.code, first.command, first.command_id) == (
        "command.rejected", "id_reused", "message.send", "2"
    )  # fmt: skip
    assert (first_id, cause) == (second_id, "2")
    [row] = await all_of(database, MessageRow)
    assert (row.content, row.external_user_id, row.caller_metadata) == ("hello", CUSTOMER, {})


@pytest.mark.parametrize("removed", [False, True])
async def test_a_chatbot_without_a_session_sends_nothing(database: Database, world: World, *, removed: bool) -> None:
    """A chatbot that is unknown or was removed has no session: rejected, nothing stored, nobody rung for."""
    session = await a_session(database)
    if removed:
        await database.transact(lambda tx: sessions.remove_chatbot(tx, session.chatbot_id))
    else:
        session.chatbot_id = uuid4()
    await world.handle(a_command(session))
    [(event, _, _)] = world.broker.out
    assert (event.name, event.code, event.chatbot_id) == ("command.rejected", "no_session", session.chatbot_id)
    assert await all_of(database, MessageRow) == []


# Receipts


async def test_receipts_announce_each_step_once(database: Database, world: World) -> None:
    """Delivered, then read: an event each; late, repeated and lower ones publish nothing more."""
    session = await a_session(database)
    message = await sent(database, await enqueue(database, session, metadata={"order": 7}))
    await change(database, message, announced=True)
    for status in ("delivered", "delivered", "read", "delivered", "failed", "read"):
        await world.handle(a_receipt(session, message.whatsapp_message_id, status, timestamp=1_700_000_000))
    assert world.broker.names == ["message.delivered", "message.read"]
    assert all(one.metadata == {"order": 7} and one.message_id == message.id for one, _, _ in world.broker.out)
    assert {cause for _, _, cause in world.broker.out} == {"command"}


async def test_a_receipt_outlives_a_failed_publish(database: Database, world: World) -> None:
    """The status is stored; the repeated receipt announces it, in this process or the next, under the same id."""
    session = await a_session(database)
    message = await sent(database, await enqueue(database, session))
    receipt = a_receipt(session, message.whatsapp_message_id)
    world.broker.steps.crash_at, world.broker.steps.when_done = 1, True
    with pytest.raises(CrashError):
        await world.handle(receipt)
    await World(database).handle(receipt)
    await world.handle(receipt)
    assert world.broker.names == ["message.delivered"] * 2
    assert len(set(world.broker.ids)) == 1


async def test_a_receipt_before_its_message_is_kept(database: Database, world: World) -> None:
    """A gateway with ids of its own may report before /send has answered: the receipt is applied with the answer."""
    session = await a_session(database)
    message = await enqueue(database, session)
    for _ in range(2):
        await world.handle(a_receipt(session, "OWN", "read"))
    assert world.broker.out == []
    assert len(await all_of(database, ReceiptRow)) == 1
    assert (await sent(database, message, "OWN")).delivery_status is D.READ
    assert await all_of(database, ReceiptRow) == []


async def test_an_id_that_was_used_twice_is_the_newest_message(database: Database, world: World) -> None:
    """A gateway that gives two messages one id does not stop its receipts: they raise the newer message."""
    session = await a_session(database)
    older, newer = [await sent(database, await enqueue(database, session), "SAME") for _ in range(2)]
    await world.handle(a_receipt(session, "SAME"))
    assert (await reread(database, newer)).delivery_status is D.DELIVERED
    assert (await reread(database, older)).delivery_status is D.SENT


async def test_a_customers_message_takes_no_receipt(database: Database, world: World) -> None:
    """A receipt under the id of a customer's message is kept for a message of ours, and announces nothing."""
    session = await a_session(database)
    message = (await receive(database, session, "A1")).message
    await world.handle(a_receipt(session, "A1", "read"))
    assert (await reread(database, message)).delivery_status is D.DELIVERED
    assert len(await all_of(database, ReceiptRow)) == 1
    assert world.broker.out == []


async def test_a_report_of_an_unknown_session_is_undeliverable(database: Database, world: World) -> None:
    """A message or receipt of a session that nobody knows is for the dead letters, and nothing of it is stored."""
    session = await a_session(database)
    session.session_id = "foreign"
    for report in (a_report(session), a_receipt(session, "A1")):
        with pytest.raises(Undeliverable) as raised:
            await world.handle(report)
        assert raised.value.code == "unknown_session"
    assert await all_of(database, MessageRow) == await all_of(database, ReceiptRow) == []

"""The conversation consumer on both databases: what each message changes, and what is told of it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.consumers.conversation import ConversationConsumer
from service.domain.identities import conversation_id, incoming_message_id, outgoing_message_id, output_id
from service.errors import DatabaseUnavailable
from service.persistence import sessions
from service.persistence.database import Database
from service.persistence.tables import CommandRow, MessageRow, ReceiptRow, SessionRow
from tests.component.conversing import World, a_receipt, ids
from tests.component.rows import (
    CUSTOMER,
    Outputs,
    a_command,
    a_report,
    a_session,
    all_of,
    change,
    enqueue,
    receive,
    received,
    reread,
    sent,
)
from tests.component.test_query_plans import heard
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import SessionStatus


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


# A customer's message


async def test_a_message_becomes_row_job_and_event(database: Database, world: World) -> None:
    """One job for the AI workers and one event, and the conversation's own; all under ids that can be derived."""
    session = await a_session(database)
    outputs = await world.handle(a_report(session, "A1", timestamp=1_700_000_000), message_id="report")
    [row] = await all_of(database, MessageRow)
    assert row.id == incoming_message_id(session.id, "A1")
    assert row.conversation_id == conversation_id(session.chatbot_id, CUSTOMER)
    assert ids(outputs) == {
        "conversation.started": output_id(row.conversation_id, "started"),
        "incoming-messages": output_id(row.id, "job"),
        "message.received": output_id(row.id, "received"),
    }
    assert {output.correlation_id for output in outputs} == {"report"}
    once: dict[str, Any] = {output.message.name: output for output in outputs}
    job, event = once["incoming-messages"].message, once["message.received"].message
    assert (job.content, job.external_user_id, job.message_id) == ("hi", CUSTOMER, row.id)
    assert once["incoming-messages"].headers == {"conversation-sequence": 1}
    assert job.metadata == event.metadata
    assert (job.metadata.whatsapp_message_id, job.metadata.timestamp) == ("A1", 1_700_000_000)
    assert (event.content, event.conversation_sequence, event.version) == ("hi", 1, 1)


async def test_a_repetition_has_the_same_outputs_or_none(database: Database, world: World) -> None:
    """What is confirmed is not told again; what is not is, as it was and under the same ids."""
    session = await a_session(database)
    first = await world.handle(a_report(session))
    again = await world.handle(a_report(session, pushName="renamed"), message_id="again")
    assert [(one.message.wire(), one.message_id) for one in again] == [
        (one.message.wire(), one.message_id) for one in first if one.message.name != "conversation.started"
    ]
    await world.confirm(first)
    assert await world.handle(a_report(session), message_id="again") == []
    assert len(await all_of(database, MessageRow)) == 1


async def test_what_was_committed_without_an_answer_is_told_before_what_follows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a commit was lost: the same batch, tried again, tells it, so that no later job comes first."""
    session, told = await a_session(database), Outputs()
    consumer = ConversationConsumer(database, told, timedelta(hours=1))  # type: ignore[arg-type]
    transact = database.transact

    async def silent(work: Any) -> None:
        await transact(work)
        message = "the link broke before the answer"
        raise DatabaseUnavailable(message)

    batch = [received(a_report(session, "A1")), received(a_command(session))]
    monkeypatch.setattr(database, "transact", silent)
    with pytest.raises(DatabaseUnavailable):
        await consumer.handle(batch)
    monkeypatch.setattr(database, "transact", transact)
    await consumer.handle([*batch, received(a_report(session, "A2"))])
    assert [one.message.metadata.whatsapp_message_id for one in told.outputs if one.headers] == ["A1", "A2"]  # type: ignore[attr-defined]
    assert told.names.count("whatsapp-qr-send") == 1


async def test_a_second_message_starts_nothing(database: Database, world: World) -> None:
    """One conversation.started for both directions; the second message carries the next number."""
    session = await a_session(database)
    messages = a_command(session), a_report(session, "A1"), a_report(session, "A2")
    outputs = [output for message in messages for output in await world.handle(message)]
    assert [output.message.name for output in outputs].count("conversation.started") == 1
    assert [output.headers["conversation-sequence"] for output in outputs if output.headers] == [1, 2]


# The same WhatsApp id again: it is unique within a chat only

LID, GROUP = "98765432109876@lid", "120363040508060708@g.us"
ANA, LUIS = "5491112345678", "5491187654321"


@pytest.mark.parametrize(
    "other",
    [
        {"from": LUIS},
        {"message": "bye"},
        {"from": GROUP},
        {"from": LID, "message": "bye"},
        {"type": "image"},
        {"from": GROUP, "participant": ANA},
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_another_message_under_a_known_id_is_one_of_its_own(
    database: Database, world: World, other: dict[str, Any], *, together: bool
) -> None:
    """From another chat or with other content: row, job and event of its own; the first one keeps its id."""
    session = await a_session(database)
    first, second = a_report(session, "A1", type="text"), a_report(session, "A1", **({"type": "text"} | other))
    batches = [(first, second)] if together else [(first,), (second,)]
    outputs = [output for batch in batches for output in await world.handle(*batch)]
    assert [output.message.name for output in outputs].count("incoming-messages") == 2
    assert [output.message.name for output in outputs].count("message.received") == 2
    rows = sorted(await all_of(database, MessageRow), key=lambda row: row.created_at)
    assert [row.whatsapp_message_id for row in rows] == ["A1", "A1"]
    assert rows[0].id == incoming_message_id(session.id, "A1") != rows[1].id
    assert (rows[1].content, rows[1].type) == (second.message, second.type)
    await world.confirm(outputs)
    assert await world.handle(second, first, message_id="again") == []
    assert len(await all_of(database, MessageRow)) == 2


async def test_each_member_of_a_group_has_messages_of_their_own(database: Database, world: World) -> None:
    """Equal text under one id: two members wrote two messages; a number, a LID and no name may be one member."""
    session = await a_session(database)
    for participant in (f"{ANA}@s.whatsapp.net", f"{LUIS}:3@s.whatsapp.net", LID, ANA, None):
        await world.handle(a_report(session, "SAMEID01", participant=participant, **{"from": GROUP}))
    rows = await all_of(database, MessageRow)
    assert {row.participant for row in rows} == {ANA, LUIS}
    assert {row.external_user_id for row in rows} == {GROUP}


@pytest.mark.parametrize(
    "again", [{"from": LID}, {"from": f"+{ANA}"}, {"from": f"{ANA}:7@s.whatsapp.net"}, {"type": None}]
)
async def test_a_repetition_stays_one_message(database: Database, world: World, again: dict[str, Any]) -> None:
    """However the gateway writes the contact the second time, and whatever it leaves out."""
    session = await a_session(database)
    await world.confirm(await world.handle(a_report(session, "A1", type="text")))
    assert await world.handle(a_report(session, "A1", **({"type": "text"} | again)), message_id="again") == []
    assert len(await all_of(database, MessageRow)) == 1


async def test_a_gateway_with_one_id_for_everything_costs_no_more_with_time(database: Database, world: World) -> None:
    """Only the first message under an id, and the one that would be this one, are looked at; each is its own."""
    session = await a_session(database)
    for number in range(5):
        await world.handle(a_report(session, "1", message=f"text {number}"))
    with heard(database) as statements:
        await world.handle(a_report(session, "1", message="text 5"))
    locked = [parameters for statement, parameters in statements if "FROM messages" in statement]
    looked_for = [parameters if isinstance(parameters[0], str) else parameters[0] for parameters in locked]
    assert [len(ids) for ids in looked_for] == [2]
    assert len(await all_of(database, MessageRow)) == 6


async def test_the_newest_message_under_an_id_gets_its_receipts(database: Database, world: World) -> None:
    """A gateway that gives the same id to all that it sends: no other is looked at."""
    session, messages = await a_session(database), []
    for _ in range(3):
        await enqueue(database, session)
        messages.append(await sent(database, session, "1"))
    await world.handle(a_receipt(session, "1"))
    statuses = [(await reread(database, message)).delivery_status for message in messages]
    assert statuses == [D.SENT, D.SENT, D.DELIVERED]


async def test_what_we_sent_is_no_message_of_a_customer(database: Database, world: World) -> None:
    """A customer's message under the WhatsApp id of one that was sent, and its receipt, are kept apart."""
    session = await a_session(database)
    await enqueue(database, session)
    whatsapp_id = (await sent(database, session)).whatsapp_message_id
    await world.handle(a_report(session, whatsapp_id), a_receipt(session, whatsapp_id, "read"))
    assert {(row.role, row.delivery_status) for row in await all_of(database, MessageRow)} == {
        ("USER", D.DELIVERED),
        ("ASSISTANT", D.READ),
    }


# A message to send


async def test_a_command_becomes_row_and_job(database: Database, world: World) -> None:
    """It stands at the end of the lane; the job is told until it is confirmed, under one id."""
    session = await a_session(database)
    command = a_command(session, messageId="mine", metadata={"order": 7})
    first = await world.handle(command)
    again = await world.handle(command, message_id="again")
    [row] = await all_of(database, MessageRow)
    assert row.id == outgoing_message_id(session.chatbot_id, "mine")
    assert (row.delivery_status, row.lane_number, row.correlation_id) == (D.PENDING, 1, "c")
    assert (row.content, row.caller_metadata) == ("hello", {"order": 7})
    assert ids(first) == {
        "conversation.started": output_id(row.conversation_id, "started"),
        "whatsapp-qr-send": output_id(row.id, "job 1"),
    }
    assert ids(again).items() <= ids(first).items()
    await world.confirm(first)
    assert await world.handle(command, message_id="later") == []


async def test_the_envelope_may_give_the_id(database: Database, world: World) -> None:
    """Without an id of the caller's the command's own decides what is the same message; with neither it is no good."""
    session = await a_session(database)
    command = a_command(session, messageId=None)
    for message_id in ("1", "1", "2"):
        await world.handle(command, message_id=message_id)
    assert {row.id for row in await all_of(database, MessageRow)} == {
        outgoing_message_id(session.chatbot_id, one) for one in ("1", "2")
    }
    assert await world.refuses(command, "") == "missing_id"
    assert len(await all_of(database, MessageRow)) == 2


@pytest.mark.parametrize("other", [{"message": "bye"}, {"to": "5491100000000"}, {"metadata": {"a": {"b": [None]}}}])
async def test_an_id_stands_for_one_content(database: Database, world: World, other: dict[str, Any]) -> None:
    """Another content under a known id is rejected, each repetition alike, and the first message stays as it was."""
    session = await a_session(database)
    await world.handle(a_command(session, messageId="mine", metadata={"a": {"b": [1]}}), message_id="1")
    command = a_command(session, messageId="mine", **({"metadata": {"a": {"b": [1]}}} | other))
    [first] = await world.handle(command, message_id="2")
    [again] = await world.handle(command, message_id="2")
    event: Any = first.message
    [row] = await all_of(database, MessageRow)
    assert (event.name, event.code, event.command, event.command_id, event.message_id) == (
        *("command.rejected", "id_reused", "message.send", "2"),
        row.id,
    )
    assert (first.message_id, first.correlation_id) == (again.message_id, "2")
    assert (row.content, row.external_user_id, row.caller_metadata) == ("hello", CUSTOMER, {"a": {"b": [1]}})


async def test_a_rejected_command_stays_rejected(database: Database, world: World) -> None:
    """It has a row: delivered again it is told again, though the chatbot has a session by then; a new id is new."""
    chatbot_id = uuid4()
    command = a_command(SessionRow(chatbot_id=chatbot_id, session_id="none", status=SessionStatus.DISCONNECTED))
    [first] = await world.handle(command)
    event: Any = first.message
    assert (event.name, event.code, event.chatbot_id) == ("command.rejected", "no_session", chatbot_id)
    assert event.message_id == outgoing_message_id(chatbot_id, str(command.message_id))
    await world.confirm([first])
    session = await a_session(database, chatbot_id=chatbot_id)
    [again] = await world.handle(command)
    assert (again.message.wire(), again.message_id) == (event.wire(), first.message_id)
    [row] = await all_of(database, CommandRow)
    assert (row.command_id, row.name, row.told_version) == ("c", "message.send", 0)
    assert await all_of(database, MessageRow) == []
    [reused] = await world.handle(command.model_copy(update={"message": "another"}))
    assert reused.message.code == "id_reused"  # type: ignore[attr-defined]
    assert "whatsapp-qr-send" in ids(await world.handle(command, message_id="new"))
    assert (await all_of(database, MessageRow))[0].session_id == session.session_id


async def test_what_a_removed_chatbot_was_to_send_has_failed(database: Database, world: World) -> None:
    """It was accepted before: it does not vanish, and is never sent, also where the chatbot comes back."""
    session = await a_session(database)
    await database.transact(lambda tx: sessions.remove_chatbot(tx, session.chatbot_id))
    command = a_command(session, messageId="mine", metadata={"order": 7})
    [_, failed] = await world.handle(command)
    event: Any = failed.message
    assert (event.name, event.error_code, event.version) == ("message.failed", "chatbot_removed", 2)
    assert (event.message_id, event.metadata) == (outgoing_message_id(session.chatbot_id, "mine"), {"order": 7})
    [row] = await all_of(database, MessageRow)
    assert (row.delivery_status, row.error_code, row.handed_over) == (D.FAILED, "chatbot_removed", True)
    assert await all_of(database, CommandRow) == []
    await database.transact(lambda tx: sessions.register_chatbot(tx, session.chatbot_id))
    assert await world.handle(command, message_id="again") == []
    assert (await reread(database, row)).delivery_status is D.FAILED


# Receipts


async def test_receipts_announce_each_step_once(database: Database, world: World) -> None:
    """Delivered, then read: an event each, with a rising version; late, repeated and lower ones tell nothing more."""
    session = await a_session(database)
    message = await sent(database, await enqueue(database, session, metadata={"order": 7}))
    await change(database, message, told_version=message.version)
    events: list[Any] = []
    for status in ("delivered", "delivered", "read", "delivered", "failed", "read"):
        outputs = await world.handle(a_receipt(session, message.whatsapp_message_id, status, timestamp=1_700_000_000))
        await world.confirm(outputs)
        events += [output.message for output in outputs]
        assert {output.correlation_id for output in outputs} <= {"command"}
    assert [(event.name, event.version) for event in events] == [("message.delivered", 3), ("message.read", 4)]
    assert all(event.metadata == {"order": 7} and event.message_id == message.id for event in events)
    row = await reread(database, message)
    assert row.delivered_at == row.read_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert row.sent_at == message.sent_at


async def test_a_repeated_receipt_tells_what_is_not_confirmed(database: Database, world: World) -> None:
    """The status is stored; until its event is confirmed a repetition tells it again, under the same id."""
    session = await a_session(database)
    message = await sent(database, await enqueue(database, session))
    receipt = a_receipt(session, message.whatsapp_message_id)
    first, again = await world.handle(receipt), await world.handle(receipt, message_id="again")
    assert ids(first) == ids(again)
    await world.confirm(first)
    assert await world.handle(receipt, message_id="again") == []


async def test_a_failure_is_recorded_and_corrected(database: Database, world: World) -> None:
    """`failed` says why; proof of delivery takes that back, and each has an event."""
    session = await a_session(database)
    message = await sent(database, await enqueue(database, session))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    reported = {"error": "no such user", "timestamp": int(at.timestamp())}
    [output] = await world.handle(a_receipt(session, message.whatsapp_message_id, "failed", **reported))
    failed = await reread(database, message)
    assert (failed.delivery_status, failed.error_code, failed.error_message, failed.failed_at) == (
        *(D.FAILED, "failed_by_whatsapp", "no such user"),
        at,
    )
    assert (output.message.name, output.message.error_message) == ("message.failed", "no such user")  # type: ignore[attr-defined]
    [output] = await world.handle(a_receipt(session, message.whatsapp_message_id))
    delivered = await reread(database, message)
    assert (delivered.delivery_status, delivered.error_code, delivered.failed_at) == (D.DELIVERED, None, None)
    assert output.message.name == "message.delivered"


async def test_a_receipt_before_its_message_is_kept(database: Database, world: World) -> None:
    """A gateway with ids of its own may report before /send has answered: the receipts are applied with the answer."""
    session = await a_session(database)
    message = await enqueue(database, session)
    for status in ("read", "read", "delivered"):
        assert await world.handle(a_receipt(session, "OWN", status)) == []
    assert len(await all_of(database, ReceiptRow)) == 2
    assert (await reread(database, message)).delivery_status is D.PENDING
    recorded = await sent(database, session, "OWN")
    assert (recorded.delivery_status, recorded.whatsapp_message_id) == (D.READ, "OWN")
    assert await all_of(database, ReceiptRow) == []


async def test_an_id_that_was_used_twice_is_the_newest_message(database: Database, world: World) -> None:
    """A gateway that gives two messages one id does not stop its receipts: they raise the newer message."""
    session = await a_session(database)
    await enqueue(database, session)
    older = await sent(database, session, "SAME")
    await enqueue(database, session)
    newer = await sent(database, session, "SAME")
    await world.handle(a_receipt(session, "SAME"))
    assert (await reread(database, newer)).delivery_status is D.DELIVERED
    assert (await reread(database, older)).delivery_status is D.SENT


async def test_a_customers_message_takes_no_receipt(database: Database, world: World) -> None:
    """A receipt under the id of a customer's message is kept for a message of ours, and tells nothing."""
    session = await a_session(database)
    message = await receive(database, session, "A1")
    assert await world.handle(a_receipt(session, "A1", "read")) == []
    assert (await reread(database, message)).delivery_status is D.DELIVERED
    assert len(await all_of(database, ReceiptRow)) == 1


async def test_a_report_of_an_unknown_session_is_undeliverable(database: Database, world: World) -> None:
    """A message or receipt of a session that nobody knows is for the dead letters, and nothing of it is stored."""
    session = await a_session(database)
    session.session_id = "foreign"
    for report in (a_report(session), a_receipt(session, "A1")):
        assert await world.refuses(report) == "unknown_session"
    assert await all_of(database, MessageRow) == await all_of(database, ReceiptRow) == []

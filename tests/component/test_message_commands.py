"""Cancelling and trying again on both databases: what each state of a message allows, also after a crash."""

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from service.consumers.conversation import ConversationConsumer
from service.domain.identities import output_id
from service.messaging.envelope import Envelope
from service.persistence import lanes, sessions
from service.persistence.conversations import apply_receipt
from service.persistence.database import Database
from service.persistence.tables import CommandRow, MessageRow, SessionRow
from tests.component.rows import (
    MAY_HAVE_GONE_OUT,
    a_session,
    all_of,
    answered,
    change,
    claimed,
    enqueue,
    receive,
    reread,
    sent,
)
from tests.component.standins import CrashError, Recorder, announcer
from whatsapp_qr_contracts.commands import CancelMessage, MessageCommand, RetryMessage
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import SessionStatus

EXPIRY = timedelta(hours=1)


class World:
    """One process with a conversation consumer and its broker."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.broker = Recorder()
        self.consumer = ConversationConsumer(database, announcer(database, self.broker), EXPIRY)

    async def handle(self, command: MessageCommand, command_id: str = "c") -> Any:
        """Carry a command out; return the event that ends it."""
        self.broker.out.clear()
        await self.consumer.routes()[type(command)](command, Envelope(command_id, None, redelivered=False))
        endings = [event for event, _, cause in self.broker.out if cause == command_id]
        assert len(endings) == 1
        return endings[0]


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def cancel(message: MessageRow) -> CancelMessage:
    return CancelMessage(chatbot_id=message.chatbot_id, message_id=message.id)


def retry(message: MessageRow) -> RetryMessage:
    return RetryMessage(chatbot_id=message.chatbot_id, message_id=message.id)


async def failed(database: Database, session: SessionRow, code: str = "outcome_unknown", **fields: Any) -> MessageRow:
    """Store a message that has failed and whose failure is announced."""
    message = await enqueue(database, session)
    gone = {"delivery_status": D.FAILED, "error_code": code, "error_message": "why", "attempts": 3, "announced": True}
    await change(database, message, **(gone | {"failed_at": message.created_at} | fields))
    return await reread(database, message)


# Cancel


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waits_can_be_cancelled(database: Database, world: World, status: SessionStatus) -> None:
    """It fails as cancelled; its sender hears message.failed and whoever cancelled message.cancelled, each once."""
    session = await a_session(database, status=status)
    first, message, last = [await enqueue(database, session, message=text) for text in "123"]
    event = await world.handle(cancel(message))
    assert event.name == "message.cancelled"
    assert (event.message_id, event.delivery_status) == (message.id, D.FAILED)
    assert [(one.name, cause) for one, _, cause in world.broker.out] == [
        ("message.failed", "command"),
        ("message.cancelled", "c"),
    ]
    row = await reread(database, message)
    assert (row.delivery_status, row.error_code, row.error_message) == (D.FAILED, "cancelled", "it was cancelled")
    assert row.failed_at == event.occurred_at
    for expected in (first, last) if status is SessionStatus.CONNECTED else ():
        found = await claimed(database, session)
        assert found.id == expected.id
        await sent(database, found)


async def test_what_may_have_gone_out_says_so(database: Database, world: World) -> None:
    """After an attempt whose outcome is unknown a cancelled message may have arrived all the same."""
    message = await enqueue(database, await a_session(database))
    await change(database, message, attempts=1)
    await world.handle(cancel(message))
    assert (await reread(database, message)).error_message == f"it was cancelled{MAY_HAVE_GONE_OUT}"


async def test_what_was_claimed_by_a_killed_process_says_so_too(database: Database, world: World) -> None:
    """It was counted as no attempt, but may have been one."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await claimed(database, session)
    await change(database, message, claimed_until=message.created_at - timedelta(hours=1))
    await world.handle(cancel(message))
    assert (await reread(database, message)).error_message == f"it was cancelled{MAY_HAVE_GONE_OUT}"


async def test_what_is_being_sent_cannot_be_cancelled(database: Database, world: World) -> None:
    """Under a live claim the command is rejected; once the claim has ended it is not."""
    session = await a_session(database)
    message = await enqueue(database, session)
    await claimed(database, session)
    event = await world.handle(cancel(message))
    assert (event.name, event.code) == ("command.rejected", "being_sent")
    assert (await reread(database, message)).delivery_status is D.PENDING
    await change(database, message, claimed_until=message.created_at - timedelta(hours=1))
    assert (await world.handle(cancel(message), "again")).name == "message.cancelled"


@pytest.mark.parametrize("status", [D.SENT, D.DELIVERED, D.READ, D.FAILED])
async def test_what_does_not_wait_cannot_be_cancelled(database: Database, world: World, status: D) -> None:
    """Whether it went out or failed of something else; nothing has changed then."""
    message = await enqueue(database, await a_session(database))
    await change(database, message, delivery_status=status, error_code="expired" if status is D.FAILED else None)
    before = await reread(database, message)
    event = await world.handle(cancel(message))
    assert (event.name, event.code, event.command_id) == ("command.rejected", "not_pending", "c")
    after = await reread(database, message)
    assert (after.delivery_status, after.error_code) == (before.delivery_status, before.error_code)


@pytest.mark.parametrize("kind", [CancelMessage, RetryMessage])
async def test_an_unknown_message_is_rejected(database: Database, world: World, kind: type[MessageCommand]) -> None:
    """Also one of another chatbot: nobody learns of it."""
    session, other = await a_session(database), await a_session(database)
    message = await enqueue(database, session)
    for command in (
        kind(chatbot_id=session.chatbot_id, message_id=uuid4()),
        kind(chatbot_id=other.chatbot_id, message_id=message.id),
    ):
        event = await world.handle(command, f"c {command.message_id}")
        assert (event.name, event.code) == ("command.rejected", "unknown_message")
    assert (await reread(database, message)).delivery_status is D.PENDING


async def test_a_customers_message_cannot_be_cancelled(database: Database, world: World) -> None:
    """It was not sent by us at all."""
    _, message, _ = await receive(database, await a_session(database))
    assert (await world.handle(cancel(message))).code == "not_pending"
    assert (await world.handle(retry(message), "r")).code == "not_failed"


async def test_cancelling_again_changes_nothing(database: Database, world: World) -> None:
    """The same command repeats its event; another one ends in an event of its own about the same failure."""
    message = await enqueue(database, await a_session(database))
    first = await world.handle(cancel(message))
    ids = world.broker.ids
    assert await world.handle(cancel(message)) == first
    assert world.broker.ids == ids[-1:]
    again = await world.handle(cancel(message), "other")
    assert again.wire() == first.wire()
    assert world.broker.ids != ids[-1:]


async def test_a_repetition_keeps_its_outcome(database: Database, world: World) -> None:
    """A cancel that comes again after the message was tried again does not cancel that."""
    message = await enqueue(database, await a_session(database))
    first = await world.handle(cancel(message))
    await world.handle(retry(message), "r")
    assert await world.handle(cancel(message)) == first
    assert (await reread(database, message)).delivery_status is D.PENDING


async def test_another_command_under_a_known_id_is_refused(database: Database, world: World) -> None:
    """The same about another message, or another about the same: each is told so, and the first keeps its outcome."""
    session = await a_session(database)
    message, other = await enqueue(database, session), await enqueue(database, session)
    first = await world.handle(cancel(message))
    ids = set(world.broker.ids)
    for command in (cancel(other), retry(message), retry(other)):
        event = await world.handle(command)
        assert (event.name, event.code, event.command, event.command_id) == (
            "command.rejected", "id_reused", command.name, "c"
        )  # fmt: skip
        assert ids.isdisjoint(world.broker.ids)
        refused = world.broker.ids
        assert await world.handle(command) == event
        assert world.broker.ids == refused
        ids.update(refused)
    assert (await reread(database, other)).delivery_status is D.PENDING
    assert (await reread(database, message)).error_code == "cancelled"
    assert await world.handle(cancel(message)) == first


async def test_a_row_without_a_digest_is_of_its_name(database: Database, world: World) -> None:
    """A command that was written down before there were digests repeats its outcome; another one is refused."""
    message = await enqueue(database, await a_session(database))
    first = await world.handle(cancel(message))
    await database.transact(lambda tx: tx.execute(update(CommandRow).values(digest=None)))
    assert await world.handle(cancel(message)) == first
    assert (await world.handle(retry(message))).code == "id_reused"


@pytest.mark.parametrize("when_done", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cancel", "retry"])
async def test_a_command_outlives_a_crash(database: Database, kind: str, step: int, *, when_done: bool) -> None:
    """Whichever output failed, arrived or not: the repetition publishes what is missing, each under one id."""
    session = await a_session(database)
    if kind == "cancel":
        message = await enqueue(database, session)
        command: MessageCommand = cancel(message)
        outputs = ["message.cancelled", "message.failed"]
    else:
        message = await failed(database, session, announced=False)
        command = retry(message)
        outputs = ["message.failed", "message.queued", "whatsapp-qr-send"]
    world = World(database)
    world.broker.steps.crash_at, world.broker.steps.when_done = step, when_done
    out = world.broker.out
    try:
        await world.consumer.routes()[type(command)](command, Envelope("c", None, redelivered=False))
    except CrashError:
        pass
    else:
        assert (kind, step) == ("cancel", 3)
    restarted = World(database)
    await restarted.consumer.routes()[type(command)](command, Envelope("c", None, redelivered=True))
    both = {(one.name, message_id) for one, message_id, _ in [*out, *restarted.broker.out]}
    assert sorted(name for name, _ in both) == outputs
    assert len(await all_of(database, CommandRow)) == 1


# Retry


@pytest.mark.parametrize("code", ["outcome_unknown", "expired", "cancelled", "number_changed", "not_on_whatsapp"])
async def test_what_failed_can_be_tried_again(database: Database, world: World, code: str) -> None:
    """It waits behind what waits now, under the same WhatsApp id, with new attempts and expiry; it is rung for."""
    session = await a_session(database)
    message = await failed(database, session, code, expires_at=session.created_at - timedelta(days=1))
    waiting = await enqueue(database, session, message="waits")
    event = await world.handle(retry(message))
    assert (event.name, event.delivery_status, event.message_id) == ("message.queued", D.PENDING, message.id)
    assert [(one.name, message_id) for one, message_id, cause in world.broker.out if cause == "command"] == [
        ("whatsapp-qr-send", output_id(message.id, "retry c"))
    ]
    row = await reread(database, message)
    assert (row.delivery_status, row.attempts, row.error_code, row.error_message) == (D.PENDING, 0, None, None)
    assert (row.failed_at, row.claimed_until, row.not_before) == (None, None, None)
    assert row.whatsapp_message_id == message.whatsapp_message_id
    now = await database.transact(database.present)
    assert row.expires_at is not None
    assert timedelta(minutes=59) < row.expires_at - now <= EXPIRY
    for expected in (waiting, message):
        found = await claimed(database, session)
        assert found.id == expected.id
        await sent(database, found)
    assert (await reread(database, message)).delivery_status is D.SENT


async def test_what_whatsapp_failed_goes_out_under_a_new_id(database: Database, world: World) -> None:
    """The receipt that failed it, repeated, is not about the new try; each retry has one id, however often asked."""
    session = await a_session(database)
    message = await enqueue(database, session)
    ids = [message.whatsapp_message_id]
    for command_id in ("first", "second"):
        await sent(database, await claimed(database, session))
        failure = await receipt_of_failure(database, message, ids[-1])
        assert failure is not None
        event = await world.handle(retry(message), command_id)
        ids.append((await reread(database, message)).whatsapp_message_id)
        assert re.fullmatch(r"3EB0[0-9A-F]{18}", ids[-1])
        assert event.whatsapp_message_id == ids[-1]
        assert await world.handle(retry(message), command_id) == event
        assert await receipt_of_failure(database, message, ids[-2]) is None
        row = await reread(database, message)
        assert (row.delivery_status, row.whatsapp_message_id) == (D.PENDING, ids[-1])
    assert len(set(ids)) == 3
    await change(database, message, delivery_status=D.FAILED, error_code="outcome_unknown")
    await world.handle(retry(message), "third")
    assert (await reread(database, message)).whatsapp_message_id == ids[-1]


async def receipt_of_failure(database: Database, message: MessageRow, whatsapp_id: str) -> MessageRow | None:
    return await database.transact(
        lambda tx: apply_receipt(
            tx,
            session_id=message.session_id,
            whatsapp_id=whatsapp_id,
            status=D.FAILED,
            at=message.created_at,
            error="no",
        )
    )


@pytest.mark.parametrize("status", [D.PENDING, D.SENT, D.DELIVERED, D.READ])
async def test_what_has_not_failed_is_not_tried_again(database: Database, world: World, status: D) -> None:
    """Nothing is sent twice because somebody asked twice."""
    message = await enqueue(database, await a_session(database))
    await change(database, message, delivery_status=status)
    event = await world.handle(retry(message))
    assert (event.name, event.code) == ("command.rejected", "not_failed")
    assert "whatsapp-qr-send" not in world.broker.names


async def test_without_a_session_nothing_is_tried_again(database: Database, world: World) -> None:
    """Once the chatbot was removed there is nobody to send it."""
    session = await a_session(database)
    message = await failed(database, session)
    await database.transact(lambda tx: sessions.remove_chatbot(tx, session.chatbot_id))
    assert (await world.handle(retry(message))).code == "no_session"


async def test_a_repeated_retry_sends_once(database: Database, world: World) -> None:
    """The same command again repeats its event, and rings only while the message waits."""
    session = await a_session(database)
    message = await failed(database, session)
    first = await world.handle(retry(message))
    assert await world.handle(retry(message)) == first
    assert world.broker.names == ["whatsapp-qr-send", "message.queued"]
    await sent(database, await claimed(database, session))
    assert await world.handle(retry(message)) == first
    assert world.broker.names == ["message.queued"]
    assert (await reread(database, message)).delivery_status is D.SENT


async def test_a_failure_is_told_before_it_is_tried_again(database: Database, world: World) -> None:
    """The event of a failure that a crash left unannounced is not lost."""
    message = await failed(database, await a_session(database), announced=False)
    await world.handle(retry(message))
    assert world.broker.names == ["message.failed", "whatsapp-qr-send", "message.queued"]


async def test_an_old_claim_records_nothing(database: Database, world: World) -> None:
    """A process that still believes it has the message from before cannot fail the new try."""
    session = await a_session(database)
    message = await enqueue(database, session)
    old = await claimed(database, session)
    gone = {"delivery_status": D.FAILED, "error_code": "expired", "failed_at": message.created_at}
    await change(database, message, **gone)
    await world.handle(retry(message))
    verdict = lanes.GiveUp("outcome_unknown", "late")
    recorded = await database.transact(lambda tx: lanes.record_failure(database, tx, claimed=old, verdict=verdict))
    assert recorded is None
    assert (await reread(database, message)).delivery_status is D.PENDING


@pytest.mark.parametrize("own_id", [None, "OWN"])
async def test_a_late_answer_does_not_undo_a_retry(database: Database, world: World, own_id: str | None) -> None:
    """What WhatsApp failed waits under a new id; the answer to the call under the old one says nothing about it."""
    session = await a_session(database)
    message = await enqueue(database, session)
    first = await claimed(database, session)
    await receipt_of_failure(database, message, first.whatsapp_message_id)
    await world.handle(retry(message))
    assert await answered(database, first, own_id or first.whatsapp_message_id) is None
    row = await reread(database, message)
    assert row.delivery_status is D.PENDING
    assert row.whatsapp_message_id not in {first.whatsapp_message_id, own_id}
    again = await claimed(database, session)
    assert (await sent(database, again)).delivery_status is D.SENT


async def test_an_answer_can_be_recorded_again(database: Database) -> None:
    """Where nobody knows whether the transaction was committed it is repeated, whoever chose the id."""
    session = await a_session(database)
    for own_id in (None, "OWN"):
        await enqueue(database, session)
        message = await claimed(database, session)
        first = await sent(database, message, own_id)
        again = await sent(database, message, own_id)
        assert (again.delivery_status, again.whatsapp_message_id) == (D.SENT, first.whatsapp_message_id)


async def test_a_second_failure_is_announced(database: Database, world: World) -> None:
    """Also by a process that has not yet written down that the first one, before the retry, was confirmed."""
    session = await a_session(database)
    message = await enqueue(database, session)
    broker = Recorder()
    sender = announcer(database, broker)

    async def fail(code: str) -> None:
        verdict, attempt = lanes.GiveUp(code, "no"), await claimed(database, session)
        row = await database.transact(lambda tx: lanes.record_failure(database, tx, claimed=attempt, verdict=verdict))
        assert row is not None
        await sender.status(row)

    await fail("refused")
    await world.handle(retry(message))
    await fail("not_on_whatsapp")
    assert [event.error_code for event, _, _ in broker.out] == ["refused", "not_on_whatsapp"]
    await sender.confirmations.flush()
    assert (await reread(database, message)).announced


async def test_a_late_confirmation_of_the_first_failure_says_nothing_about_the_second(
    database: Database, world: World
) -> None:
    """It was confirmed at another place of the lane: the second one is still to be announced."""
    message = await failed(database, await a_session(database), announced=False)
    late = announcer(database, Recorder())
    await late.status(message)
    await world.handle(retry(message))
    await change(database, message, delivery_status=D.FAILED, error_code="refused", announced=False)
    await late.confirmations.flush()
    assert not (await reread(database, message)).announced

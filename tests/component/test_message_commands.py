"""Cancelling and trying again on both databases: what each state of a message allows, and what repetitions do."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from service.domain.identities import output_id
from service.domain.sending import GiveUp
from service.persistence import sessions
from service.persistence.database import Database, present
from service.persistence.tables import CommandRow, LaneRow, MessageRow, SessionRow
from tests.component import conversing
from tests.component.conversing import a_receipt, confirm
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
from whatsapp_qr_contracts.commands import CancelMessage, MessageCommand, RetryMessage
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import SessionStatus

if TYPE_CHECKING:
    from service.consumers.row_outputs import Output

EXPIRY = timedelta(hours=1)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """One process with a conversation consumer."""

    def __init__(self, database: Database) -> None:
        self._process = conversing.World(database)
        self.outputs: list[Output] = []

    async def handle(self, command: MessageCommand, command_id: str = "c") -> Any:
        """Carry a command out; return the event that ends it."""
        self.outputs = await self._process.handle(command, message_id=command_id)
        [*_, ending] = self.outputs
        return ending.message

    @property
    def published(self) -> list[tuple[str, str]]:
        """What the last command published, in order, and what caused it."""
        return [(output.message.name, output.correlation_id) for output in self.outputs]

    @property
    def ending_id(self) -> str:
        return self.outputs[-1].message_id


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def cancel(message: MessageRow) -> CancelMessage:
    return CancelMessage(chatbot_id=message.chatbot_id, message_id=message.id)


def retry(message: MessageRow) -> RetryMessage:
    return RetryMessage(chatbot_id=message.chatbot_id, message_id=message.id)


async def failed(database: Database, session: SessionRow, code: str = "outcome_unknown", **fields: Any) -> MessageRow:
    """Store a message that has failed and whose failure is told."""
    message = await enqueue(database, session)
    gone = {"delivery_status": D.FAILED, "error_code": code, "error_message": "why", "attempts": 3}
    told = {"version": 2, "told_version": 2, "handed_over": True, "failed_at": message.created_at}
    await change(database, message, **(gone | told | fields))
    return await reread(database, message)


async def claim_ends(database: Database) -> None:
    """Let every claim be over."""
    await database.transact(lambda tx: tx.execute(update(LaneRow).values(claimed_until=LONG_AGO)))


# Cancel


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waits_can_be_cancelled(database: Database, world: World, status: SessionStatus) -> None:
    """It fails as cancelled; its sender hears message.failed and whoever cancelled message.cancelled, each once."""
    session = await a_session(database, status=status)
    first, message, last = [await enqueue(database, session, message=text) for text in "123"]
    event = await world.handle(cancel(message))
    assert world.published == [("message.failed", "command"), ("message.cancelled", "c")]
    assert (event.message_id, event.delivery_status, event.version) == (message.id, D.FAILED, 2)
    row = await reread(database, message)
    assert (row.delivery_status, row.error_code, row.error_message) == (D.FAILED, "cancelled", "it was cancelled")
    assert row.failed_at == event.occurred_at
    if status is SessionStatus.CONNECTED:
        assert [(await sent(database, session)).id for _ in range(2)] == [first.id, last.id]


async def test_what_may_have_gone_out_says_so(database: Database, world: World) -> None:
    """After an attempt whose outcome is unknown a cancelled message may have arrived all the same."""
    message = await enqueue(database, await a_session(database))
    await change(database, message, attempts=1)
    await world.handle(cancel(message))
    assert (await reread(database, message)).error_message == f"it was cancelled{MAY_HAVE_GONE_OUT}"


async def test_what_is_being_sent_cannot_be_cancelled(database: Database, world: World) -> None:
    """Under a live claim the command is rejected; once that has ended it is not, and what was begun is told.

    The claim of a killed process was counted as no attempt, but may have been one.
    """
    session = await a_session(database)
    message, behind = await enqueue(database, session), await enqueue(database, session)
    await claimed(database, session)
    event = await world.handle(cancel(message))
    assert (event.name, event.code, event.message_id) == ("command.rejected", "being_sent", message.id)
    assert (await reread(database, message)).delivery_status is D.PENDING
    assert (await world.handle(cancel(behind), "behind")).name == "message.cancelled"
    await claim_ends(database)
    assert (await world.handle(cancel(message), "again")).name == "message.cancelled"
    assert (await reread(database, message)).error_message == f"it was cancelled{MAY_HAVE_GONE_OUT}"
    assert (await reread(database, behind)).error_message == "it was cancelled"


@pytest.mark.parametrize("status", [D.SENT, D.DELIVERED, D.READ, D.FAILED])
async def test_what_does_not_wait_cannot_be_cancelled(database: Database, world: World, status: D) -> None:
    """Whether it went out or failed of something else; nothing has changed then."""
    message = await enqueue(database, await a_session(database))
    await change(database, message, delivery_status=status, error_code="expired" if status is D.FAILED else None)
    before = await reread(database, message)
    event = await world.handle(cancel(message))
    assert (event.name, event.code, event.command_id) == ("command.rejected", "not_pending", "c")
    after = await reread(database, message)
    assert (after.delivery_status, after.error_code, after.version) == (
        *(before.delivery_status, before.error_code),
        before.version,
    )


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
    message = await receive(database, await a_session(database))
    assert (await world.handle(cancel(message))).code == "not_pending"
    assert (await world.handle(retry(message), "r")).code == "not_failed"


async def test_a_command_without_an_id_is_undeliverable(database: Database) -> None:
    """Doing it twice could not be told from doing it once."""
    message, process = await enqueue(database, await a_session(database)), conversing.World(database)
    for command in (cancel(message), retry(message)):
        assert await process.refuses(command, "") == "missing_id"
    assert await all_of(database, CommandRow) == []


async def test_cancelling_again_changes_nothing(database: Database, world: World) -> None:
    """The same command repeats its event; another one ends in an event of its own about the same failure."""
    message = await enqueue(database, await a_session(database))
    first = await world.handle(cancel(message))
    first_id = world.ending_id
    assert await world.handle(cancel(message)) == first
    assert (world.ending_id, len(world.outputs)) == (first_id, 1)
    again = await world.handle(cancel(message), "other")
    assert again.wire() == first.wire()
    assert world.ending_id != first_id


async def test_a_repetition_keeps_its_outcome(database: Database, world: World) -> None:
    """A cancel that comes again after the message was tried again does not cancel that, by another process either."""
    message = await enqueue(database, await a_session(database))
    first = await world.handle(cancel(message))
    await confirm(database, *world.outputs)
    await world.handle(retry(message), "r")
    for process in (world, World(database)):
        assert await process.handle(cancel(message)) == first
    assert (await reread(database, message)).delivery_status is D.PENDING
    assert len(await all_of(database, CommandRow)) == 2


async def test_another_command_under_a_known_id_is_refused(database: Database, world: World) -> None:
    """The same about another message, or another about the same: each is told so, and the first keeps its outcome."""
    session = await a_session(database)
    message, other = await enqueue(database, session), await enqueue(database, session)
    first = await world.handle(cancel(message))
    ids = {world.ending_id}
    for command in (cancel(other), retry(message), retry(other)):
        event = await world.handle(command)
        assert (event.name, event.code, event.command, event.command_id) == (
            *("command.rejected", "id_reused", command.name, "c"),
        )
        assert world.published == [("command.rejected", "c")]
        refused = world.ending_id
        assert refused not in ids
        assert await world.handle(command) == event
        assert world.ending_id == refused
        ids.add(refused)
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


# Retry


@pytest.mark.parametrize("code", ["outcome_unknown", "expired", "cancelled", "number_changed", "not_on_whatsapp"])
async def test_what_failed_can_be_tried_again(database: Database, world: World, code: str) -> None:
    """It waits behind what waits now, under the same WhatsApp id, with new attempts and expiry; its lane is woken."""
    session = await a_session(database)
    message = await failed(database, session, code, expires_at=session.created_at - timedelta(days=1))
    waiting = await enqueue(database, session, message="waits")
    event = await world.handle(retry(message))
    assert (event.name, event.delivery_status, event.message_id) == ("message.queued", D.PENDING, message.id)
    assert world.published == [("whatsapp-qr-send", "command"), ("message.queued", "c")]
    assert world.outputs[0].message_id == output_id(message.id, "job 3")
    row = await reread(database, message)
    assert (row.delivery_status, row.attempts, row.error_code, row.error_message) == (D.PENDING, 0, None, None)
    assert (row.lane_number, row.failed_at, row.handed_over, row.version) == (3, None, False, 3)
    assert (row.whatsapp_message_id, event.version) == (message.whatsapp_message_id, 3)
    now = await database.read(present)
    assert row.expires_at is not None
    assert timedelta(minutes=59) < row.expires_at - now <= EXPIRY
    assert [(await sent(database, session)).id for _ in range(2)] == [waiting.id, message.id]
    assert (await reread(database, message)).delivery_status is D.SENT


async def test_what_whatsapp_failed_goes_out_under_a_new_id(database: Database, world: World) -> None:
    """The receipt that failed it, repeated, is not about the new try; each retry has one id, however often asked."""
    session = await a_session(database)
    message = await enqueue(database, session)
    ids = [message.whatsapp_message_id]
    for command_id in ("first", "second"):
        await sent(database, session)
        assert await receipt_of_failure(database, session, ids[-1]) == ["message.failed"]
        event = await world.handle(retry(message), command_id)
        ids.append((await reread(database, message)).whatsapp_message_id)
        assert re.fullmatch(r"3EB0[0-9A-F]{18}", ids[-1])
        assert event.whatsapp_message_id == ids[-1]
        assert await world.handle(retry(message), command_id) == event
        assert await receipt_of_failure(database, session, ids[-2]) == []
        row = await reread(database, message)
        assert (row.delivery_status, row.whatsapp_message_id) == (D.PENDING, ids[-1])
    assert len(set(ids)) == 3
    await change(database, message, delivery_status=D.FAILED, error_code="outcome_unknown")
    await world.handle(retry(message), "third")
    assert (await reread(database, message)).whatsapp_message_id == ids[-1]


async def receipt_of_failure(database: Database, session: SessionRow, whatsapp_id: str) -> list[str]:
    outputs = await conversing.World(database).handle(a_receipt(session, whatsapp_id, "failed", error="no"))
    return [output.message.name for output in outputs]


@pytest.mark.parametrize("status", [D.PENDING, D.SENT, D.DELIVERED, D.READ])
async def test_what_has_not_failed_is_not_tried_again(database: Database, world: World, status: D) -> None:
    """Nothing is sent twice because somebody asked twice."""
    message = await enqueue(database, await a_session(database))
    await change(database, message, delivery_status=status)
    event = await world.handle(retry(message))
    assert (event.code, event.message_id) == ("not_failed", message.id)
    assert world.published == [("command.rejected", "c")]
    row = await reread(database, message)
    assert (row.delivery_status, row.lane_number) == (status, 1)


async def test_without_a_session_nothing_is_tried_again(database: Database, world: World) -> None:
    """Once the chatbot was removed there is nobody to send it."""
    session = await a_session(database)
    message = await failed(database, session)
    await database.transact(lambda tx: sessions.remove_chatbot(tx, session.chatbot_id))
    assert (await world.handle(retry(message))).code == "no_session"


async def test_a_repeated_retry_sends_once(database: Database, world: World) -> None:
    """The same command again repeats its event and nothing else."""
    session = await a_session(database)
    message = await failed(database, session)
    first = await world.handle(retry(message))
    for _ in range(2):
        assert await world.handle(retry(message)) == first
        assert world.published == [("message.queued", "c")]
    await sent(database, session)
    assert await world.handle(retry(message)) == first
    row = await reread(database, message)
    assert (row.delivery_status, row.lane_number) == (D.SENT, 2)


async def test_a_failure_is_told_before_it_is_tried_again(database: Database, world: World) -> None:
    """The event of a failure that is not known to be confirmed is not lost."""
    message = await failed(database, await a_session(database), told_version=1)
    await world.handle(retry(message))
    assert [name for name, _ in world.published] == ["message.failed", "whatsapp-qr-send", "message.queued"]


async def test_an_old_claim_records_nothing(database: Database, world: World) -> None:
    """A process that still believes it has the message from before cannot fail the new try."""
    session = await a_session(database)
    message = await enqueue(database, session)
    old = await claimed(database, session)
    await claim_ends(database)
    await world.handle(cancel(message), "cancel")
    await world.handle(retry(message))
    await claimed(database, session)
    assert (await answered(database, old, GiveUp("outcome_unknown", "late"))).changed == []
    assert (await reread(database, message)).delivery_status is D.PENDING


@pytest.mark.parametrize("own_id", [None, "OWN"])
async def test_a_late_answer_does_not_undo_a_retry(database: Database, world: World, own_id: str | None) -> None:
    """What WhatsApp failed waits under a new id; the answer to the call under the old one says nothing about it."""
    session = await a_session(database)
    message = await enqueue(database, session)
    first = await claimed(database, session)
    old_id = first.message.whatsapp_message_id
    await receipt_of_failure(database, session, old_id)
    await world.handle(retry(message))
    assert (await answered(database, first, own_id or old_id)).changed == []
    row = await reread(database, message)
    assert row.delivery_status is D.PENDING
    assert row.whatsapp_message_id not in {old_id, own_id}
    assert (await sent(database, session)).delivery_status is D.SENT


async def test_an_answer_can_be_recorded_again(database: Database) -> None:
    """Where nobody knows whether the transaction was committed it is repeated, whoever chose the id."""
    session = await a_session(database)
    for own_id in (None, "OWN"):
        await enqueue(database, session)
        one = await claimed(database, session)
        whatsapp_id = own_id or one.message.whatsapp_message_id
        await answered(database, one, whatsapp_id)
        first = await reread(database, one.message)
        await answered(database, one, whatsapp_id)
        again = await reread(database, one.message)
        assert (again.delivery_status, again.whatsapp_message_id) == (D.SENT, whatsapp_id)
        assert (again.version, again.sent_at) == (first.version, first.sent_at)


async def test_a_second_failure_is_told(database: Database) -> None:
    """Also where the first one, before the retry, was confirmed: it is another version, under another id."""
    session = await a_session(database)
    message = await enqueue(database, session)
    told: list[Any] = []
    for code in ("refused", "not_on_whatsapp"):
        await answered(database, await claimed(database, session), GiveUp(code, "no"))
        [*earlier, _job, _queued] = await conversing.World(database).handle(retry(message), message_id=code)
        told += earlier
        await confirm(database, *earlier)
    assert [(one.message.error_code, one.message.version) for one in told] == [("refused", 2), ("not_on_whatsapp", 4)]
    assert told[0].message_id != told[1].message_id

"""A batch of messages has the result that one by one would have, on both databases, whoever else is at work."""

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from service.consumers.conversation import ConversationConsumer
from service.consumers.row_outputs import Output
from service.domain.identities import outgoing_message_id, whatsapp_message_id
from service.errors import DatabaseUnavailable
from service.messaging.receiving import Received
from service.persistence import lanes, sessions
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, ReceiptRow, SessionRow
from tests.component.conversing import World, a_receipt
from tests.component.rows import (
    POLICY,
    Outputs,
    a_command,
    a_report,
    a_session,
    all_of,
    received,
)
from whatsapp_qr_contracts.commands import CancelMessage, RetryMessage
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import Role

CUSTOMERS = ["5491100000000", "5491111111111"]
Step = tuple[str, int, str, str]
"""What comes: its kind, the chatbot it is about, the message it is about, and how."""


class Process:
    """A process that takes batches."""

    def __init__(self, database: Database) -> None:
        self.database, self.outputs, self.dead = database, Outputs(), list[str]()
        self._consumer = ConversationConsumer(database, self.outputs, timedelta(hours=1))  # type: ignore[arg-type]

    async def take(self, batch: Sequence[Received]) -> None:
        self.dead += [error.code for _, error in await self._consumer.handle(batch)]


# Any batch


def any_steps(seed: int, count: int = 40) -> list[Step]:
    """Make up what may come to three chatbots; few ids, so that much of it meets."""
    chance = random.Random(seed)
    kinds = ["send", "report", "receipt", "cancel", "retry", "foreign", "fail"]
    steps = []
    for _ in range(count):
        kind = chance.choices(kinds, [6, 4, 4, 2, 4, 1, 3])[0]
        how = chance.choice(["delivered", "read", "failed"]) if kind == "receipt" else chance.choice("ab")
        steps.append((kind, chance.randrange(4), str(chance.randrange(4)), how))
    return steps


class Chatbots:
    """Three chatbots with sessions, of which the last was removed, and one without."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def begin(self) -> "Chatbots":
        self.sessions = [await a_session(self.database) for _ in range(3)]
        await self.database.transact(lambda tx: sessions.remove_chatbot(tx, self.sessions[2].chatbot_id))
        self.ids = [session.chatbot_id for session in self.sessions] + [uuid4()]
        return self

    def message(self, step: Step, number: int) -> Received:
        """Return what comes; commands come again under one id now and then."""
        kind, chatbot, about, how = step
        chatbot_id = self.ids[chatbot]
        session = self.sessions[min(chatbot, 2)]
        message_id = outgoing_message_id(chatbot_id, about)
        command_id = f"{kind} {about} {how}" if number % 2 else str(number)
        if kind == "send":
            fields = {"to": CUSTOMERS[int(about) % 2], "message": how, "messageId": about}
            return received(a_command(session, **fields).model_copy(update={"chatbot_id": chatbot_id}), command_id)
        if kind == "report":
            report = a_report(session, about, message=how, **{"from": CUSTOMERS[how == "a"]})
            return received(report, command_id)
        if kind == "foreign":
            return received(a_report(session, about, sessionId="foreign"), command_id)
        if kind in {"receipt", "fail"}:  # WhatsApp says that it failed, so that it may be tried again
            whatsapp_id = whatsapp_message_id(message_id)
            status = how if kind == "receipt" else "failed"
            return received(a_receipt(session, whatsapp_id, status, timestamp=1_700_000_000), command_id)
        model: Any = CancelMessage if kind == "cancel" else RetryMessage
        return received(model(chatbot_id=chatbot_id, message_id=message_id), command_id)

    async def state(self) -> dict[str, Any]:
        """Return all that was stored of them, without ids and times."""
        names = {chatbot_id: str(index) for index, chatbot_id in enumerate(self.ids)}
        own = [session.session_id for session in self.sessions]
        labels = {outgoing_message_id(one, about): f"{names[one]} {about}" for one in self.ids for about in "0123"}
        whatsapp = {whatsapp_message_id(message_id): label for message_id, label in labels.items()}
        messages = [one for one in await all_of(self.database, MessageRow) if one.chatbot_id in names]
        receipts = [one for one in await all_of(self.database, ReceiptRow) if one.session_id in own]
        commands = [one for one in await all_of(self.database, CommandRow) if one.chatbot_id in names]
        begun = [one for one in await all_of(self.database, ConversationRow) if one.chatbot_id in names]
        rows = [one for one in await all_of(self.database, SessionRow) if one.session_id in own]
        fields = ("content", "delivery_status", "version", "told_version", "handed_over", "error_code", "lane_number")
        more = ("sequence", "external_user_id", "attempts", "correlation_id")
        ordered = sorted(messages, key=lambda one: one.created_at)
        return {
            "messages": sorted(
                (
                    names[one.chatbot_id],
                    whatsapp.get(one.whatsapp_message_id, one.role if one.role is Role.ASSISTANT else "received"),
                    *(str(getattr(one, name)) for name in fields + more),
                )
                for one in messages
            ),
            "order": [
                [(labels.get(one.id, one.whatsapp_message_id)) for one in ordered if one.chatbot_id == chatbot_id]
                for chatbot_id in self.ids
            ],
            "receipts": sorted((whatsapp[one.whatsapp_message_id], one.status) for one in receipts),
            "commands": sorted(
                (names[one.chatbot_id], *self._outcome(one.outcome), one.name, one.told_version) for one in commands
            ),
            "conversations": sorted(
                (names[one.chatbot_id], one.external_user_id, one.sequence_end, one.correlation_id) for one in begun
            ),
            "sessions": [next(row.lane_end for row in rows if row.session_id == one) for one in own],
        }

    @staticmethod
    def _outcome(outcome: dict[str, Any]) -> tuple[str, str, str]:
        body = outcome["body"]
        return outcome["name"], outcome["command_id"], str(body.get("code", body.get("version")))

    def told(self, outputs: Sequence[Output]) -> list[list[str]]:
        """Return what was told of each chatbot, in order, each output once."""
        once: dict[str, Output] = {}
        for output in outputs:
            once.setdefault(output.message_id, output)
        told: dict[UUID, list[str]] = {chatbot_id: [] for chatbot_id in self.ids}
        of_session = {session.session_id: session.chatbot_id for session in self.sessions}
        for output in once.values():
            message = cast("Any", output.message)
            chatbot_id = getattr(message, "chatbot_id", None) or of_session[message.session_id]
            details = [str(getattr(message, name, "")) for name in ("version", "code", "command_id", "content")]
            told[chatbot_id].append(" ".join([message.name, *details, output.correlation_id]))
        return [told[chatbot_id] for chatbot_id in self.ids]


@pytest.mark.parametrize("seed", range(6))
async def test_a_batch_does_what_one_by_one_does(database: Database, seed: int) -> None:
    """Whatever comes, and however it is cut into batches: the same rows, outputs and dead letters, in one order."""
    steps, chance = any_steps(seed), random.Random(seed)
    one_by_one, batched = await Chatbots(database).begin(), await Chatbots(database).begin()
    single, many = Process(database), Process(database)
    for number, step in enumerate(steps):
        await single.take([one_by_one.message(step, number)])
    messages = [batched.message(step, number) for number, step in enumerate(steps)]
    while messages:
        count = chance.randint(1, 20)
        await many.take(messages[:count])
        messages = messages[count:]
    assert await batched.state() == await one_by_one.state()
    assert batched.told(many.outputs.outputs) == one_by_one.told(single.outputs.outputs)
    assert many.dead == single.dead


# What meets in one batch


async def test_the_same_message_twice_in_one_batch_counts_once(database: Database) -> None:
    """A report, a message to send and a command that come again before they are committed: one row, one output each."""
    world, session = World(database), await a_session(database)
    command = a_command(session, messageId="m")
    cancel = CancelMessage(chatbot_id=session.chatbot_id, message_id=outgoing_message_id(session.chatbot_id, "m"))
    outputs = await world.handle(*[a_report(session), command, cancel] * 2)
    assert sorted(output.message.name for output in outputs) == [
        *("conversation.started", "incoming-messages", "message.cancelled", "message.failed", "message.received"),
        "whatsapp-qr-send",
    ]
    assert len(await all_of(database, MessageRow)) == 2
    [row] = await all_of(database, SessionRow)
    assert row.lane_end == 1


async def test_a_batch_keeps_the_order_of_arrival(database: Database) -> None:
    """Numbers in conversation and lane, times and outputs follow it, whatever comes in between."""
    world = World(database)
    one, other = await a_session(database), await a_session(database)
    batch: list[Any] = []
    for n in range(20):
        for session in (one, other):
            customer = CUSTOMERS[n % 2]
            batch += [
                a_report(session, f"{n}", message=f"{n}", **{"from": customer}),
                a_command(session, to=customer, message=f"{n}"),
            ]
    outputs = await world.handle(*batch)
    jobs = [cast("Any", output.message) for output in outputs if output.message.name == "incoming-messages"]
    for session in (one, other):
        messages = await all_of(database, MessageRow, session_id=session.session_id)
        by_time = sorted(messages, key=lambda message: message.created_at)
        for customer, texts in zip(CUSTOMERS, (range(0, 20, 2), range(1, 20, 2)), strict=True):
            own = [message for message in by_time if message.external_user_id == customer]
            assert [int(message.content) for message in own] == sorted([*texts, *texts])
            incoming = [message for message in own if message.role is Role.USER]
            assert [message.sequence for message in incoming] == list(range(1, 11))
            assert [
                int(job.content)
                for job in jobs
                if (job.chatbot_id, job.external_user_id) == (session.chatbot_id, customer)
            ] == list(texts)
        to_send = sorted(
            (message for message in messages if message.role is Role.ASSISTANT),
            key=lambda message: message.lane_number or 0,
        )
        assert [(message.lane_number, int(message.content)) for message in to_send] == [(n + 1, n) for n in range(20)]


async def test_one_message_that_cannot_be_processed_fails_alone(database: Database) -> None:
    """Of an unknown session, or without any id: it alone is for the dead letters, the others are stored."""
    process, session = Process(database), await a_session(database)
    batch = [
        received(a_report(session, "A1")),
        received(a_report(session, "A2", sessionId="foreign")),
        received(a_command(session, messageId=None), ""),
        received(a_receipt(session, "A1", sessionId="foreign").model_copy(update={"session_id": "foreign"})),
        received(a_report(session, "A3")),
    ]
    failures = await process._consumer.handle(batch)
    assert [(one, error.code) for one, error in failures] == [
        (batch[1], "unknown_session"),
        (batch[2], "missing_id"),
        (batch[3], "unknown_session"),
    ]
    assert [row.sequence for row in await all_of(database, MessageRow)] == [1, 2]
    assert await all_of(database, ReceiptRow) == []


async def test_receipts_and_their_message_may_come_in_one_batch(database: Database) -> None:
    """Each step has an event with a version that is higher than the one before, and they come in that order."""
    world, session = World(database), await a_session(database)
    command = a_command(session, messageId="m")
    message_id = outgoing_message_id(session.chatbot_id, "m")
    whatsapp_id = whatsapp_message_id(message_id)
    early = a_receipt(session, "OWN", "read")
    steps = [a_receipt(session, whatsapp_id, status) for status in ("failed", "delivered", "delivered", "read")]
    outputs = await world.handle(early, command, *steps, early)
    events: list[Any] = [output.message for output in outputs if hasattr(output.message, "delivery_status")]
    assert [(event.name, event.version) for event in events] == [
        *(("message.failed", 2), ("message.delivered", 3), ("message.read", 4)),
    ]
    [row] = await all_of(database, MessageRow)
    assert (row.delivery_status, row.version, row.told_version) == (D.READ, 4, 1)
    assert [receipt.whatsapp_message_id for receipt in await all_of(database, ReceiptRow)] == ["OWN"]


async def test_the_receipt_of_an_earlier_try_is_not_about_the_next(database: Database) -> None:
    """WhatsApp failed it, it is tried again, and the old receipt comes once more, all in one batch: it waits."""
    world, session = World(database), await a_session(database)
    await world.handle(a_command(session, messageId="m"))
    message_id = outgoing_message_id(session.chatbot_id, "m")
    failure = a_receipt(session, whatsapp_message_id(message_id), "failed", error="no")
    retry = RetryMessage(chatbot_id=session.chatbot_id, message_id=message_id)
    outputs = await world.handle(failure, retry, failure)
    assert [output.message.name for output in outputs] == ["message.failed", "whatsapp-qr-send", "message.queued"]
    [row] = await all_of(database, MessageRow)
    assert (row.delivery_status, row.version, row.lane_number) == (D.PENDING, 3, 2)


# Several at once


async def test_processes_that_race_over_the_same_sessions_lose_and_double_nothing(
    database: Database, other_process: Database
) -> None:
    """Two take batches about the same chatbots, in opposite orders, beside their marks and an outbound consumer."""
    chatbots = [await a_session(database) for _ in range(3)]
    rounds, processes = 6, [Process(database), Process(other_process)]

    async def run(process: Process, *, backwards: bool) -> None:
        marks = Confirmations(process.database)
        for number in range(rounds):
            batch = a_round(chatbots, f"{number}")
            await patiently(partial(process.take, batch[::-1] if backwards else batch))
            for output in process.outputs.take():
                marks.note(output.confirmation)
            await patiently(marks.flush)

    async def send() -> None:
        for session in chatbots * rounds:
            await patiently(partial(other_process.transact, partial(touch, session_id=session.session_id)))

    async with asyncio.timeout(120):
        await asyncio.gather(run(processes[0], backwards=False), run(processes[1], backwards=True), send())
    assert [process.dead for process in processes] == [[], []]
    assert len(await all_of(database, CommandRow)) == rounds * len(chatbots)
    for session in chatbots:
        own = await all_of(database, MessageRow, session_id=session.session_id)
        for role, numbers in (
            (Role.USER, [one.sequence for one in own if one.role is Role.USER]),
            (Role.ASSISTANT, [one.lane_number for one in own if one.role is Role.ASSISTANT]),
        ):
            assert sorted(numbers) == list(range(1, rounds + 1)), role


def a_round(chatbots: Sequence[SessionRow], caller_id: str) -> list[Received]:
    """Return one message of each kind for each chatbot."""
    messages = []
    for session in chatbots:
        message_id = outgoing_message_id(session.chatbot_id, caller_id)
        messages += [
            received(a_report(session, caller_id), "report"),
            received(a_command(session, messageId=caller_id), "send"),
            received(CancelMessage(chatbot_id=session.chatbot_id, message_id=message_id), f"cancel {caller_id}"),
            received(a_receipt(session, whatsapp_message_id(message_id)), "receipt"),
        ]
    return messages


async def patiently(work: Any) -> None:
    """Do it as a consumer does: what was rolled back is tried again."""
    while True:
        try:
            await work()
        except DatabaseUnavailable:
            await asyncio.sleep(0.01)
        else:
            return


async def touch(tx: AsyncSession, session_id: str) -> None:
    """Change a lane and its messages as the outbound consumer does."""
    await lanes.send_round(tx, answers=[], due=[session_id], policy=POLICY)


async def test_marks_lock_as_batches_do(database: Database, other_process: Database) -> None:
    """A command is told again while its confirmation is written: neither waits for what the other one holds."""
    world, session = World(database), await a_session(database)
    await world.handle(a_command(session, messageId="m"))
    [message] = await all_of(database, MessageRow)
    outputs = await world.handle(CancelMessage(chatbot_id=session.chatbot_id, message_id=message.id))
    assert [output.confirmation.table for output in outputs] == [MessageRow, CommandRow]
    marks = Confirmations(other_process)
    for output in outputs:
        marks.note(output.confirmation)

    async def tell_again(tx: AsyncSession) -> asyncio.Task[None]:
        await tx.get_one(MessageRow, message.id, with_for_update=True)
        writing = asyncio.create_task(marks.flush())
        await asyncio.wait([writing], timeout=0.3)  # it waits for our lock
        await tx.execute(update(CommandRow).values(told_version=0))
        return writing

    await (await database.transact(tell_again))
    assert [row.told_version for row in await all_of(database, CommandRow)] == [1]

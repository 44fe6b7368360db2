"""What is left undone in rows, in the running service: relays tell it, the sweeper wakes what sleeps."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.consumers.conversation import ConversationConsumer
from service.domain.identities import outgoing_message_id, output_id
from service.persistence import sessions
from service.persistence.tables import LaneRow, MessageRow
from tests.component.rows import Outputs, a_command, all_of, change, enqueue, handle, receive, received
from tests.integration.singletons import (
    FAST,
    mended,
    mends_nothing,
    redriven,
    relayed,
    rows_by_hand,
    sample,
    session_row,
)
from tests.system import Heard, NewSystem, System, eventually, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import DeliveryStatus


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    async with new_system(request.param, **FAST | {"RECONCILE_PERIOD": "3600"}) as system:
        yield system


@pytest.fixture(scope="module")
async def linked(system: System) -> tuple[UUID, str]:
    """A linked chatbot and its session."""
    return await system.connect()


async def heard_id(heard: Heard, message_id: str) -> Any:
    """Wait for the message with an AMQP id."""

    async def look() -> list[Any]:
        return [message for message in heard.messages if message.message_id == message_id]

    return (await eventually(look))[0]


async def test_a_message_that_was_not_handed_over_is(system: System, linked: tuple[UUID, str]) -> None:
    """A row without its job, as a crash between the two leaves it, gets the job and the events that it always has."""
    jobs, events = await system.jobs(), await system.hear()
    before = await relayed(system, "conversation-consumer")
    async with rows_by_hand(system) as database:
        message = await receive(database, await session_row(database, linked[0]), uuid4().hex)
        job = await heard_id(jobs, output_id(message.id, "job"))
        await heard_id(events, output_id(message.id, "received"))
        await heard_id(events, output_id(message.conversation_id, "started"))
    assert json.loads(job.body)["messageId"] == str(message.id)
    assert job.headers["conversation-sequence"] == message.sequence
    assert await relayed(system, "conversation-consumer") >= before + 3


async def test_a_message_without_its_job_is_sent(system: System, linked: tuple[UUID, str]) -> None:
    """A PENDING row whose job was never published gets it, and goes out."""
    async with rows_by_hand(system) as database:
        command = a_command(await session_row(database, linked[0]), message="without a job")
        await handle(database, command)
    await eventually(
        lambda: system.message(outgoing_message_id(command.chatbot_id, str(command.message_id))),
        lambda found: found.get("deliveryStatus") == "READ",
    )
    assert [entry["message"] for entry in await system.sent(linked[1])].count("without a job") == 1


async def test_a_lane_that_sleeps_is_woken(system: System, linked: tuple[UUID, str]) -> None:
    """A PENDING row whose job is lost with its queue goes out all the same, and is counted: no load may hide it."""
    before = await redriven(system, "pending")
    async with rows_by_hand(system) as database:
        command = a_command(await session_row(database, linked[0]), message="forgotten")
        message_id = outgoing_message_id(command.chatbot_id, str(command.message_id))
        consumer = ConversationConsumer(database, Outputs(), timedelta(hours=1))  # type: ignore[arg-type]

        async def store(tx: AsyncSession) -> None:  # in one transaction: a relay takes what it sees without its job
            await consumer._do_all(tx, batch=[received(command)])
            (await tx.get_one(MessageRow, message_id)).handed_over = True

        await database.transact(store)
    await eventually(lambda: system.message(message_id), lambda found: found.get("deliveryStatus") == "READ")
    await mended(system, "pending", before)


async def test_a_status_that_was_not_announced_is(system: System) -> None:
    """A message that was sent and of which nobody heard is announced, with its command's id."""
    chatbot_id, session_id = await system.connect()
    events = await system.hear()
    await system.control(f"/sessions/{session_id}/drop")  # nobody sends what the test does
    await eventually(lambda: system.status(session_id), lambda status: status != "CONNECTED")
    async with rows_by_hand(system) as database:
        message = await enqueue(database, await session_row(database, chatbot_id))
        at = datetime.now(UTC)
        await change(database, message, delivery_status=DeliveryStatus.SENT, sent_at=at, version=2)
    [event] = await events.arrived(1, "message.sent")
    assert (json.loads(event.body)["messageId"], event.correlation_id) == (str(message.id), "command")
    assert json.loads(event.body)["version"] == 2


async def test_a_session_that_was_not_announced_is(system: System, linked: tuple[UUID, str]) -> None:
    """A session's version of which nobody heard is announced."""
    events = await system.hear()
    async with rows_by_hand(system) as database:
        row = await session_row(database, linked[0])

        async def move(tx: AsyncSession) -> None:
            found = await sessions.session_by_id(tx, row.session_id, lock=True)
            assert found is not None
            sessions.move(tx, found, found.status, wanted=True, caused_by="a crash", reason="a_crash_came")

        await database.transact(move)
    [event] = await events.arrived(1, "session.connected")
    assert (event.correlation_id, json.loads(event.body)["statusReason"]) == ("a crash", "a_crash_came")


async def test_a_message_expires_while_its_session_is_away(system: System) -> None:
    """What nobody can send fails when its time has come, behind one that still waits; that counts as no repair."""
    chatbot_id, session_id = await system.connect()
    await system.post("/disconnect", chatbotId=str(chatbot_id))
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    events = await system.hear("whatsapp-qr.events", "message.failed")
    soon = datetime.now(UTC) + timedelta(seconds=1)
    first = SendMessage(chatbot_id=chatbot_id, to="5491188889999", message="waits")
    second = SendMessage(chatbot_id=chatbot_id, to="5491188889999", message="expires", expires_at=soon)
    await send_by_amqp(system, first, "first")
    await send_by_amqp(system, second, "second")
    [failed] = await events.arrived(1)
    assert (failed.correlation_id, json.loads(failed.body)["errorCode"]) == ("second", "expired")
    assert datetime.now(UTC) >= soon


async def test_a_lane_that_waits_outlives_its_process(system: System) -> None:
    """The outbound consumer is killed while a lane waits for the gateway: the next one finds it in its row."""
    chatbot_id, session_id = await system.connect()
    await system.faults(failureRate=1, failureKind="not_connected")
    try:
        answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="resumed")
        async with rows_by_hand(system) as database:
            await eventually(
                lambda: all_of(database, LaneRow, session_id=session_id),
                lambda rows: any(row.deferrals for row in rows),
            )
        [outbound] = [process for process in system.named("outbound-consumer") if process.alive]
        await outbound.kill()
    finally:
        await system.faults()
    await system.start("outbound-consumer")
    await eventually(
        lambda: system.message(answer.json()["messageId"]), lambda found: found.get("deliveryStatus") == "READ"
    )


async def test_a_service_that_works_mends_nothing(system: System, linked: tuple[UUID, str]) -> None:
    """Traffic that goes well moves no counter, although everything is looked at many times meanwhile."""
    [consumer] = system.named("session-consumer")
    await eventually(lambda: system.status(linked[1]), lambda status: status == "CONNECTED")
    jobs = await system.jobs()

    async def runs() -> float:
        return await sample(consumer, "singleton_job_runs_total", singleton_job="sweeper", outcome="done")

    async def traffic() -> None:
        ran, handed = await runs(), len(jobs.messages)
        for number in range(10):
            report = {"sessionId": linked[1], "from": "5491122223333", "message": "Hola", "timestamp": int(time.time())}
            await system.post("/incoming", **report, messageId=uuid4().hex)
            answer = await system.post("/send", chatbotId=str(linked[0]), to="5491122223333", message=f"well {number}")
            await eventually(
                lambda answer=answer: system.message(answer.json()["messageId"]),
                lambda found: found.get("deliveryStatus") == "READ",
            )
        await jobs.arrived(handed + 10)
        await eventually(runs, lambda now: now > ran + 3)

    counts = {
        "pending": lambda: redriven(system, "pending"),
        **{kind: partial(relayed, system, kind) for kind in ("conversation-consumer", "outbound-consumer")},
    }
    await mends_nothing(counts, traffic)

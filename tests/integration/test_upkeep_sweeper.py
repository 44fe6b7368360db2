"""The sweeper in the running service: each trouble is made, the metric moves, and it is mended."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.domain.identities import output_id
from service.persistence import sessions
from tests.component.rows import enqueue, receive, sent
from tests.integration.upkeep import FAST, mended, mends_nothing, redriven, rows_by_hand, sample, session_row
from tests.servers import Broker
from tests.system import Heard, NewSystem, System, eventually, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage


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
    """A row without its job, as a crash between the two leaves it, gets the job and the event that it always has."""
    jobs, events, before = await system.jobs(), await system.hear(), await redriven(system, "unhanded")
    begun = await redriven(system, "unannounced_conversation")
    async with rows_by_hand(system) as database:
        message = (await receive(database, await session_row(database, linked[0]), uuid4().hex)).message
        [consumer] = system.named("session-consumer")
        assert await sample(consumer, "sessions", status="CONNECTED") >= 0
        job = await heard_id(jobs, output_id(message.id, "job"))
        await heard_id(events, output_id(message.id, "received"))
        await heard_id(events, output_id(message.conversation_id, "started"))
    assert json.loads(job.body)["messageId"] == str(message.id)
    assert job.headers["conversation-sequence"] == message.sequence
    await mended(system, "unhanded", before)
    await mended(system, "unannounced_conversation", begun)


async def test_a_message_without_a_doorbell_is_sent(system: System, linked: tuple[UUID, str]) -> None:
    """A PENDING row whose job was never published goes out all the same."""
    before = await redriven(system, "pending")
    async with rows_by_hand(system) as database:
        message = await enqueue(database, await session_row(database, linked[0]), message="forgotten")
    await eventually(lambda: system.message(message.id), lambda found: found.get("deliveryStatus") == "READ")
    await mended(system, "pending", before)
    assert [entry["message"] for entry in await system.sent(linked[1])].count("forgotten") == 1


async def test_a_status_that_was_not_announced_is(system: System) -> None:
    """A message that was sent and of which nobody heard is announced, with its command's id."""
    chatbot_id, session_id = await system.connect()
    events, before = await system.hear(), await redriven(system, "unannounced_status")
    await system.control(f"/sessions/{session_id}/drop")  # nobody sends what the test does
    await eventually(lambda: system.status(session_id), lambda status: status != "CONNECTED")
    async with rows_by_hand(system) as database:
        message = await sent(database, await enqueue(database, await session_row(database, chatbot_id)))
    [event] = await events.arrived(1, "message.sent")
    assert (json.loads(event.body)["messageId"], event.correlation_id) == (str(message.id), "command")
    await mended(system, "unannounced_status", before)


async def test_a_session_that_was_not_announced_is(system: System, linked: tuple[UUID, str]) -> None:
    """A session's version of which nobody heard is announced."""
    events, before = await system.hear(), await redriven(system, "unannounced_session")
    async with rows_by_hand(system) as database:
        row = await session_row(database, linked[0])

        async def move(tx: AsyncSession) -> None:
            found = await sessions.session_by_id(tx, row.session_id, lock=True)
            assert found is not None
            sessions.move(found, found.status, wanted=True, reason="a_crash_came")

        await database.transact(move)
    [event] = await events.arrived(1, "session.connected")
    assert json.loads(event.body)["statusReason"] == "a_crash_came"
    await mended(system, "unannounced_session", before)


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


async def unacknowledged(broker: Broker, system: System, name: str) -> int:
    """Return how many messages of a queue and its partitions somebody has and has not acknowledged."""
    vhost = system.amqp_url.rpartition("/")[2]
    listed = await broker.ctl(
        "list_queues", "--quiet", "--no-table-headers", "-p", vhost, "name", "messages_unacknowledged"
    )
    counts = (line.split() for line in listed.splitlines())
    return sum(int(count) for queue, count in counts if queue.split(".")[0] == name)


async def test_a_lane_whose_timer_died_is_resumed(system: System, shared_broker: Broker) -> None:
    """The outbound consumer is killed while a lane waits for the gateway: its appointment is kept by others."""
    chatbot_id, _ = await system.connect()
    before = await redriven(system, "drain")
    await system.faults(failureRate=1, failureKind="not_connected")
    try:
        answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="resumed")
        async with rows_by_hand(system) as database:
            await eventually(
                lambda: session_row(database, chatbot_id), lambda row: row.drain_at and row.drain_at > datetime.now(UTC)
            )
            [outbound] = [process for process in system.named("outbound-consumer") if process.alive]
            # Its job has been given back, so that nothing but the row knows of the appointment.
            await eventually(
                lambda: unacknowledged(shared_broker, system, "whatsapp-qr-send"), lambda count: count == 0
            )
            await outbound.kill()
            assert (await session_row(database, chatbot_id)).drain_at is not None
    finally:
        await system.faults()
    await system.start("outbound-consumer")
    await eventually(
        lambda: system.message(answer.json()["messageId"]), lambda found: found.get("deliveryStatus") == "READ"
    )
    await mended(system, "drain", before)  # or its job was there, and nothing was to be mended


async def test_a_service_that_works_mends_nothing(system: System, linked: tuple[UUID, str]) -> None:
    """Traffic that goes well moves no counter, although everything is looked at many times meanwhile."""
    kinds = ("unhanded", "unannounced_status", "unannounced_session", "unannounced_conversation", "pending", "drain")
    [consumer] = system.named("session-consumer")
    await eventually(lambda: system.status(linked[1]), lambda status: status == "CONNECTED")
    jobs = await system.jobs()

    async def runs() -> float:
        return await sample(consumer, "duty_runs_total", duty="sweeper", outcome="done")

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

    await mends_nothing(system, kinds, traffic)

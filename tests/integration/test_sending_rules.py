"""When a message is sent and when it is not: parking, expiry, pacing, cancelling, other numbers, early receipts.

Here with real processes; the same rules step by step are in tests/component (outbound consumer, lanes, sweeping).
"""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.operator import operate
from tests.system import NewSystem, System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import Command, SendMessage

CUSTOMER = "5491112345678"
RATE, BURST = 4, 3
PATIENT = {"GATEWAY_TIMEOUT": "30", "PREFETCH": "16"}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service with a pace that can be seen and an attentive sweeper."""
    settings = {"SEND_RATE": str(RATE), "SEND_BURST": str(BURST), "SWEEP_PERIOD": "0.5", **PATIENT}
    async with new_system(request.param, **settings) as system:
        yield system


async def send(system: System, chatbot_id: UUID, *texts: str, **fields: Any) -> list[dict[str, Any]]:
    """Send texts by AMQP, wait until they are stored, and return them as GET shows them."""
    for text in texts:
        command = SendMessage(chatbot_id=chatbot_id, to=CUSTOMER, message=text, **fields)
        await send_by_amqp(system, command, str(uuid4()))

    async def stored() -> list[dict[str, Any]]:
        rows = await messages(system, chatbot_id)
        return [row for row in rows if row["content"] in texts]

    return await eventually(stored, lambda rows: len(rows) == len(texts))


async def messages(system: System, chatbot_id: UUID) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for conversation in (await system.get("/conversations", chatbotId=str(chatbot_id))).json()["data"]:
        rows += (await system.get(f"/conversations/{conversation['id']}/messages")).json()["data"]
    return rows


async def reached(system: System, message: dict[str, Any], status: str) -> dict[str, Any]:
    """Wait until a message has a status."""
    return await eventually(lambda: system.message(message["id"]), lambda row: row["deliveryStatus"] == status)


async def texts_sent(system: System, session_id: str, count: int) -> list[str]:
    found = await eventually(lambda: system.sent(session_id), lambda sent: len(sent) >= count)
    return [message["message"] for message in found]


async def parked(system: System, *, phone: str = "5491100000000") -> tuple[UUID, str]:
    """Link a chatbot and lose its connection."""
    chatbot_id, session_id = await system.connect(phone=phone)
    await system.control(f"/sessions/{session_id}/drop")
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    return chatbot_id, session_id


async def come_back(system: System, session_id: str) -> None:
    await system.control(f"/sessions/{session_id}/reconnect")
    await eventually(lambda: system.status(session_id), lambda status: status == "CONNECTED")


async def delete(system: System, message_id: str) -> Any:
    return await system.http.delete(f"{system.api}/messages/{message_id}")


async def test_what_is_parked_waits_and_may_expire_or_be_cancelled(system: System) -> None:
    """Of four messages that wait one expires at its own time and one is cancelled; the others go out in order."""
    chatbot_id, session_id = await parked(system)
    events = await system.hear("whatsapp-qr.events", "message.failed", "message.cancelled")
    soon = datetime.now(UTC) + timedelta(seconds=2)
    first, expiring = await send(system, chatbot_id, "first") + await send(system, chatbot_id, "e", expires_at=soon)
    cancelled, last = await send(system, chatbot_id, "cancelled", "last")
    [session_consumer] = system.named("session-consumer")

    async def oldest() -> float:
        return await session_consumer.metric(system.http, "whatsapp_qr_oldest_pending_seconds")

    assert await eventually(oldest) > 0
    answer = await delete(system, cancelled["id"])
    assert (answer.status_code, answer.json()["data"]["errorCode"]) == (200, "cancelled")
    row = await reached(system, expiring, "FAILED")
    assert row["errorCode"] == "expired"
    assert datetime.fromisoformat(row["failedAt"]) >= soon - timedelta(seconds=0.5)

    async def told() -> list[tuple[str | None, str]]:
        by_id = {event.message_id: (event.type, json.loads(event.body)["messageId"]) for event in events.messages}
        return sorted(by_id.values(), key=str)

    failed = [("message.failed", expiring["id"]), ("message.failed", cancelled["id"])]
    assert await eventually(told, lambda found: len(found) >= 3) == sorted(
        [*failed, ("message.cancelled", cancelled["id"])], key=str
    )
    assert await system.sent(session_id) == []
    await come_back(system, session_id)
    assert await texts_sent(system, session_id, 2) == ["first", "last"]
    for message in (first, last):
        await reached(system, message, "READ")
    refused = await delete(system, first["id"])
    assert (refused.status_code, refused.json()["code"]) == (409, "not_pending")


async def test_the_pace_is_kept_and_not_a_machines(system: System) -> None:
    """BURST at once, then RATE per second at most, with pauses of differing length."""
    chatbot_id, session_id = await system.connect()
    count = BURST + 8
    asked_at = time.time()
    await send(system, chatbot_id, *(f"m{number}" for number in range(count)))
    assert await texts_sent(system, session_id, count) == [f"m{number}" for number in range(count)]
    at = [datetime.fromisoformat(message["sentAt"]).timestamp() for message in await system.sent(session_id)]
    # Not from the first one on: that may have been noted late.
    assert at[-1] - asked_at >= (count - BURST) / RATE
    pauses = [after - before for before, after in pairwise(at[BURST:])]
    assert max(pauses) - min(pauses) > 0.005
    [outbound] = system.named("outbound-consumer")
    assert await outbound.metric(system.http, "whatsapp_qr_sends_total", outcome="sent") >= count


async def test_cancel_and_retry_by_amqp(system: System) -> None:
    """Each command ends in one event with its id; a repetition has no second effect."""
    chatbot_id, session_id = await parked(system)
    [message] = await send(system, chatbot_id, "after all")
    events = await system.hear("whatsapp-qr.events", "message.*", "command.rejected")

    async def command(name: str, command_id: str) -> str:
        body = {"chatbotId": str(chatbot_id), "messageId": message["id"]}
        kind = next(kind for kind in _kinds(Command) if getattr(kind, "name", "") == name)
        await send_by_amqp(system, kind.model_validate(body), command_id)

        async def ended() -> list[Any]:
            return [event for event in events.messages if event.correlation_id == command_id]

        return str((await eventually(ended))[0].type)

    assert await command("message.retry", "r1") == "command.rejected"
    assert await command("message.cancel", "c1") == "message.cancelled"
    assert await command("message.cancel", "c1") == "message.cancelled"
    assert await command("message.retry", "r2") == "message.queued"
    assert await command("message.retry", "r2") == "message.queued"
    assert (await system.message(message["id"]))["deliveryStatus"] == "PENDING"
    await come_back(system, session_id)
    await reached(system, message, "READ")
    assert await command("message.cancel", "c2") == "command.rejected"
    assert await texts_sent(system, session_id, 1) == ["after all"]


def _kinds(base: type[Command]) -> list[type[Command]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _kinds(child))]


async def test_an_operator_cancels_and_retries(system: System) -> None:
    """By the beginning of an id, with an exit status that says whether it was done."""
    chatbot_id, session_id = await parked(system)
    [message] = await send(system, chatbot_id, "by hand")
    done = await operate(system, "messages", "cancel", message["id"])
    assert (done.status, done.out) == (0, f"{message['id']} is cancelled\n")
    done = await operate(system, "messages", "retry", message["id"][:13])
    assert (done.status, done.out) == (0, f"{message['id']} waits to be sent again\n")
    refused = await operate(system, "messages", "retry", message["id"])
    assert (refused.status, "only a FAILED message can be retried" in refused.error) == (1, True)
    unknown = await operate(system, "messages", "cancel", "00000000")
    assert (unknown.status, "nothing has the id" in unknown.error) == (1, True)
    await come_back(system, session_id)
    assert await texts_sent(system, session_id, 1) == ["by hand"]


async def test_another_number_fails_what_waited(system: System) -> None:
    """It fails as number_changed; by a retry it goes out from the new number, once."""
    chatbot_id, session_id = await system.connect(phone="5491100000001")
    await system.control(f"/sessions/{session_id}/unlink")
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    [message] = await send(system, chatbot_id, "For whom?")
    await system.post("/init", chatbotId=str(chatbot_id))
    await system.scan(session_id, "5491100000002")
    assert (await reached(system, message, "FAILED"))["errorCode"] == "number_changed"
    assert await system.sent(session_id) == []
    assert (await operate(system, "messages", "retry", message["id"])).status == 0
    assert await texts_sent(system, session_id, 1) == ["For whom?"]
    await reached(system, message, "READ")


@pytest.mark.parametrize("own_ids", [False, True])
async def test_receipts_may_come_before_the_answer(system: System, *, own_ids: bool) -> None:
    """Receipts that overtake the gateway's answer count, also under an id that only the answer makes known."""
    chatbot_id, session_id = await system.connect()
    reports = await system.hear("whatsapp-qr.gateway", "gateway.receipt.#")
    await system.faults(answerLatency=2, ownIds=own_ids)
    try:
        [message] = await send(system, chatbot_id, "early")
        await reports.arrived(2)
        before = await system.message(message["id"])
        if own_ids:  # the answer may have come meanwhile
            assert before["deliveryStatus"] == "PENDING" or before["whatsappMessageId"] != message["whatsappMessageId"]
        row = await reached(system, message, "READ")
    finally:
        await system.faults()
    [sent] = await system.sent(session_id)
    answered = await eventually(
        lambda: system.message(message["id"]), lambda found: found["whatsappMessageId"] == sent["messageId"]
    )
    assert (answered["deliveryStatus"], row["attempts"]) == ("READ", 0)
    assert answered["deliveredAt"]
    assert answered["sentAt"]
    # What the receipts have raised is not sent again.
    assert await texts_sent(system, session_id, 1) == ["early"]


async def test_a_gateway_that_is_away_uses_up_the_time(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """SEND_EXPIRY fails what no gateway took, without an attempt; what may wait longer goes out once it is back."""
    brief = {"SEND_EXPIRY": "4", "GATEWAY_TIMEOUT": "3", "SWEEP_PERIOD": "0.5"}
    async with running(clean_broker, sqlite_database, tmp_path, **brief) as system:
        chatbot_id, session_id = await system.connect()
        [simulator] = system.named("simulator")
        await simulator.kill()
        began = time.monotonic()
        [old] = await send(system, chatbot_id, "old")
        row = await reached(system, old, "FAILED")
        assert time.monotonic() - began >= 3.5
        assert (row["errorCode"], row["attempts"]) == ("expired", 0)
        later = datetime.now(UTC) + timedelta(minutes=5)
        [new] = await send(system, chatbot_id, "new", expires_at=later)
        await simulator.start()
        await reached(system, new, "READ")
        assert await texts_sent(system, session_id, 1) == ["new"]
        [outbound] = system.named("outbound-consumer")
        assert await outbound.metric(system.http, "whatsapp_qr_sends_total", outcome="retry") >= 1


async def test_a_restart_does_not_forget_the_pace(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Killed again and again, the outbound consumer sends no more than the burst and what the rate allows since."""
    burst, slow = 4, {"SEND_RATE": "0.5", "SEND_BURST": "4", "SEND_JITTER": "0"}
    async with running(clean_broker, sqlite_database, tmp_path, **slow) as system:
        chatbot_id, session_id = await system.connect()
        began = time.monotonic()
        await send(system, chatbot_id, *map(str, range(30)))
        for _ in range(4):
            before = len(await system.sent(session_id))
            await eventually(lambda: system.sent(session_id), lambda sent, before=before: len(sent) > before)
            [outbound] = [one for one in system.named("outbound-consumer") if one.alive]
            await outbound.kill()
            await system.start("outbound-consumer")
        sent = await system.sent(session_id)
        assert len(sent) <= burst + 0.5 * (time.monotonic() - began)
        assert [one["message"] for one in sent] == [str(number) for number in range(len(sent))]

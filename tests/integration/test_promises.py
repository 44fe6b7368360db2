"""What users are promised when many things happen at once, on one running service per database."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.system import Heard, NewSystem, System, eventually, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service with two outbound processes and no pacing."""
    settings = {"SEND_RATE": "1000", "SEND_BURST": "1000", "GATEWAY_TIMEOUT": "4", "SEND_BACKOFF": "3"}
    async with new_system(request.param, extra=("outbound-consumer",), **settings) as system:
        yield system


def an_incoming(session_id: str, **overrides: Any) -> dict[str, Any]:
    """A customer's message as the gateway posts it."""
    return {
        "sessionId": session_id,
        "from": "5491122223333",
        "message": "Hola",
        "messageId": f"WA{uuid4().hex}",
        "timestamp": int(time.time()),
    } | overrides


async def rows(system: System, chatbot_id: UUID) -> list[dict[str, Any]]:
    """All messages of a chatbot's conversations."""
    page = (await system.get("/conversations", chatbotId=str(chatbot_id))).json()
    found = []
    for conversation in page["data"]:
        answer = await system.get(f"/conversations/{conversation['id']}/messages", limit=200)
        found += answer.json()["data"]
    return found


async def test_racing_first_messages_make_one_conversation(system: System) -> None:
    """64 concurrent first messages of one new customer make one conversation with 64 messages and 64 jobs."""
    chatbot_id, session_id = await system.connect()
    jobs = await system.jobs()
    answers = await asyncio.gather(*(system.post("/incoming", **an_incoming(session_id)) for _ in range(64)))
    assert {answer.status_code for answer in answers} == {200}

    async def own_jobs() -> list[Any]:
        return [job for job in jobs.messages if json.loads(job.body)["chatbotId"] == str(chatbot_id)]

    handed = await eventually(own_jobs, lambda found: len({job.message_id for job in found}) >= 64)
    assert len({job.message_id for job in handed}) == 64
    # One may come twice, under its id, where its confirmation was late.
    numbers = {job.message_id: job.headers["conversation-sequence"] for job in handed}
    assert list(numbers.values()) == list(range(1, 65))
    assert len((await system.get("/conversations", chatbotId=str(chatbot_id))).json()["data"]) == 1
    assert len(await rows(system, chatbot_id)) == 64


async def test_a_message_reported_30_times_is_stored_once(system: System) -> None:
    """The same incoming message 30 times at once makes one row, and jobs of one id only."""
    chatbot_id, session_id = await system.connect()
    jobs = await system.jobs()
    same, last = an_incoming(session_id), an_incoming(session_id, message="the last")
    await asyncio.gather(*(system.post("/incoming", **same) for _ in range(30)))
    await system.post("/incoming", **last)

    async def contents() -> list[str]:
        return [row["content"] for row in await rows(system, chatbot_id)]

    assert await eventually(contents, lambda found: "the last" in found) == ["Hola", "the last"]

    async def handed() -> dict[str | None, str]:
        own = [(job.message_id, json.loads(job.body)) for job in jobs.messages]
        return {job_id: body["content"] for job_id, body in own if body["chatbotId"] == str(chatbot_id)}

    found = await eventually(handed, lambda found: "the last" in found.values())
    assert list(found.values()) == ["Hola", "the last"]


async def test_racing_first_inits_make_one_session(system: System) -> None:
    """8 racing first /init give one sessionId and no 5xx."""
    chatbot_id = str(uuid4())
    answers = await asyncio.gather(*(system.post("/init", chatbotId=chatbot_id) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["sessionId"] for answer in answers}) == 1


@pytest.mark.one_database("postgres")
async def test_200_messages_to_one_recipient_arrive_in_order(system: System) -> None:
    """With two outbound processes 200 messages to one recipient arrive once each, in the order of their commands."""
    chatbot_id, session_id = await system.connect()
    texts = [f"message {number}" for number in range(200)]
    for text in texts:
        command = SendMessage(chatbot_id=chatbot_id, to="5491144445555", message=text)
        await send_by_amqp(system, command, str(uuid4()))
    sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= 200)
    assert [message["message"] for message in sent] == texts


@pytest.mark.one_database("postgres")
async def test_slow_sessions_do_not_wait_for_each_other(system: System) -> None:
    """64 sessions with 1 s gateway latency are sent to side by side, not one after another."""
    linked = await asyncio.gather(*(system.connect() for _ in range(64)))
    await system.faults(latency=1)
    started = time.monotonic()
    try:
        answers = await asyncio.gather(
            *(system.post("/send", chatbotId=str(chatbot), to="5491166667777", message="Hi") for chatbot, _ in linked)
        )
        assert {answer.status_code for answer in answers} == {202}
        for _, session_id in linked:
            await eventually(lambda session_id=session_id: system.sent(session_id))
    finally:
        await system.faults()
    in_a_row = 64 * 1
    assert time.monotonic() - started < in_a_row


async def test_init_leaves_a_connected_session_connected(system: System) -> None:
    """/init on a CONNECTED session answers CONNECTED, and a late `qr` does not reopen it."""
    chatbot_id, session_id = await system.connect()
    answer = await system.post("/init", chatbotId=str(chatbot_id))
    assert answer.json() == {"success": True, "sessionId": session_id, "status": "CONNECTED"}
    events = await system.hear("whatsapp-qr.events", "session.#")

    async def own() -> set[str | None]:
        return {event.type for event in events.messages if str(chatbot_id) in event.body.decode()}

    late = {"type": "qr", "sessionId": session_id, "data": {"qrCode": "data:image/png;base64,AAAA"}}
    assert (await system.post("/webhook", **late)).status_code == 200
    # The next command of the same session is handled after the late report.
    answer = await system.post("/init", chatbotId=str(chatbot_id))
    assert answer.json()["status"] == "CONNECTED"
    assert (await system.get(f"/qr-code/{session_id}")).status_code == 404
    assert await eventually(own) == {"session.connected"}


async def test_a_qr_code_before_init_has_answered_is_kept(system: System) -> None:
    """A QR webhook that comes while the gateway has not answered /init yet is not lost."""
    await system.faults(initLatency=1.5)
    gateway = await system.hear("whatsapp-qr.gateway", "gateway.qr.#")
    try:
        early = [await _overtakes(system, gateway) for _ in range(3)]
    finally:
        await system.faults()
    assert any(early), "every time the machine was too slow for it"


async def _overtakes(system: System, gateway: Heard) -> bool:
    """Link a chatbot; say whether its QR code came before the gateway's answer, and check that it is kept."""
    chatbot_id = str(uuid4())
    init = asyncio.create_task(system.post("/init", chatbotId=chatbot_id))

    async def reported() -> bool:
        return any(chatbot_id in report.body.decode() for report in gateway.messages)

    await eventually(reported)
    early = not init.done()
    session_id = (await init).json()["sessionId"]
    await eventually(lambda: system.status(session_id), lambda status: status == "QR_READY")
    await system.post("/disconnect", chatbotId=chatbot_id)
    return early


async def test_sends_wait_for_the_session_to_come_back(system: System) -> None:
    """10 messages queued while the session is down go out, in order, once it is back; none is refused or lost."""
    chatbot_id, session_id = await system.connect()
    await system.control(f"/sessions/{session_id}/drop")
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    texts = [f"queued {number}" for number in range(10)]
    for text in texts:
        command = SendMessage(chatbot_id=chatbot_id, to="5491188889999", message=text)
        await send_by_amqp(system, command, str(uuid4()))

    async def waiting() -> Counter[str]:
        return Counter(row["deliveryStatus"] for row in await rows(system, chatbot_id))

    await eventually(waiting, lambda found: found == {"PENDING": 10})
    assert await system.sent(session_id) == []
    await system.control(f"/sessions/{session_id}/reconnect")
    sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= 10)
    assert [message["message"] for message in sent] == texts
    await eventually(waiting, lambda found: found == {"READ": 10})


async def test_the_same_idempotency_key_sends_once(system: System) -> None:
    """The same Idempotency-Key with the same body sends once; another body is refused; without a key each is sent."""
    chatbot_id, session_id = await system.connect()
    body = {"chatbotId": str(chatbot_id), "to": "+54 9 11 0000-1111", "message": "Once"}
    key = {"Idempotency-Key": "order 1"}
    answers = await asyncio.gather(*(system.http.post(f"{system.api}/send", json=body, headers=key) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    (message_id,) = {answer.json()["messageId"] for answer in answers}
    await eventually(lambda: system.message(message_id), lambda found: found.get("deliveryStatus") == "READ")
    assert len(await system.sent(session_id)) == 1
    other = await system.http.post(f"{system.api}/send", json=body | {"message": "Twice"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "id_reused")
    without = [await system.http.post(f"{system.api}/send", json=body) for _ in range(2)]
    assert len({message_id, *(answer.json()["messageId"] for answer in without)}) == 3
    await eventually(lambda: system.sent(session_id), lambda found: len(found) == 3)


@pytest.mark.one_database("postgres")
@pytest.mark.parametrize("kind", ["timeout_after_accept", "drop_after_accept"])
async def test_an_unknown_outcome_is_tried_again_under_the_same_id(system: System, kind: str) -> None:
    """A gateway that sends and does not say so is asked again under the same WhatsApp id: one message."""
    chatbot_id, session_id = await system.connect()
    await system.faults(failureRate=1, failureKind=kind, receipts=False)
    try:
        answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="Once")
        message_id = answer.json()["messageId"]
        await eventually(lambda: system.sent(session_id))  # it was taken; now no attempt may be left out
    finally:
        await system.faults()
    found = await eventually(lambda: system.message(message_id), lambda found: found.get("deliveryStatus") == "SENT")
    assert found["attempts"] >= 1
    assert len(await system.sent(session_id)) == 1


@pytest.mark.one_database("sqlite")
async def test_three_unknown_outcomes_fail_the_message(system: System) -> None:
    """After three attempts whose outcome is unknown the message fails as outcome_unknown and the lane goes on."""
    chatbot_id, session_id = await system.connect()
    await system.faults(failureRate=1, failureKind="error", receipts=False)
    try:
        answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="Never")
        message_id = answer.json()["messageId"]
        found = await eventually(
            lambda: system.message(message_id), lambda found: found.get("deliveryStatus") == "FAILED"
        )
    finally:
        await system.faults()
    assert (found["errorCode"], found["attempts"]) == ("outcome_unknown", 3)
    answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="The next")
    await eventually(
        lambda: system.message(answer.json()["messageId"]), lambda found: found.get("deliveryStatus") == "READ"
    )
    assert [message["message"] for message in await system.sent(session_id)] == ["The next"]


async def test_a_refused_message_fails_at_once_and_the_next_goes_out(system: System) -> None:
    """A number that is not on WhatsApp fails its message with the gateway's code; the lane goes on."""
    chatbot_id, session_id = await system.connect()
    await system.faults(notOnWhatsapp=["5490000000000"])
    try:
        refused = await system.post("/send", chatbotId=str(chatbot_id), to="5490000000000", message="Nobody")
        good = await system.post("/send", chatbotId=str(chatbot_id), to="5491155556666", message="Somebody")
        found = await eventually(
            lambda: system.message(refused.json()["messageId"]), lambda row: row.get("deliveryStatus") == "FAILED"
        )
        assert found["errorCode"] == "not_on_whatsapp"
        await eventually(
            lambda: system.message(good.json()["messageId"]), lambda row: row.get("deliveryStatus") == "READ"
        )
    finally:
        await system.faults()
    assert [message["message"] for message in await system.sent(session_id)] == ["Somebody"]


async def test_another_number_fails_what_waited(system: System) -> None:
    """Messages that waited for a session fail as number_changed when it is linked to another number."""
    chatbot_id, session_id = await system.connect(phone="5491100000001")
    await system.control(f"/sessions/{session_id}/unlink")
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    command_id = str(uuid4())
    await send_by_amqp(system, SendMessage(chatbot_id=chatbot_id, to="5491155556666", message="For whom?"), command_id)
    events = await system.hear("whatsapp-qr.events", "message.failed")
    await eventually(lambda: rows(system, chatbot_id))
    await system.post("/init", chatbotId=str(chatbot_id))
    await system.scan(session_id, "5491100000002")
    (failed,) = await events.arrived(1)
    assert json.loads(failed.body)["errorCode"] == "number_changed"
    assert failed.correlation_id == command_id
    assert await system.sent(session_id) == []


async def test_chatbots_are_registered_and_removed(system: System) -> None:
    """PUT is idempotent; DELETE ends the link, keeps the conversations, and the session is then not found."""
    chatbot_id, session_id = await system.connect()
    for _ in range(2):
        assert (await system.http.put(f"{system.api}/chatbots/{chatbot_id}")).status_code == 200
    assert (await system.http.delete(f"{system.api}/chatbots/{chatbot_id}")).status_code == 200
    assert (await system.get(f"/status/{session_id}")).status_code == 404
    assert (await system.get(f"/session/{chatbot_id}")).status_code == 404
    assert (await system.http.delete(f"{system.api}/chatbots/{chatbot_id}")).status_code == 200

"""What customers write, numbers, QR codes and keys go through every path, and into no log, trace or metric."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from service.domain.identities import outgoing_message_id
from tests.amqp import Amqp
from tests.collector import Collector, collecting
from tests.operator import listed, operate
from tests.system import NewSystem, System, eventually
from whatsapp_qr_contracts.message import GATEWAY

TEXT = "Nobody-may-log-this-text"
METADATA = "Nobody-may-log-this-metadata"
NAME = "Nobody-may-log-this-name"
QR_CODE = "Nobody-may-log-this-qr-code"
REASON = "Nobody-may-log-this-reason"
WRONG_KEY = "Nobody-may-log-this-wrong-key"
API_KEY = "Nobody-may-log-this-api-key"
TOKEN = "Nobody-may-log-this-token"  # noqa: S105  # made for this test
SECRET = "whsec_" + "Tm9ib2R5LW1heS1sb2ctdGhpcy1zZWNyZXQh" * 2
HASH_KEY = "Nobody-may-log-this-hash-key"
POISON = f"{TEXT}-that-the-database-refuses"
CUSTOMER, ACCOUNT, STRANGER, NOT_THERE, ODD_ID = (f"549988770{number:04}" for number in range(5))
MARKS = ("Nobody-may-log", SECRET[6:], CUSTOMER[3:], ACCOUNT[3:], STRANGER[3:], NOT_THERE[3:], ODD_ID[3:])

SETTINGS = {
    "API_KEYS": API_KEY,
    "WEBHOOK_TOKEN": TOKEN,
    "WEBHOOK_SECRET": SECRET,
    "LOG_HASH_KEY": HASH_KEY,
    "LOG_LEVEL": "debug",
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
    "SEND_BACKOFF": "4",
    "SWEEP_PERIOD": "1",
    "RECONCILE_PERIOD": "1",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
}


@dataclass
class Outputs:
    """What the service told while the marked values went through it."""

    logs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    collector: Collector = field(default_factory=lambda: Collector(0))
    qr_code: str = ""

    def lines(self) -> list[dict[str, Any]]:
        """All lines of all logs."""
        return [json.loads(line) for log in self.logs.values() for line in log.splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        """All lines of one event."""
        return [line for line in self.lines() if line["event"] == event]


@pytest.fixture(scope="module")
async def told(new_system: NewSystem) -> AsyncIterator[Outputs]:
    """Runs everything through a service whose logs are at their most talkative."""
    with collecting() as collector:
        told = Outputs(collector=collector)
        async with new_system("postgres", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SETTINGS) as system:
            chatbot_id, session_id = await normal(system, told)
            await refused(system, chatbot_id, session_id)
            await dead(system, chatbot_id)
            await mended(system, chatbot_id, session_id)
            for process in system.processes:
                if process.name not in {"migrate", "simulator"}:
                    told.metrics[process.name] = (await system.http.get(f"{process.url}/metrics")).text
            await broken(system, session_id)
        told.logs = {process.name: process.log() for process in system.processes}
        yield told


async def callback(system: System, path: str, body: Any, token: str = TOKEN) -> int:
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"authorization": f"Bearer {token}", "x-api-key": ""}
    return (await system.http.post(f"{system.api}{path}", content=content, headers=headers)).status_code


async def normal(system: System, told: Outputs) -> tuple[UUID, str]:
    """A link, a customer's message, an answer with its receipts; a QR code of the gateway and one of ours."""
    chatbot_id = UUID(int=0x5499)
    session_id = (await system.post("/init", chatbotId=str(chatbot_id))).json()["sessionId"]
    await eventually(lambda: system.status(session_id), lambda status: status == "QR_READY")
    told.qr_code = (await system.get(f"/qr-code/{session_id}")).json()["qrCode"]
    qr = {"type": "qr", "sessionId": session_id, "data": {"qrCode": QR_CODE}}
    assert await callback(system, "/webhook", qr) == 200
    await system.scan(session_id, ACCOUNT)
    sender = {"from": f"{CUSTOMER}:7@s.whatsapp.net", "message": TEXT, "pushName": NAME}
    await system.control(f"/sessions/{session_id}/customers", **sender)
    await eventually(lambda: conversations(system, chatbot_id), lambda found: len(found) == 1)
    await sent(system, chatbot_id, "READ")
    return chatbot_id, session_id


async def conversations(system: System, chatbot_id: UUID) -> list[Any]:
    return (await system.get("/conversations", chatbotId=str(chatbot_id))).json()["data"]


async def sent(system: System, chatbot_id: UUID, until: str, to: str = CUSTOMER) -> str:
    body = {"chatbotId": str(chatbot_id), "to": to, "message": TEXT, "metadata": {"note": METADATA}}
    answer = await system.post("/send", **body)
    assert answer.status_code == 202, answer.text
    message_id = str(answer.json()["messageId"])
    await eventually(lambda: system.message(message_id), lambda seen: seen.get("deliveryStatus") == until)
    return message_id


async def refused(system: System, chatbot_id: UUID, session_id: str) -> None:
    """By the guard, by the validation, by the gateway, whose error repeats the number."""
    assert await callback(system, "/webhook", {}, token=WRONG_KEY) == 401
    assert (await system.http.get(f"{system.api}/conversations", headers={"x-api-key": WRONG_KEY})).status_code == 401
    body = {"chatbotId": str(chatbot_id), "to": TEXT, "message": [TEXT], "metadata": METADATA}
    assert (await system.post("/send", **body)).status_code == 400
    for path in (f"/status/{STRANGER}", f"/qr-code/{STRANGER}", f"/session/{STRANGER}", f"/{STRANGER}/{TEXT}"):
        assert (await system.get(path)).status_code in {400, 404}
    await system.faults(notOnWhatsapp=[NOT_THERE])
    await sent(system, chatbot_id, "FAILED", NOT_THERE)
    await system.faults(failureRate=1, failureKind="error")
    body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": TEXT}
    message_id = (await system.post("/send", **body)).json()["messageId"]

    async def tried() -> float:
        return await system.named("outbound-consumer")[0].metric(
            system.http, "whatsapp_qr_sends_total", outcome="retry"
        )

    await eventually(tried)
    await system.faults()
    await eventually(lambda: system.message(message_id), lambda seen: seen["deliveryStatus"] == "READ")
    assert await system.status(session_id) == "CONNECTED"


async def dead(system: System, chatbot_id: UUID) -> None:
    """One dead letter of each kind; one dies of a database error that shows its whole row."""
    connection = await asyncpg.connect(system.database_url.replace("+asyncpg", ""))
    await connection.execute(f"ALTER TABLE messages ADD CONSTRAINT poison CHECK (content <> '{POISON}')")
    await connection.close()
    body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": TEXT, "metadata": {"note": METADATA}}
    stranger = {
        "sessionId": STRANGER,
        "from": STRANGER,
        "message": TEXT,
        "messageId": ODD_ID,
        "timestamp": 1_767_268_800,
    }
    bodies = [json.dumps(one).encode() for one in (body, body | {"to": TEXT}, stranger, body | {"message": POISON})]
    of = {"type": "message.send", "message_id": ODD_ID, "correlation_id": CUSTOMER}
    async with Amqp(system.amqp_url) as amqp:
        await amqp.publish(bodies[0], **of)  # this one is good
        await amqp.publish(f'{{"message": "{TEXT}'.encode(), **of)
        await amqp.publish(bodies[1], **of)
        await amqp.publish(bodies[0], **of | {"type": TEXT})
        await amqp.publish(bodies[0], TEXT, **of | {"message_id": f"{ODD_ID} nowhere"})
        await amqp.publish(bodies[0], TEXT, "whatsapp-qr.dead-letters", headers={"reason": TEXT}, **of)
        await amqp.publish(bodies[0], type="message.send")
        await amqp.publish(bodies[2], "gateway.message.0", GATEWAY, **of | {"type": "gateway.message"})
        await amqp.publish(bodies[3], **of | {"message_id": "poison"})
    assert await callback(system, "/webhook", f'{{"type": "{TEXT}", "sessionId": "{STRANGER}"') == 400
    assert await callback(system, "/incoming", stranger | {"timestamp": TEXT}) == 400
    letters = await eventually(lambda: listed(system), lambda found: len(found) == 10)
    assert {letter["reason"] for letter in letters} == {
        *("invalid_json", "invalid_message", "unknown_type", "unroutable", "missing_id", "unknown_session"),
        *("handler_failed", "invalid_callback", TEXT),
    }


async def mended(system: System, chatbot_id: UUID, session_id: str) -> None:
    """One that failed is tried again, a dead letter is put back, a link ends for an odd reason, one is cancelled."""
    await system.faults(notOnWhatsapp=[NOT_THERE])
    failed = await sent(system, chatbot_id, "FAILED", NOT_THERE)
    await system.faults()
    assert (await operate(system, "messages", "retry", failed)).status == 0
    await eventually(lambda: system.message(failed), lambda seen: seen["deliveryStatus"] == "READ")
    replayed = await operate(system, "dead-letters", "replay", "--reason", "unknown_session")
    assert replayed.status == 0, replayed.error
    assert not [mark for mark in MARKS if mark in replayed.error]
    await system.faults(loseCallbacks=True)
    await system.control(f"/sessions/{session_id}/drop")
    gone = {"type": "disconnected", "sessionId": session_id, "data": {"reason": REASON}}
    assert await callback(system, "/webhook", gone) == 200
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": TEXT}
    async with Amqp(system.amqp_url) as amqp:
        await amqp.publish(json.dumps(body).encode(), type="message.send", message_id=f"{ODD_ID} waits")
    waits = outgoing_message_id(chatbot_id, f"{ODD_ID} waits")
    await eventually(lambda: system.message(waits), lambda seen: seen.get("deliveryStatus") == "PENDING")
    assert (await system.http.delete(f"{system.api}/messages/{waits}")).status_code == 200


async def broken(system: System, session_id: str) -> None:
    """A row that nobody can read: a request fails, and the singleton jobs of the session consumer do."""
    connection = await asyncpg.connect(system.database_url.replace("+asyncpg", ""))
    await connection.execute("UPDATE sessions SET status = $1", STRANGER)
    await connection.close()
    assert (await system.get(f"/status/{session_id}")).status_code == 500
    consumer = system.named("session-consumer")[0]

    async def failures() -> bool:
        return "singleton_job_failed" in consumer.log()

    await eventually(failures)


@pytest.mark.parametrize("mark", MARKS)
async def test_no_log_tells_it(told: Outputs, mark: str) -> None:
    """Neither a text nor a number nor a key, in the log of any process, however an error words it."""
    for name, log in told.logs.items():
        assert not [line for line in log.splitlines() if mark in line], name


@pytest.mark.parametrize("mark", MARKS)
async def test_no_trace_tells_it(told: Outputs, mark: str) -> None:
    """Neither a name nor an attribute nor an event of any span."""
    assert not [span.text for span in told.collector.spans if mark in span.text]


@pytest.mark.parametrize("mark", MARKS)
async def test_no_metric_tells_it(told: Outputs, mark: str) -> None:
    """No label of any process."""
    for name, metrics in told.metrics.items():
        assert not [line for line in metrics.splitlines() if mark in line], name


async def test_no_qr_code_of_the_gateway_is_told(told: Outputs) -> None:
    """No piece of it, in no log and no trace."""
    pieces = {told.qr_code[at : at + 40] for at in range(0, len(told.qr_code) - 40, 40)} - {told.qr_code[:40]}
    everything = "".join([*told.logs.values(), *(span.text for span in told.collector.spans)])
    assert pieces
    assert not [piece for piece in pieces if piece in everything]


async def test_the_paths_were_taken(told: Outputs) -> None:
    """Each has left its line, its span or its count; a test that searched nothing would find nothing."""
    assert all(told.logs[name] for name in told.metrics)
    events = {line["event"] for line in told.lines()}
    assert {
        "dead_letter",
        "handler_failed",
        "not_sent",
        "callback_refused",
        "request_failed",
        "singleton_job_failed",
    } <= events
    assert any("IntegrityError" in line["exception"] for line in told.of("handler_failed"))
    names = {span.name for span in told.collector.spans}
    assert {"POST send", "process whatsapp-qr.conversations", "process whatsapp-qr.sessions"} <= names
    assert [span for span in told.collector.spans if span.failed]
    assert 'reason="other"' in told.metrics["session-consumer"]
    assert 'type="unknown"' in told.metrics["conversation-consumer"]


async def test_every_line_of_a_handler_says_what_it_is_about(told: Outputs) -> None:
    """Which command or report caused it, which message and session it is about, and which trace it belongs to."""
    for event, also in (("not_sent", "session_id"), ("handler_failed", "session_id"), ("dead_letter", "queue")):
        for line in told.of(event):
            missing = {"correlation_id", "message_id", "trace_id", also} - line.keys()
            # What has no id has none to tell; the session of what cannot be sent is not known yet.
            assert missing <= {"correlation_id", "message_id", "session_id"}, line
            assert "message_id" in line or line["code"] == "missing_id", line
    (poisoned,) = {line["message_id"] for line in told.of("handler_failed")}
    assert poisoned == "poison"
    assert all(line["session_id"].startswith("session_") for line in told.of("not_sent"))
    hashed = [line for line in told.of("dead_letter") if line["message_id"].startswith("hash:")]
    assert len({line["message_id"] for line in hashed}) == 1, "the same number is the same hash in all processes"

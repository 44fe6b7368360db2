"""Each metric moves where what it counts happens: one run through all processes."""

import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from service.errors import BrokerUnavailable
from service.messaging import topology
from service.messaging.publishing import Publisher
from tests.amqp import Amqp
from tests.operator import listed
from tests.system import CONSUMERS, NewSystem, System, eventually
from whatsapp_qr_contracts.jobs import IncomingJob

CUSTOMER = "5491155550101"
POISON = "the database refuses this"
SESSIONS, CONVERSATIONS, SENDS = "whatsapp-qr.sessions", "whatsapp-qr.conversations", "whatsapp-qr-send"


@dataclass
class Counted:
    """What each process told at the end of the run."""

    samples: dict[str, list[tuple[str, dict[str, str], float]]]

    def sum(self, process: str, name: str, labels: dict[str, str]) -> float:
        """The sum of the samples of a name with these labels."""
        found = self.samples[process]
        return sum(value for sample, its, value in found if sample == name and labels.items() <= its.items())


@pytest.fixture(scope="module")
async def counted(new_system: NewSystem) -> AsyncIterator[Counted]:
    """A link, a message in each direction, one that the gateway refuses, one that a handler fails on, an odd reason."""
    async with new_system(SEND_RATE="1000", SEND_BURST="1000") as system:
        chatbot_id, session_id = await system.connect()
        await system.control(f"/sessions/{session_id}/customers", **{"from": CUSTOMER, "message": "Hola"})
        await (await system.jobs()).arrived()
        body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": "Hi"}
        for refused, reached in ([], "READ"), ([CUSTOMER], "FAILED"):
            await system.faults(notOnWhatsapp=refused)
            message_id = (await system.post("/send", **body)).json()["messageId"]
            await eventually(
                lambda message_id=message_id: system.message(message_id),
                lambda seen, reached=reached: seen.get("deliveryStatus") == reached,
            )
        refuse(system)
        async with Amqp(system.amqp_url) as amqp:
            poisoned = json.dumps(body | {"message": POISON}).encode()
            await amqp.publish(poisoned, type="message.send", message_id="poison")
            await amqp.publish(b"{}", type="made up", message_id="what is this")
        await eventually(lambda: listed(system), lambda found: len(found) == 2)
        await system.faults(loseCallbacks=True)
        await system.control(f"/sessions/{session_id}/drop")
        await system.post("/webhook", type="disconnected", sessionId=session_id, data={"reason": "made up"})
        await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
        # It counts what it has committed, after the status can be seen.
        moved = {"name": "whatsapp_qr_session_transitions_total", "status": "DISCONNECTED"}
        await eventually(lambda: system.named("session-consumer")[0].metric(system.http, **moved))
        yield Counted({name: await told(system, name) for name in ("ingress", *CONSUMERS)})


def refuse(system: System) -> None:
    """Let the database refuse one text, with an error that does not pass."""
    with sqlite3.connect(system.folder / "whatsapp-qr.db", timeout=30) as connection:
        connection.execute(
            f"CREATE TRIGGER poison BEFORE INSERT ON messages WHEN NEW.content = '{POISON}'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    connection.close()


async def told(system: System, name: str) -> list[tuple[str, dict[str, str], float]]:
    text = (await system.http.get(f"{system.named(name)[0].url}/metrics")).text
    return [
        (one.name, one.labels, one.value) for family in text_string_to_metric_families(text) for one in family.samples
    ]


MOVES = [
    ("ingress", "build_info", {"role": "ingress"}),
    ("outbound-consumer", "build_info", {"role": "outbound-consumer"}),
    ("session-consumer", "message_age_seconds_count", {"queue": SESSIONS}),
    ("conversation-consumer", "message_age_seconds_count", {"queue": CONVERSATIONS}),
    ("outbound-consumer", "message_age_seconds_count", {"queue": SENDS}),
    ("session-consumer", "handling_seconds_count", {"queue": SESSIONS, "type": "session.initialize"}),
    ("conversation-consumer", "handling_seconds_count", {"queue": CONVERSATIONS, "type": "gateway.message"}),
    ("conversation-consumer", "handling_seconds_count", {"queue": CONVERSATIONS, "type": "unknown"}),
    ("outbound-consumer", "handling_seconds_count", {"queue": SENDS, "type": "whatsapp-qr-send"}),
    ("ingress", "published_total", {"type": "message.send", "outcome": "confirmed"}),
    ("ingress", "published_total", {"type": "gateway.receipt", "outcome": "confirmed"}),
    ("conversation-consumer", "published_total", {"type": "incoming-messages", "outcome": "confirmed"}),
    ("session-consumer", "session_transitions_total", {"status": "CONNECTING", "reason": ""}),
    ("session-consumer", "session_transitions_total", {"status": "QR_READY", "reason": ""}),
    ("session-consumer", "session_transitions_total", {"status": "CONNECTED", "reason": ""}),
    ("session-consumer", "session_transitions_total", {"status": "DISCONNECTED", "reason": "other"}),
    ("session-consumer", "gateway_seconds_count", {"call": "init", "outcome": "ok"}),
    ("session-consumer", "gateway_seconds_count", {"call": "status", "outcome": "ok"}),
    ("outbound-consumer", "gateway_seconds_count", {"call": "send", "outcome": "ok"}),
    ("outbound-consumer", "gateway_seconds_count", {"call": "send", "outcome": "refused"}),
    ("ingress", "transaction_seconds_count", {"kind": "read"}),
    ("conversation-consumer", "transaction_seconds_count", {"kind": "write"}),
]


@pytest.mark.parametrize(("process", "name", "labels"), MOVES)
async def test_it_has_moved(counted: Counted, process: str, name: str, labels: dict[str, str]) -> None:
    """Under the labels that say what it was."""
    assert counted.sum(process, f"whatsapp_qr_{name}", labels) >= 1


async def test_each_failed_attempt_of_a_handler_counts(counted: Counted) -> None:
    """Three, after which the message is a dead letter; what can never be processed is no error of a handler."""
    labels = {"queue": CONVERSATIONS, "type": "message.send"}
    assert counted.sum("conversation-consumer", "whatsapp_qr_handler_errors_total", labels) == 3
    assert counted.sum("conversation-consumer", "whatsapp_qr_handler_errors_total", {}) == 3


async def test_each_transition_counts_once(counted: Counted) -> None:
    """One link and its loss are four, however many transactions were tried for them."""
    assert counted.sum("session-consumer", "whatsapp_qr_session_transitions_total", {}) == 4


async def test_a_publish_that_no_queue_takes_is_unroutable(clean_broker: str) -> None:
    """Not the same as one that was not confirmed."""

    def published(outcome: str) -> float:
        labels = {"type": "incoming-messages", "outcome": outcome}
        return REGISTRY.get_sample_value("whatsapp_qr_published_total", labels) or 0

    await topology.declare(clean_broker, 1)
    async with Amqp(clean_broker) as amqp:
        await amqp.channel.queue_delete("incoming-messages")
    job = IncomingJob.model_validate(IncomingJob.example())
    publisher, nowhere = Publisher(clean_broker, 1), Publisher("amqp://guest:guest@127.0.0.1:9/", 1)
    for one, outcome in ((publisher, "unroutable"), (nowhere, "failed")):
        before = published(outcome)
        with pytest.raises(BrokerUnavailable):
            await one.publish(job, message_id="m", correlation_id="c")
        await one.close()
        assert published(outcome) == before + 1

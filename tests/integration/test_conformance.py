"""What the running service sends is what schemas/ says: bodies, headers and properties of everything on the broker."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage

from service.messaging import topology
from tests.operator import operate
from tests.published import Published
from tests.system import Heard, NewSystem, System, eventually, send_by_amqp
from whatsapp_qr_contracts.commands import (
    CancelMessage,
    Command,
    DisconnectSession,
    InitializeSession,
    RegisterChatbot,
    RemoveChatbot,
    SendMessage,
)
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, GATEWAY, JOBS

CUSTOMER, STRANGER = "5491112345678", "5491199999999"
QUEUES = ["incoming-messages", *(topology.SENDS.queue_name(partition) for partition in range(4))]


class Witness:
    """Sees all that is published, and waits for what a test expects."""

    def __init__(self, system: System, heard: list[Heard], dead: Heard) -> None:
        self.system = system
        self.dead = dead
        self._heard = heard

    @classmethod
    async def of(cls, system: System) -> "Witness":
        heard = [await system.hear(exchange) for exchange in (COMMANDS, GATEWAY, EVENTS)]
        return cls(system, [*heard, await system.hear(JOBS, *QUEUES)], await system.hear(topology.DEAD_LETTERS))

    @property
    def messages(self) -> list[AbstractIncomingMessage]:
        """All but the probes: the broker's word to a consumer that a partition is its own, which no other reads."""
        return [message for heard in self._heard for message in heard.messages if message.type != topology.PROBE]

    async def event(self, name: str, **fields: object) -> dict[str, object]:
        """Wait for an event with these fields, and return its body."""

        async def look() -> dict[str, object] | None:
            bodies = [json.loads(message.body) for message in self.messages if message.type == name]
            return next((body for body in bodies if fields.items() <= body.items()), None)

        found: dict[str, object] = await eventually(look)
        return found

    async def after(self, command: Command) -> dict[str, object]:
        """Send a command and wait for the event that ends it."""
        command_id = str(uuid4())
        await send_by_amqp(self.system, command, command_id)

        async def look() -> AbstractIncomingMessage | None:
            caused = (one for one in self.messages if one.correlation_id == command_id and one.exchange == EVENTS)
            return next(caused, None)

        return dict(json.loads((await eventually(look)).body))


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def witness(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[Witness]:
    """The whole service, watched from its first message on."""
    async with new_system(request.param) as system:
        yield await Witness.of(system)


async def a_life(witness: Witness) -> None:
    """Pairing, messages both ways, receipts, failures, cancel, retry, rejected commands, the end."""
    system, chatbot_id = witness.system, uuid4()
    await by_rest_both_ways(witness, chatbot_id)
    await failures_and_retry(witness, chatbot_id)
    await parked_and_cancelled(witness, chatbot_id)
    # the same by AMQP, and what is refused
    other = uuid4()
    assert await witness.after(RegisterChatbot(chatbot_id=other)) == {"chatbotId": str(other)}
    refused = await witness.after(SendMessage(chatbot_id=other, to=CUSTOMER, message="Nobody there"))
    assert (refused["command"], refused["code"]) == ("message.send", "no_session")
    assert (await witness.after(InitializeSession(chatbot_id=other)))["status"] == "CONNECTING"
    assert (await witness.after(DisconnectSession(chatbot_id=other)))["statusReason"] == "requested"
    assert await witness.after(RemoveChatbot(chatbot_id=other)) == {"chatbotId": str(other)}
    assert (await system.http.put(f"{system.api}/chatbots/{other}")).status_code == 200
    assert (await system.http.delete(f"{system.api}/chatbots/{chatbot_id}")).status_code == 200


async def by_rest_both_ways(witness: Witness, chatbot_id: UUID) -> None:
    """A pairing, a message in each direction, its receipts, an image without a text, and an answer."""
    system = witness.system
    _, session_id = await system.connect(chatbot_id)
    customers = f"/sessions/{session_id}/customers"
    await system.control(customers, **{"from": CUSTOMER, "message": "Hola"})
    received = await witness.event("message.received", content="Hola")
    await system.control(customers, **{"from": "98765@lid", "message": "", "type": "image", "pushName": "Ana"})
    await witness.event("message.received", content="", externalUserId="98765@lid")
    body = {"chatbotId": str(chatbot_id), "to": "+54 9 11 1234-5678", "message": "Buenas"}
    sent = (await system.post("/send", **body, metadata={"order": {"id": 7}})).json()
    read = await witness.event("message.read", messageId=sent["messageId"])
    assert read["metadata"] == {"order": {"id": 7}}
    assert read["conversationId"] == received["conversationId"]


async def failures_and_retry(witness: Witness, chatbot_id: UUID) -> None:
    """A number that is not on WhatsApp, tried again by an operator; and one that WhatsApp gives up later."""
    system = witness.system
    await system.faults(notOnWhatsapp=[STRANGER])
    body = {"chatbotId": str(chatbot_id), "to": STRANGER, "message": "Anybody?"}
    failed = (await system.post("/send", **body)).json()["messageId"]
    assert (await witness.event("message.failed", messageId=failed))["errorCode"] == "not_on_whatsapp"
    await system.faults(receipts=False)
    assert (await operate(system, "messages", "retry", failed)).status == 0
    await witness.event("message.queued", messageId=failed)
    sent = await witness.event("message.sent", messageId=failed)
    receipt = {
        "messageId": sent["whatsappMessageId"],
        "status": "failed",
        "timestamp": 1_767_268_800,
        "error": "blocked",
    }
    posted = await system.post("/webhook", type="receipt", sessionId=sent["sessionId"], data=receipt)
    assert posted.status_code == 200
    await witness.event("message.failed", messageId=failed, errorCode="failed_by_whatsapp")
    await system.faults()


async def parked_and_cancelled(witness: Witness, chatbot_id: UUID) -> None:
    """The phone removes the link; what is sent meanwhile waits, and is taken back; what is unknown cannot be."""
    system = witness.system
    session_id = (await system.get(f"/session/{chatbot_id}")).json()["data"]["sessionId"]
    await system.control(f"/sessions/{session_id}/unlink")
    gone = await witness.event("session.disconnected", sessionId=session_id)
    assert gone["statusReason"] == "logged_out"
    await send_by_amqp(system, SendMessage(chatbot_id=chatbot_id, to="5491177777777", message="Later"), "parked")
    new = await witness.event("conversation.started", externalUserId="5491177777777")

    async def waiting() -> list[dict[str, str]]:
        return list((await system.get(f"/conversations/{new['conversationId']}/messages")).json()["data"])

    [parked] = await eventually(waiting)
    assert (await system.http.delete(f"{system.api}/messages/{parked['id']}")).status_code == 200
    again = await witness.after(CancelMessage(chatbot_id=chatbot_id, message_id=UUID(parked["id"])))
    assert (again["messageId"], again["deliveryStatus"]) == (parked["id"], "FAILED")
    await witness.event("message.failed", messageId=parked["id"], errorCode="cancelled")
    unknown = await witness.after(CancelMessage(chatbot_id=chatbot_id, message_id=uuid4()))
    assert unknown["code"] == "unknown_message"
    assert (await system.post("/disconnect", chatbotId=str(chatbot_id))).status_code == 200


async def test_everything_sent_is_as_published(witness: Witness) -> None:
    """Every kind of message was seen, each conforms, and nothing died."""
    published = Published()
    await a_life(witness)
    seen = Counter(str(message.type) for message in witness.messages)
    assert published.names - seen.keys() == set(), "the scenario lacks these"
    # What this test published itself says nothing about the service.
    sent = [message for message in witness.messages if message.app_id == "whatsapp-qr"]
    assert {str(message.type) for message in sent} == published.names
    assert [fault for message in sent for fault in published.faults(message)] == []
    assert [letter.headers for letter in witness.dead.messages] == []


async def test_dead_letters_are_as_published(witness: Witness) -> None:
    """A callback that is refused is kept with the headers that asyncapi.yaml names."""
    assert (await witness.system.post("/webhook", type="qr", sessionId="")).status_code == 400
    (letter,) = await witness.dead.arrived()
    described = Published().messages["dead-letter"]["headers"]["properties"]
    assert letter.headers.keys() >= {"reason", "detail", "source-path", "death-id"}
    assert letter.headers.keys() <= described.keys()
    assert all(isinstance(value, str) for value in letter.headers.values())
    assert letter.headers["reason"] == "invalid_callback"

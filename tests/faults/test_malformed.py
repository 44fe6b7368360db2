"""What nobody can read neither blocks nor vanishes, on the running service: by AMQP and by HTTP, into every queue."""

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import pytest

from service.messaging.topology import CONVERSATIONS, SENDS, SESSIONS, PartitionedQueue, routing_key
from service.persistence.database import Database
from service.persistence.tables import DeadLetterRow
from tests.amqp import Amqp
from tests.component.rows import all_of
from tests.system import NewSystem, System, eventually
from whatsapp_qr_contracts.commands import InitializeSession, SendMessage
from whatsapp_qr_contracts.gateway import GatewayMessage
from whatsapp_qr_contracts.jobs import SendJob
from whatsapp_qr_contracts.message import MAX_BODY_BYTES, Message
from whatsapp_qr_contracts.partitions import partition_of

CUSTOMER = "5491112345678"
LARGE = 10 * 1024 * 1024


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service, with one message of each partition at a time: whatever stops blocks those behind it."""
    async with new_system(request.param, PREFETCH="1", SEND_RATE="1000", SEND_BURST="1000") as system:
        yield system


Kept = set[tuple[str, str, str]]
"""Reason, source and body of dead letters."""


async def kept(system: System) -> Kept:
    """Return the dead letters in the table."""
    database = Database(system.database_url)
    rows = await all_of(database, DeadLetterRow)
    await database.close()
    found = Counter((row.reason, row.source, digest(row.body)) for row in rows)
    assert set(found.values()) <= {1}, "kept more than once"
    return set(found)


def digest(body: bytes) -> str:
    return f"{body[:200]!r} {sha256(body).hexdigest()}"


def nonsense(of: type[Message], chatbot_id: UUID) -> list[tuple[bytes, dict[str, Any], str]]:
    """Bodies of one chatbot's lane with the properties they come with, and the reason why each cannot be read."""
    own = f'"chatbotId": "{chatbot_id}", "sessionId": "session_{chatbot_id}_1", "case": "{of.name}'
    typed = {"type": of.name, "message_id": uuid4().hex}
    return [
        (f'{{{own} bad JSON", '.encode(), typed, "invalid_json"),
        (f"{{{own} bad UTF-8 ".encode() + b'\xff\xfe"}', typed, "invalid_json"),
        (f'{{{own} no properties at all", '.encode(), {}, "invalid_json"),
        (f'["{of.name} {chatbot_id} no object"]'.encode(), typed, "invalid_message"),
        (f'{{{own} wrong types", "messageId": [], "requestedAt": {{}}, "to": 1}}'.encode(), typed, "invalid_message"),
        (f'{{"chatbot_id": "{chatbot_id}", "case": "{of.name} other spelling"}}'.encode(), typed, "invalid_message"),
        (f'{{{own} too large", "messageId": "{"x" * MAX_BODY_BYTES}"}}'.encode(), typed, "too_large"),
        (f'{{{own} unknown type"}}'.encode(), typed | {"type": "message.sing"}, "unknown_type"),
        (f'{{{own} unknown version"}}'.encode(), typed | {"headers": {"schema-version": 99}}, "unknown_version"),
        (f'{{{own} odd version"}}'.encode(), typed | {"headers": {"schema-version": [1]}}, "unknown_version"),
    ]


def without_an_id(chatbot_id: UUID) -> list[tuple[type[Message], bytes, str]]:
    """Bodies that could be read, and that nobody can act upon."""
    lost = {"sessionId": f"session_{uuid4()}_1", "messageId": str(uuid4()), "conversationId": str(uuid4())}
    report = {"sessionId": "nobody", "from": CUSTOMER, "message": "?", "messageId": uuid4().hex, "timestamp": 1}
    return [
        (InitializeSession, InitializeSession(chatbot_id=chatbot_id).wire(), "missing_id"),
        (SendMessage, SendMessage(chatbot_id=chatbot_id, to=CUSTOMER, message="?").wire(), "missing_id"),
        (GatewayMessage, json.dumps(report).encode(), "unknown_session"),
        (SendJob, json.dumps(lost | {"to": CUSTOMER, "message": "?"}).encode(), "unknown_message"),
    ]


CARRIED: list[tuple[PartitionedQueue, type[Message]]] = [
    (SESSIONS, InitializeSession),
    (CONVERSATIONS, SendMessage),
    (CONVERSATIONS, GatewayMessage),
    (SENDS, SendJob),
]


async def still_works(system: System, chatbot_id: UUID, session_id: str) -> None:
    """See that a message of each kind gets through every queue of the chatbot."""
    text = f"behind {uuid4()}"
    jobs, events = await system.jobs(), await system.hear()
    report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": int(time.time())}
    assert (await system.post("/incoming", **report, message=text, messageId=uuid4().hex)).status_code == 200
    answer = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message=text)
    assert answer.status_code == 202
    linked = await system.post("/init", chatbotId=str(chatbot_id))
    assert (linked.status_code, linked.json()["status"]) == (200, "CONNECTED")
    await events.arrived(1, of_type="message.read")

    async def handed() -> list[str]:
        return [json.loads(job.body)["content"] for job in jobs.messages]

    await eventually(handed, lambda found: text in found)
    assert [message["message"] for message in await system.sent(session_id)].count(text) == 1


async def test_nonsense_in_every_queue_is_kept_and_blocks_nobody(system: System) -> None:
    """Each is one dead letter with its bytes (cut if large), its reason and its queue; good ones still go through."""
    chatbot_id, session_id = await system.connect()
    partition = partition_of(str(chatbot_id), 4)
    expected: Kept = set()
    async with Amqp(system.amqp_url) as amqp:
        for queue, message in CARRIED:
            to = routing_key(message, partition)
            for body, properties, reason in nonsense(message, chatbot_id):
                await amqp.publish(body, to, message.exchange, **properties)
                expected.add((reason, queue.name, digest(body[:MAX_BODY_BYTES])))
        for message, body, reason in without_an_id(chatbot_id):
            await amqp.publish(body, routing_key(message, partition), message.exchange)
            (queue,) = (queue for queue, carried in CARRIED if carried is message)
            expected.add((reason, queue.name, digest(body)))
    await still_works(system, chatbot_id, session_id)
    await eventually(lambda: kept(system), lambda found: found >= expected)
    assert {letter for letter in await kept(system) if not letter[1].startswith("/")} == expected


CALLBACKS = ("/webhook", "/incoming")
BAD_REQUESTS: list[tuple[str, bytes, int, str]] = [
    ("bad JSON", b'{"case": "bad JSON", ', 400, "invalid_request"),
    ("bad UTF-8", b'{"case": "bad UTF-8 \xff\xfe"}', 400, "bad_request"),
    ("empty", b"", 400, "invalid_request"),
    ("no object", b'["case"]', 400, "invalid_request"),
    ("nothing in it", b"{}", 400, "invalid_request"),
    ("unknown type", b'{"type": "sing", "sessionId": "s", "data": {}}', 400, "invalid_request"),
    ("wrong types", b'{"type": 1, "sessionId": [], "chatbotId": {}, "to": 1, "message": null}', 400, "invalid_request"),
    ("10 MB", b'{"message": "' + b"x" * LARGE + b'"}', 413, "content_too_large"),
]


@pytest.mark.parametrize("path", [*CALLBACKS, "/send"])
async def test_a_bad_request_gets_its_code_and_a_callback_is_kept(system: System, path: str) -> None:
    """A problem with a stable code; a callback of up to 1 MiB is a dead letter too, and good calls still work."""
    chatbot_id, session_id = await system.connect()
    expected: Kept = set()
    for case, body, status, code in BAD_REQUESTS:
        mine = body.replace(b"case", path.encode())
        answer = await system.http.post(system.api + path, content=mine, headers={"Content-Type": "application/json"})
        assert (case, answer.status_code, answer.json()["code"]) == (case, status, code)
        assert answer.json()["success"] is False
        assert answer.headers["content-type"] == "application/problem+json"
        if path in CALLBACKS and status == 400:
            expected.add(("invalid_callback", f"/whatsapp-qr{path}", digest(mine)))
    await still_works(system, chatbot_id, session_id)
    await eventually(lambda: kept(system), lambda found: found >= expected)
    assert {letter for letter in await kept(system) if letter[1].endswith(path)} == expected

"""Dead letters on the running service, as an operator meets them: found in a table, shown, put back, thrown away."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest

from service.domain.dead_letters import DeadLetter, Original
from service.messaging.topology import DEAD_LETTERS
from service.persistence.database import Database
from service.persistence.dead_letters import DeadLetters
from service.persistence.tables import DeadLetterRow
from tests.component.rows import all_of
from tests.operator import listed, operate
from tests.system import NewSystem, System, eventually, running
from whatsapp_qr_contracts.commands import InitializeSession, SendMessage
from whatsapp_qr_contracts.message import COMMANDS, Message
from whatsapp_qr_contracts.partitions import partition_of

CUSTOMER = "5491112345678"
NOW = int(time.time())


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service, without pacing; a killed store is replaced after two seconds."""
    async with new_system(request.param, SEND_RATE="1000", SEND_BURST="1000", LEASE="2") as system:
        yield system


async def publish(system: System, body: bytes, exchange: str, routing_key: str, **properties: Any) -> None:
    channel = await system.channel()
    target = await channel.get_exchange(exchange)
    await target.publish(aio_pika.Message(body, delivery_mode=2, **properties), routing_key)
    await channel.close()


async def keep_dead_letter(system: System, message: Message, chatbot_id: UUID, message_id: str) -> None:
    """Do what a consumer does with a message that it failed to handle three times."""
    original = Original(
        message.wire(),
        message.exchange,
        f"{message.name}.{partition_of(str(chatbot_id), 4)}",
        {"messageId": message_id, "correlationId": message_id, "type": message.name},
        {"partition-key": str(chatbot_id)},
    )
    database = Database(system.database_url)
    await DeadLetters(database).keep(
        DeadLetter(
            original,
            reason="handler_failed",
            detail="Traceback …",
            source="whatsapp-qr.conversations",
            death_id="",
            redelivered=False,
            died_at=None,
        )
    )
    await database.close()


def an_incoming(session_id: str, message: str = "private") -> dict[str, Any]:
    report = {"sessionId": session_id, "from": CUSTOMER, "messageId": f"WA{uuid4().hex}", "timestamp": NOW}
    return report | {"message": message}


async def found(system: System, reason: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until the table has so many dead letters with a reason."""
    return await eventually(lambda: listed(system, "--reason", reason), lambda rows: len(rows) >= count)


async def ids_of(system: System, reason: str) -> set[str]:
    """Return the ids of all dead letters with a reason: what tests before have left is among them."""
    return {row["id"] for row in await listed(system, "--reason", reason)}


async def replayed(system: System, *ids: str) -> None:
    answer = await operate(system, "dead-letters", "replay", *ids)
    assert answer.status == 0, answer
    assert answer.out.count("  replayed") == len(ids)


async def contents(system: System, chatbot_id: UUID) -> list[str]:
    """Return what the chatbot's conversations say."""
    page = (await system.get("/conversations", chatbotId=str(chatbot_id))).json()
    rows: list[dict[str, Any]] = []
    for conversation in page["data"]:
        rows += (await system.get(f"/conversations/{conversation['id']}/messages")).json()["data"]
    return [row["content"] for row in rows]


async def test_every_kind_gets_into_the_table(system: System) -> None:
    """Buried, refused by the ingress, without a queue, given up by a worker: each with its reason and origin."""
    _, session_id = await system.connect()
    channel = await system.channel()
    answer = await system.post("/incoming", **an_incoming(session_id))
    assert answer.status_code == 200
    jobs = await channel.get_queue("incoming-messages")
    job: Any = await eventually(lambda: jobs.get(fail=False))
    await job.reject(requeue=False)
    secret = {"type": "qr", "sessionId": session_id, "data": {"qrCode": "SECRET"}, "extra": "x"}
    assert (await system.post("/webhook", **secret | {"sessionId": ""})).status_code == 400
    await publish(system, b'{"private": ', COMMANDS, "message.send", message_id="broken", type="message.send")
    await publish(system, b"private", COMMANDS, "message.sing", message_id="sung", type="message.sing")
    await system.post("/incoming", **an_incoming(f"session_{uuid4()}_1"))

    rows = await eventually(lambda: listed(system), lambda rows: len(rows) >= 5)
    assert {(row["reason"], row["source"], row["attempts"], row["replayedAt"]) for row in rows} == {
        ("rejected", "incoming-messages", 1, None),
        ("invalid_callback", "/whatsapp-qr/webhook", 1, None),
        ("invalid_json", "whatsapp-qr.conversations.entry", 1, None),
        ("unroutable", "whatsapp-qr.commands", 1, None),
        ("unknown_session", "whatsapp-qr.conversations", 1, None),
    }
    by_reason = {row["reason"]: row["id"] for row in rows}
    table = await operate(system, "dead-letters", "list")
    assert len(table.out.splitlines()) == 6
    assert "private" not in table.out
    shown = await operate(system, "dead-letters", "show", by_reason["invalid_json"][:8])
    assert '{"private": ' in shown.out
    hidden = await operate(system, "dead-letters", "show", by_reason["invalid_callback"], "--json")
    assert json.loads(hidden.objects()[0]["body"])["data"] == {"qrCode": "***"}
    secrets = await operate(system, "dead-letters", "show", by_reason["invalid_callback"], "--secrets")
    assert "SECRET" in secrets.out
    session = system.named("session-consumer")[0]

    async def counted() -> float:
        return await session.metric(system.http, "whatsapp_qr_stored_dead_letters", reason="unroutable")

    assert await eventually(counted) == 1

    # A job goes back to the workers exactly as it was.
    await replayed(system, by_reason["rejected"])
    again: Any = await eventually(lambda: jobs.get(fail=False))
    assert (again.body, again.message_id, again.type) == (job.body, job.message_id, job.type)
    assert again.headers["conversation-sequence"] == job.headers["conversation-sequence"]
    await again.ack()
    assert (await listed(system, "--reason", "rejected"))[0]["replayedAt"]


async def test_a_customers_message_is_not_lost(system: System) -> None:
    """One that came before its session was known is put back, twice: one message, jobs of one id."""
    chatbot_id, ms = uuid4(), 1_700_000_000_000
    session_id = f"session_{chatbot_id}_{ms}"
    jobs = await system.jobs()
    before = await ids_of(system, "unknown_session")
    await system.post("/incoming", **an_incoming(session_id, "Hola"))
    [newest] = await eventually(lambda: ids_of(system, "unknown_session"), lambda found: found - before) - before
    events = await system.hear("whatsapp-qr.events", "session.#")
    asked_at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ms / 1000))}Z"
    command = InitializeSession.model_validate({"chatbotId": chatbot_id, "requestedAt": asked_at})
    key = f"{command.name}.{partition_of(str(chatbot_id), 4)}"
    await publish(system, command.wire(), COMMANDS, key, message_id=str(uuid4()), type=command.name)
    await events.arrived(1, "session.connecting")
    await replayed(system, newest)
    await replayed(system, newest)
    assert await eventually(lambda: contents(system, chatbot_id)) == ["Hola"]

    async def own() -> set[str | None]:
        return {job.message_id for job in jobs.messages if json.loads(job.body)["chatbotId"] == str(chatbot_id)}

    assert len(await eventually(own)) == 1


async def test_a_replayed_command_has_one_effect(system: System) -> None:
    """A message.send and a session.initialize that were carried out before only repeat their outputs."""
    chatbot_id, session_id = await system.connect()
    send = SendMessage(chatbot_id=chatbot_id, to=CUSTOMER, message="Once")
    key = f"{send.name}.{partition_of(str(chatbot_id), 4)}"
    await publish(system, send.wire(), COMMANDS, key, message_id="send 1", type=send.name)
    await eventually(lambda: system.sent(session_id))
    open_ = InitializeSession(chatbot_id=chatbot_id)
    events = await system.hear("whatsapp-qr.events", "session.#")
    key = f"{open_.name}.{partition_of(str(chatbot_id), 4)}"
    await publish(system, open_.wire(), COMMANDS, key, message_id="open 1", type=open_.name)

    async def answers() -> list[Any]:
        return [event for event in events.messages if event.correlation_id == "open 1"]

    await eventually(answers)
    await keep_dead_letter(system, send, chatbot_id, "send 1")
    await keep_dead_letter(system, open_, chatbot_id, "open 1")
    rows = await found(system, "handler_failed", 2)
    ids = [row["id"] for row in rows if not row["replayedAt"]]
    await replayed(system, *ids)
    await replayed(system, *ids)
    repeated = await eventually(answers, lambda found: len(found) >= 3)
    assert len({event.message_id for event in repeated}) == 1
    assert {event.body for event in repeated} == {repeated[0].body}
    later = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="Later")
    assert later.status_code == 202
    sent = await eventually(lambda: system.sent(session_id), lambda sent: len(sent) >= 2)
    assert [message["message"] for message in sent] == ["Once", "Later"]


async def test_a_message_that_dies_again_is_the_same_row(system: System) -> None:
    """Its attempts rise, and it waits for a replay again."""
    message_id = uuid4().hex
    await publish(system, b"{}", COMMANDS, "message.send", message_id=message_id, type="message.send")
    [row] = await found(system, "invalid_message")
    await replayed(system, row["id"][:10])
    [again] = await eventually(
        lambda: listed(system, "--reason", "invalid_message"), lambda rows: rows[0]["attempts"] == 2
    )
    assert (again["id"], again["replayedAt"]) == (row["id"], None)


async def test_a_callback_goes_in_as_the_ingress_would_let_it(system: System) -> None:
    """One that an older ingress refused is taken today, once; one that today's would refuse stays, with a reason."""
    chatbot_id, session_id = await system.connect()
    good = json.dumps(an_incoming(session_id, "Taken")).encode()
    headers = {"reason": "old_refusal", "detail": "…", "source-path": "/whatsapp-qr/incoming", "original": "{}"}
    await publish(system, good, DEAD_LETTERS, "old_refusal", headers=headers | {"death-id": uuid4().hex})
    await publish(system, b'{"sessionId": "s"}', DEAD_LETTERS, "x", headers=headers | {"death-id": uuid4().hex})
    rows = await found(system, "old_refusal", 2)
    for _ in range(2):
        answer = await operate(system, "dead-letters", "replay", *(row["id"] for row in rows), "--json")
        assert answer.status == 1
        [failure] = [result for result in answer.objects() if result["outcome"] == "failed"]
        assert failure["detail"].startswith("invalid_callback: ")
        assert "messageId" in failure["detail"]
    assert await eventually(lambda: contents(system, chatbot_id)) == ["Taken"]
    rows = await listed(system, "--reason", "old_refusal")
    assert sorted(bool(row["replayedAt"]) for row in rows) == [False, True]


async def test_what_is_still_unroutable_stays(system: System) -> None:
    """A replay says so and changes nothing; a dry run only says; then it is thrown away."""
    earlier = await ids_of(system, "unroutable")
    for number in range(2):
        await publish(system, b"?", COMMANDS, f"nobody.{number}", message_id=uuid4().hex)
    before = await found(system, "unroutable", len(earlier) + 2)
    dry = await operate(system, "dead-letters", "replay", "--reason", "unroutable", "--dry-run", "--json")
    assert dry.status == 0
    assert {result["outcome"] for result in dry.objects()} == {"would be replayed"}
    answer = await operate(system, "dead-letters", "replay", "--reason", "unroutable")
    assert answer.status == 1
    assert answer.out.count("failed  unroutable: no queue of this service is bound") == len(before)
    dry = await operate(system, "dead-letters", "discard", "--reason", "unroutable", "--dry-run")
    assert dry.status == 0
    assert await listed(system, "--reason", "unroutable") == before
    answer = await operate(system, "dead-letters", "discard", "--reason", "unroutable")
    assert (answer.status, answer.out.count("  discarded")) == (0, len(before))
    assert await listed(system, "--reason", "unroutable") == []


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "says"),
    [
        (["replay"], {}, 2, "give one of"),
        (["discard", "--all", "--reason", "x"], {}, 2, "give one of"),
        (["show", "00000000"], {}, 1, "nothing has the id 00000000"),
        (["show", "no-id"], {}, 1, "is not an id"),
        (["discard", "00000000"], {}, 1, ""),
        (["discard", "--all"], {}, 1, "Delete all"),
        (["list"], {"DATABASE_URL": "postgresql://x:y@127.0.0.1:1/z"}, 1, "Is DATABASE_URL right"),
        (["list"], {"DATABASE_URL": "mysql://"}, 2, "DATABASE_URL is"),
    ],
)
async def test_what_goes_wrong_is_one_sentence(
    system: System, arguments: list[str], settings: dict[str, str], status: int, says: str
) -> None:
    """With the exit status that scripts can rely on, and the setting that may be wrong."""
    answer = await operate(system, "dead-letters", *arguments, **settings)
    assert answer.status == status
    assert says in answer.error
    assert "Traceback" not in answer.error


async def test_a_replay_without_a_broker_changes_nothing(system: System) -> None:
    """It ends at once, says which setting to look at, and the row waits on."""
    before = await ids_of(system, "invalid_message")
    await publish(system, b"[]", COMMANDS, "message.send", message_id=uuid4().hex, type="message.send")
    [waiting] = await eventually(lambda: ids_of(system, "invalid_message"), lambda found: found - before) - before
    answer = await operate(system, "dead-letters", "replay", waiting, AMQP_URL="amqp://127.0.0.1:1/")
    assert (answer.status, "Is AMQP_URL right" in answer.error) == (1, True)
    assert all(row["replayedAt"] is None for row in await listed(system) if row["id"] == waiting)


@pytest.mark.one_database("postgres")
async def test_a_killed_store_loses_and_doubles_nothing(clean_broker: str, database_url: str, tmp_path: Path) -> None:
    """Killed while it works: every dead letter is one row that died once, and all are thrown away at one word."""
    count = 400
    async with running(clean_broker, database_url, tmp_path, LEASE="2") as system:
        channel = await system.channel()
        exchange = await channel.get_exchange(COMMANDS)
        [killed] = system.named("session-consumer")

        async def flow() -> None:
            for number in range(count):
                await exchange.publish(aio_pika.Message(b"x", message_id=f"m{number}", delivery_mode=2), "nobody")

        flowing = asyncio.create_task(flow())

        table = Database(database_url)
        await eventually(lambda: all_of(table, DeadLetterRow))
        killed.send_signal(signal.SIGKILL)
        await killed.ended()
        await flowing
        await table.close()
        queue = await channel.get_queue(DEAD_LETTERS)
        assert queue.declaration_result.message_count
        assert 0 < len(await listed(system)) < count
        await system.start("session-consumer")
        rows = await eventually(lambda: listed(system), lambda rows: len(rows) >= count)
        assert len(rows) == count
        assert {row["attempts"] for row in rows} == {1}
        answer = await operate(system, "dead-letters", "discard", "--all", "--yes", "--json")
        assert (answer.status, len(answer.objects())) == (0, count)
        assert await listed(system) == []

"""While SQLite's disk is full nothing is lost or given up, and once there is space again all is done by itself."""

import json
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
from sqlmodel import select

from service.messaging.topology import DEAD_LETTERS
from service.persistence.database import Database
from service.persistence.tables import DeadLetterRow
from tests.amqp import Amqp
from tests.faults.process import live
from tests.system import Process, System, eventually, running
from whatsapp_qr_contracts.commands import SendMessage

SETTINGS = {
    "PARTITIONS": "1",
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
    "RELEASE_AFTER": "2",
    "SWEEP_PERIOD": "1",
    "SWEEP_AGE": "5",
}
CUSTOMER = "5491144445555"
TEXTS = [f"{number} {'x' * 2_000}" for number in range(60)]


async def receive(system: System, session_id: str, texts: list[str]) -> list[str]:
    """Report texts as the gateway does; return those that were not accepted."""
    refused = []
    for text in texts:
        report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": int(time.time()), "message": text}
        answer = await system.post("/incoming", **report, messageId=f"WA{text.split()[0]}")
        assert answer.status_code in {200, 503}
        if answer.status_code == 503:
            refused.append(text)
    return refused


async def send(system: System, chatbot_id: UUID) -> None:
    exchange = await (await system.channel()).get_exchange(SendMessage.exchange)
    for text in TEXTS:
        command = SendMessage(chatbot_id=chatbot_id, to=CUSTOMER, message=text)
        message = aio_pika.Message(command.wire(), message_id=uuid4().hex, type=command.name, delivery_mode=2)
        await exchange.publish(message, command.name)


async def nothing_is_dead(system: System) -> None:
    database = Database(system.database_url)
    try:
        dead = await database.read(lambda tx: tx.scalars(select(DeadLetterRow)))
        assert list(dead) == []
    finally:
        await database.close()
    async with Amqp(system.amqp_url) as amqp:
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_a_full_disk_delays_and_loses_nothing(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Callbacks are taken while nothing can be stored; with space again all arrives once, in order, without help."""
    settings = SETTINGS | {"FAULTS_FOLDER": str(tmp_path)}
    async with running(clean_broker, sqlite_database, tmp_path, careful=True, entry=live, **settings) as system:
        chatbot_id, session_id = await system.connect()
        jobs = await system.jobs()
        (tmp_path / "full").touch()
        with system.transport.careless():
            refused = await receive(system, session_id, TEXTS)
        await send(system, chatbot_id)
        late = str(uuid4())
        with system.transport.careless():
            assert (await system.post("/init", chatbotId=late)).status_code in {200, 202, 503}
        (consumer,) = system.named("conversation-consumer")
        # It holds what it has, gives up, finds that it can write a little, and holds it again.
        await eventually(_of(consumer), lambda log: log.count("releasing_partitions") >= 2)
        assert "database or disk is full" in consumer.log()
        assert len(await system.sent(session_id)) < len(TEXTS)
        await nothing_is_dead(system)
        (tmp_path / "full").unlink()
        assert await receive(system, session_id, refused) == []
        sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= len(TEXTS))
        assert [message["message"] for message in sent] == TEXTS

        async def handed() -> list[str]:
            return list({job.message_id: json.loads(job.body)["content"] for job in jobs.messages}.values())

        found = await eventually(handed, lambda texts: len(texts) >= len(TEXTS))
        assert found == TEXTS
        answer = await system.post("/init", chatbotId=late)
        assert answer.is_success, answer.text
        await system.scan(answer.json()["sessionId"])
        await nothing_is_dead(system)
    with sqlite3.connect(tmp_path / "whatsapp-qr.db") as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    file.close()


def _of(process: Process) -> Callable[[], Awaitable[str]]:
    async def log() -> str:
        return process.log()

    return log

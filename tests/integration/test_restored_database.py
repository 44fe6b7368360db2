"""The database comes back as it was earlier, the broker does not: what docs/operations.md says happens, happens."""

import asyncio
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.operator import listed
from tests.servers import REPOSITORY, Broker, Postgres
from tests.system import CONSUMERS, Heard, System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage

SETTINGS = {
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
    "RECONCILE_PERIOD": "0.5",
    "RECONCILE_AGE": "1",
    "RECONCILE_PAUSE": "0.2",
    "HEARTBEAT_PERIOD": "1",
}
CUSTOMER = "5491122223333"


async def writes(system: System, session_id: str, content: str) -> httpx.Response:
    """Let the customer write."""
    body = {"from": CUSTOMER, "message": content, "messageId": content, "timestamp": int(time.time())}
    return await system.post("/incoming", sessionId=session_id, **body)


async def sends(system: System, chatbot_id: UUID, content: str) -> str:
    """Send under an idempotency key, the content; return the message's id."""
    body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": content}
    headers = {"Idempotency-Key": content}
    answer = await system.http.post(f"{system.api}/send", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["messageId"])


async def has_sent(system: System, session_id: str, *texts: str) -> None:
    """Wait until the gateway has taken exactly these."""

    async def sent() -> list[str]:
        return [one["message"] for one in await system.sent(session_id)]

    await eventually(sent, lambda seen: seen == list(texts))


async def stop(system: System, *names: str) -> None:
    """Stop processes, and wait until they have ended."""
    await asyncio.gather(*(one.stop() for name in names for one in system.named(name) if one.alive))


async def a_copy(system: System, postgres: Postgres, folder: Path) -> str:
    """Copy the database while nobody uses it; return the copy's URL."""
    if system.database_url.startswith("postgresql"):
        return await postgres.create_database(template=system.database_url.rpartition("/")[2])
    shutil.copy(folder / "whatsapp-qr.db", folder / "copy.db")
    return f"sqlite+aiosqlite:///{folder / 'copy.db'}"


@dataclass
class World:
    """What is known of a service from outside."""

    system: System
    jobs: Heard
    chatbot: UUID
    session: str
    away: UUID
    away_session: str
    """Whose link was lost when the backup was made."""


async def a_world(system: System) -> World:
    """Two linked chatbots; one has talked, the other's link is lost and a message waits for it."""
    await system.faults(receipts=False)
    jobs = await system.jobs()
    world = World(system, jobs, *await system.connect(), *await system.connect())
    await writes(system, world.session, "in before")
    await sends(system, world.chatbot, "out before")
    await has_sent(system, world.session, "out before")
    await jobs.arrived(1)
    await system.control(f"/sessions/{world.away_session}/drop")
    await eventually(lambda: system.status(world.away_session), lambda status: status == "DISCONNECTED")
    parked = SendMessage(chatbot_id=world.away, to=CUSTOMER, message="parked", message_id=str(uuid4()))
    await send_by_amqp(system, parked, "parked")
    await eventually(lambda: waiting(system, world.away))
    await stop(system, "ingress", *CONSUMERS)
    return world


async def what_happens_after_the_backup(world: World) -> tuple[str, str]:
    """Everything that the backup does not know; return the id of a message that was sent, and a new chatbot's session.

    At the end a doorbell, a callback and a command wait in the broker, and nobody runs.
    """
    system = world.system
    await system.start("ingress", *CONSUMERS)
    await system.control(f"/sessions/{world.away_session}/reconnect")
    await has_sent(system, world.away_session, "parked")
    _, new_session = await system.connect()
    await writes(system, world.session, "in after")
    after = await sends(system, world.chatbot, "out after")
    await has_sent(system, world.session, "out before", "out after")
    await world.jobs.arrived(2)
    await stop(system, "outbound-consumer")
    rung = await sends(system, world.chatbot, "rung")
    await eventually(lambda: system.message(rung))
    await stop(system, "conversation-consumer")
    await writes(system, world.session, "in waiting")
    await sends(system, world.chatbot, "out waiting")
    await stop(system, "ingress", "session-consumer")
    return after, new_session


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'whatsapp-qr.db'}"
    postgres: Postgres = request.getfixturevalue("shared_postgres")
    return await postgres.create_database()


@pytest.mark.one_database("postgres")
async def test_an_earlier_database_under_the_present_broker(
    database: str, shared_broker: Broker, shared_postgres: Postgres, tmp_path: Path
) -> None:
    """What waits in the broker is done; what only the rows knew is a dead letter or goes out under its old id."""
    async with running(await shared_broker.renew(), database, tmp_path, careful=True, **SETTINGS) as system:
        world = await a_world(system)
        backup = await a_copy(system, shared_postgres, tmp_path)
        after, new_session = await what_happens_after_the_backup(world)

        system.database_url = backup
        await system.start("ingress", *CONSUMERS)
        await has_sent(system, world.session, "out before", "out after", "out waiting")
        jobs = await world.jobs.arrived(3)
        assert [json.loads(job.body)["content"] for job in jobs] == ["in before", "in after", "in waiting"]
        # The row of the second is gone, and its number in the conversation is given again.
        assert [job.headers["conversation-sequence"] for job in jobs] == [1, 2, 2]
        assert await system.message(after) == {}
        # Sent again by whoever sent it, it is the same message: the gateway knows its id.
        assert await sends(system, world.chatbot, "out after") == after
        await eventually(lambda: system.message(after), lambda seen: seen and seen["deliveryStatus"] == "SENT")
        # PENDING in the copy, sent since: it goes out again, under the id that the gateway knows.
        await eventually(lambda: system.status(world.away_session), lambda status: status == "CONNECTED")
        await eventually(lambda: waiting(system, world.away), lambda found: not found)
        await has_sent(system, world.away_session, "parked")
        await has_sent(system, world.session, "out before", "out after", "out waiting")
        # Of what was made since the copy nobody knows anything: it is kept as dead letters.
        assert (await writes(system, new_session, "lost")).status_code == 200
        dead = await eventually(lambda: listed(system), lambda found: len(found) >= 2)
        assert sorted(one["reason"] for one in dead) == ["unknown_message", "unknown_session"]


@pytest.mark.one_database("postgres")
async def test_an_empty_broker_under_the_present_database(database: str, shared_broker: Broker, tmp_path: Path) -> None:
    """The sweeper rings for what waits to be sent, and hands over again what is marked, under the same ids."""
    eager = {"SWEEP_AGE": "1", "SWEEP_PERIOD": "0.5"}
    async with running(await shared_broker.renew(), database, tmp_path, careful=True, **SETTINGS, **eager) as system:
        world = await a_world(system)
        first = (await world.jobs.arrived(1))[0].message_id
        await system.start("ingress", "session-consumer", "conversation-consumer")
        await sends(system, world.chatbot, "rung in vain")
        await eventually(lambda: waiting(system, world.chatbot))
        await stop(system, "ingress", *CONSUMERS)

        assert system.connection is not None
        await system.connection.close()
        system.connection = system._jobs = None
        system.amqp_url = await shared_broker.renew()
        await system.start("ingress", *CONSUMERS)
        await has_sent(system, world.session, "out before", "rung in vain")
        jobs = await system.jobs()
        await mark_as_not_handed_over(database)
        assert {job.message_id for job in await jobs.arrived(1)} == {first}


async def mark_as_not_handed_over(database: str) -> None:
    """Run the statement of docs/operations.md, with a time long ago."""
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    statement = re.findall(r"(?m)^    (UPDATE messages .*);$", page)[0]
    engine = create_async_engine(database)
    async with engine.begin() as connection:
        await connection.execute(text(re.sub("[0-9]{4}-[0-9-]+", "2020-01-01", statement)))
    await engine.dispose()


async def waiting(system: System, chatbot_id: UUID) -> int:
    """Count a chatbot's messages that are PENDING."""
    conversations = (await system.get("/conversations", chatbotId=str(chatbot_id))).json()["data"]
    pages = [await system.get(f"/conversations/{one['id']}/messages") for one in conversations]
    return sum(row["deliveryStatus"] == "PENDING" for page in pages for row in page.json()["data"])

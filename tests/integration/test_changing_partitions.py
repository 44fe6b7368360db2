"""PARTITIONS is changed as docs/operations.md says, with real processes: nothing is lost, and the order is kept."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from service.messaging import topology
from tests.operator import listed, operate
from tests.servers import Broker
from tests.system import CONSUMERS, System, eventually, running

CHATBOTS = 8
# Lanes that take seconds: some are being sent from whenever something is stopped.
SETTINGS = {
    "SEND_RATE": "10",
    "SEND_BURST": "2",
    "SWEEP_AGE": "5",
    "SWEEP_PERIOD": "0.5",
    "HEARTBEAT_PERIOD": "1",
}
Linked = list[tuple[UUID, str]]


@asynccontextmanager
async def a_service(broker: Broker, folder: Path) -> AsyncIterator[tuple[System, Linked]]:
    """The service with 4 partitions, and linked chatbots."""
    database = f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
    async with running(await broker.renew(), database, folder, **SETTINGS) as system:
        await system.faults(receipts=False)
        yield system, [await system.connect() for _ in range(CHATBOTS)]


async def talk(system: System, linked: Linked, numbers: Iterable[int]) -> None:
    """Let each chatbot's customer write, and each chatbot send, one message for each number, in order."""

    async def one(chatbot_id: UUID, session_id: str) -> None:
        for number in numbers:
            customer = {"from": "5491122223333", "message": f"in {number}", "messageId": f"W{number}"}
            await taken(system, "/incoming", 200, sessionId=session_id, timestamp=int(time.time()), **customer)
            body = {"chatbotId": str(chatbot_id), "to": "5491122223333", "message": f"out {number}"}
            await taken(system, "/send", 202, **body)

    await asyncio.gather(*(one(*link) for link in linked))


async def taken(system: System, path: str, status: int, **body: Any) -> None:
    """Post under a key of its own."""
    key = {"Idempotency-Key": str(body["message"])}
    assert (await system.http.post(system.api + path, json=body, headers=key)).status_code == status


async def stop(system: System, *names: str) -> None:
    """Stop processes, and wait until they have ended."""
    ended = await asyncio.gather(*(one.stop() for name in names for one in system.named(name) if one.alive))
    assert set(ended) == {0}


async def emptied(broker: Broker, *, bases: tuple[str, ...]) -> None:
    """Wait until nothing lies in the partitions of these queues, also with no consumer."""
    vhost = broker.url.rpartition("/")[2]

    async def lying() -> int:
        listing = json.loads(await broker.ctl("list_queues", "-p", vhost, "name", "messages", "--formatter", "json"))
        return sum(one["messages"] for one in listing if one["name"].startswith(bases))

    await eventually(lying, lambda count: count == 0)


async def everything_came_in_order(system: System, linked: Linked, count: int) -> None:
    """So many messages of each customer were handed over, and so many of each chatbot sent, each once and in order."""
    jobs = await system.jobs()

    async def handed() -> dict[str, list[str]]:
        bodies = {job.message_id: json.loads(job.body) for job in jobs.messages}  # one may come twice, under one id
        by: dict[str, list[str]] = {str(chatbot_id): [] for chatbot_id, _ in linked}
        for body in bodies.values():
            by[body["chatbotId"]].append(body["content"])
        return by

    found = await eventually(handed, lambda seen: all(len(texts) >= count for texts in seen.values()))
    assert found == {str(chatbot_id): [f"in {number}" for number in range(count)] for chatbot_id, _ in linked}
    for _, session_id in linked:
        sent = await eventually(lambda one=session_id: system.sent(one), lambda seen: len(seen) >= count)
        assert [one["message"] for one in sent] == [f"out {number}" for number in range(count)]
    assert await listed(system) == []


@pytest.mark.parametrize("partitions", [6, pytest.param(2, marks=pytest.mark.long)])
async def test_drained_and_changed(shared_broker: Broker, tmp_path: Path, partitions: int) -> None:
    """More or fewer: the ingress is stopped, the queues run empty, everything starts with the new number."""
    async with a_service(shared_broker, tmp_path) as (system, linked):
        await system.jobs()
        await talk(system, linked, range(20))
        await stop(system, "ingress")
        await emptied(shared_broker, bases=(topology.SESSIONS.name, topology.CONVERSATIONS.name))
        await stop(system, *CONSUMERS)
        changed = {"PARTITIONS": str(partitions)}
        applied = await operate(system, "topology", "apply", **changed)
        assert applied.status == 0, applied.error
        channel = await system.channel()
        for left_over in {one.name for one in topology.queues(4)} - {one.name for one in topology.queues(partitions)}:
            await channel.queue_delete(left_over)
        processes = await system.start("ingress", *CONSUMERS, **changed)
        await talk(system, linked, range(20, 30))
        await everything_came_in_order(system, linked, 30)
        for process in processes:
            if process.name == "conversation-consumer":
                assert await process.metric(system.http, "whatsapp_qr_handled_total", outcome="rerouted") == 0


@pytest.mark.long
async def test_grown_while_the_door_is_open(shared_broker: Broker, tmp_path: Path) -> None:
    """More: the ingress takes everything meanwhile; what waits under the old number is passed on in order."""
    async with a_service(shared_broker, tmp_path) as (system, linked):
        await system.jobs()
        await talk(system, linked, range(10))
        applied = await operate(system, "topology", "apply", PARTITIONS="6")
        assert applied.status == 0, applied.error
        await stop(system, *CONSUMERS)
        await talk(system, linked, range(10, 30))
        consumers = await system.start(*CONSUMERS, PARTITIONS="6")
        await talk(system, linked, range(30, 40))
        await stop(system, "ingress")
        await emptied(shared_broker, bases=(topology.SESSIONS.name, topology.CONVERSATIONS.name))
        await system.start("ingress", PARTITIONS="6")
        await talk(system, linked, range(40, 50))
        await everything_came_in_order(system, linked, 50)
        conversation = next(one for one in consumers if one.name == "conversation-consumer")
        assert await conversation.metric(system.http, "whatsapp_qr_handled_total", outcome="rerouted") > 0

"""PARTITIONS is changed as docs/operations.md says, with real processes: nothing is lost, and the order is kept."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from service.messaging import topology
from tests.integration.singletons import rows_by_hand
from tests.operator import listed, operate
from tests.servers import Broker
from tests.system import CONSUMERS, System, eventually, free_ports, running

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
    async with running(await broker.renew(), database, folder, careful=True, **SETTINGS) as system:
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


class Talk:
    """Conversations that go on, one message after another, while something is done to the service."""

    def __init__(self, system: System, linked: Linked) -> None:
        self.said = 0
        self._goes_on = True
        self._task = asyncio.create_task(self._talk(system, linked))

    async def _talk(self, system: System, linked: Linked) -> None:
        while self._goes_on:
            await talk(system, linked, [self.said])
            self.said += 1

    async def grow(self, messages: int) -> None:
        """Wait until each chatbot and each customer has said so many more."""
        before = self.said

        async def more() -> int:
            assert not self._task.done(), self._task.exception()
            return self.said - before

        await eventually(more, lambda count: count >= messages)

    async def end(self) -> int:
        """Let them end; return how many messages each has said."""
        self._goes_on = False
        await self._task
        return self.said


@asynccontextmanager
async def talking(system: System, linked: Linked) -> AsyncIterator[Talk]:
    """Conversations that have ended by the end of the block."""
    conversations = Talk(system, linked)
    try:
        yield conversations
    finally:
        await conversations.end()


async def taken(system: System, path: str, status: int, **body: Any) -> None:
    """Post under a key of its own, again and again while no ingress is there."""
    key = {"Idempotency-Key": str(body["message"])}

    async def post() -> int:
        try:
            return (await system.http.post(system.api + path, json=body, headers=key)).status_code
        except httpx.TransportError:
            return 0

    assert await eventually(post, bool) == status


async def done(system: System, *command: str, **changed: str) -> None:
    """Run an operator's command that has to succeed."""
    answer = await operate(system, *command, **changed)
    assert answer.status == 0, answer.error


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
        await done(system, "topology", "apply", **changed)
        await done(system, "migrate", "--repartition", **changed)
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
    """More, while everybody goes on talking: what waits under the old number is passed on in order."""
    async with a_service(shared_broker, tmp_path) as (system, linked), talking(system, linked) as conversations:
        await system.jobs()
        await conversations.grow(10)
        await done(system, "topology", "apply", PARTITIONS="6")
        await stop(system, *CONSUMERS)
        await done(system, "migrate", "--repartition", PARTITIONS="6")
        await conversations.grow(20)
        consumers = await system.start(*CONSUMERS, PARTITIONS="6")
        await conversations.grow(10)
        await stop(system, "ingress")  # calls are repeated until another one is there
        await emptied(shared_broker, bases=(topology.SESSIONS.name, topology.CONVERSATIONS.name))
        await system.start("ingress", PARTITIONS="6")
        await conversations.grow(10)
        await everything_came_in_order(system, linked, await conversations.end())
        conversation = next(one for one in consumers if one.name == "conversation-consumer")
        assert await conversation.metric(system.http, "whatsapp_qr_handled_total", outcome="rerouted") > 0


async def test_who_disagrees_does_not_start(shared_broker: Broker, tmp_path: Path) -> None:
    """Every process with another number ends with a sentence; the number does not change while a consumer lives."""
    async with a_service(shared_broker, tmp_path) as (system, linked):
        for name in ("ingress", *CONSUMERS):
            process = system._process(name, PARTITIONS="6", HTTP_PORT=str(free_ports(1)[0]))
            await process.start()
            assert await process.ended() == 2
            assert "PARTITIONS is 6 here, and 4 in the database" in process.log()
        for command in (("dead-letters", "replay", "--all"), ("migrate",)):
            refused = await operate(system, *command, PARTITIONS="6")
            assert refused.status == 2
            assert "Set PARTITIONS=4" in refused.error
        refused = await operate(system, "migrate", "--repartition", PARTITIONS="6")
        assert refused.status == 2
        assert all(name in refused.error for name in ("whatsapp-qr.sessions", "whatsapp-qr-send"))
        await talk(system, linked, range(3))
        await everything_came_in_order(system, linked, 3)


async def test_a_consumer_that_was_cut_off_ends_when_the_number_has_changed(
    shared_broker: Broker, tmp_path: Path
) -> None:
    """A backup with another number is restored under a living service: whoever beats next finishes and ends."""
    async with a_service(shared_broker, tmp_path) as (system, _):
        async with rows_by_hand(system) as database:
            await database.transact(lambda tx: tx.execute(text("UPDATE deployment SET partitions = 6")))
        consumers = [one for name in CONSUMERS for one in system.named(name)]
        assert set(await asyncio.gather(*(one.ended() for one in consumers))) == {2}

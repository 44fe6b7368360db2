"""Processes whose clocks are wrong by ten minutes, some early and some late, do what they do with right ones."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from tests.faults.process import live
from tests.integration.singletons import sample
from tests.system import Process, System, eventually, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.partitions import partition_of

AHEAD, BEHIND = {"FAULTS_SKEW": "600"}, {"FAULTS_SKEW": "-600"}
# Whatever is minutes old by a wrong clock would be mended, expired or taken at once.
SETTINGS = {
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
    "SEND_EXPIRY": "120",
    "GATEWAY_TIMEOUT": "1",
    "HEARTBEAT_PERIOD": "1",
    "SWEEP_PERIOD": "0.5",
    "SWEEP_AGE": "60",
    "RECONCILE_PERIOD": "0.5",
    "RECONCILE_AGE": "60",
    "RECONCILE_PAUSE": "0.5",
    "LEASE": "2",
}
CUSTOMER = "5491144445555"
TEXTS = 15
SINGLETON_JOBS = ("sweeper", "reconciler", "dead-letter-store")


@asynccontextmanager
async def disagreeing(amqp_url: str, database_url: str, folder: Path) -> AsyncIterator[System]:
    """Run the service; of two processes of a kind one is early and one is late."""
    system = System(amqp_url, database_url, folder, entry=live, **SETTINGS)
    try:
        await system.migrate()
        await system.start("simulator")
        await system.start("ingress", "outbound-consumer", **BEHIND)
        await system.start("session-consumer", "conversation-consumer", "outbound-consumer", **AHEAD)
        await system.start("session-consumer", **BEHIND)
        yield system
    finally:
        await system.close()


async def command(system: System, chatbot_id: UUID, text: str, **fields: datetime) -> None:
    await send_by_amqp(system, SendMessage(chatbot_id=chatbot_id, to=CUSTOMER, message=text, **fields), uuid4().hex)


async def converse(system: System, links: list[tuple[UUID, str]], texts: list[str]) -> None:
    """Let each text go both ways in each session."""

    async def one(chatbot_id: UUID, session_id: str) -> None:
        for text in texts:
            report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": int(time.time()), "message": text}
            assert (await system.post("/incoming", **report, messageId=uuid4().hex)).status_code == 200
            body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": text}
            assert (await system.post("/send", **body)).status_code == 202

    await asyncio.gather(*(one(*link) for link in links))


async def all_arrived(system: System, links: list[tuple[UUID, str]], texts: list[str]) -> None:
    """Each text arrived once at either end, in order."""
    jobs = await system.jobs()
    for chatbot_id, session_id in links:

        async def handed(chatbot_id: UUID = chatbot_id) -> list[str]:
            bodies = {job.message_id: json.loads(job.body) for job in jobs.messages}
            return [body["content"] for body in bodies.values() if body["chatbotId"] == str(chatbot_id)]

        sent = await eventually(lambda at=session_id: system.sent(at), lambda found: len(found) >= len(texts))
        assert [message["message"] for message in sent] == texts
        assert await eventually(handed, lambda found: len(found) >= len(texts)) == texts


async def mended(system: System) -> float:
    """Return how often a process found something forgotten."""
    consumers = [process for process in system.named("session-consumer") if process.alive]
    return sum([await one.metric(system.http, "whatsapp_qr_redriven_total") for one in consumers])


async def held_jobs(process: Process) -> float:
    return sum([await sample(process, "singleton_job_held", singleton_job=job) for job in SINGLETON_JOBS])


async def one_holder(system: System) -> tuple[Process, Process]:
    """Wait until one of two session consumers does all jobs, each done once; return it and the other."""
    first, second = system.named("session-consumer")

    async def held() -> list[float]:
        return [await held_jobs(first), await held_jobs(second)]

    found = await eventually(held, lambda counts: sum(counts) == len(SINGLETON_JOBS))
    return (first, second) if found[0] >= found[1] else (second, first)


async def a_link_per_partition(system: System) -> list[tuple[UUID, str]]:
    chatbots: dict[int, UUID] = {}
    while len(chatbots) < 4:
        chatbot_id = uuid4()
        chatbots.setdefault(partition_of(str(chatbot_id), 4), chatbot_id)
    return list(await asyncio.gather(*map(system.connect, chatbots.values())))


async def test_wrong_clocks_change_no_message(clean_broker: str, postgres_database: str, tmp_path: Path) -> None:
    """Messages go both ways once and in order, also when one of two senders is killed; nobody mends what is whole."""
    async with disagreeing(clean_broker, postgres_database, tmp_path) as system:
        links = await a_link_per_partition(system)
        senders = system.named("outbound-consumer")

        async def shares() -> list[float]:
            return [await sample(one, "partitions_owned", queue="whatsapp-qr-send") for one in senders]

        await eventually(shares, lambda found: found == [2, 2])
        texts = [str(number) for number in range(TEXTS)]
        await converse(system, links, texts)
        await all_arrived(system, links, texts)
        assert await mended(system) == 0
        # Killed in the middle of a call, a sender leaves a claim: the other waits until it ends, for some seconds.
        for victim, skew in zip(senders, (BEHIND, AHEAD), strict=True):
            await system.faults(latency=0.3)
            more = [f"{skew} {number}" for number in range(3)]
            await converse(system, links, more)
            await victim.kill()
            killed = time.monotonic()
            await system.faults()
            texts += more
            await all_arrived(system, links, texts)
            assert time.monotonic() - killed < 30
            await system.start("outbound-consumer", **skew)


async def test_wrong_clocks_expire_nothing_early_or_late(
    clean_broker: str, postgres_database: str, tmp_path: Path
) -> None:
    """What waits for its session expires when its time has come, and what may wait longer is sent."""
    async with disagreeing(clean_broker, postgres_database, tmp_path) as system:
        chatbot_id, session_id = await system.connect()
        events = await system.hear("whatsapp-qr.events", "message.failed", "message.sent")
        await system.control(f"/sessions/{session_id}/drop")
        await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
        at = datetime.now(UTC) + timedelta(seconds=4)
        await command(system, chatbot_id, "in time")
        await command(system, chatbot_id, "too late", expires_at=at)
        (failed,) = await events.arrived(1)
        assert datetime.now(UTC) - at < timedelta(minutes=1)
        body = json.loads(failed.body)
        assert (failed.type, body["errorCode"]) == ("message.failed", "expired")
        assert timedelta() <= datetime.fromisoformat(body["occurredAt"]) - at < timedelta(minutes=1)
        await system.control(f"/sessions/{session_id}/reconnect")
        sent = await eventually(lambda: system.sent(session_id))
        assert [message["message"] for message in sent] == ["in time"]


async def test_wrong_clocks_pass_singleton_jobs_on(clean_broker: str, postgres_database: str, tmp_path: Path) -> None:
    """The singleton jobs of a killed process are taken over within seconds by a process with another clock."""
    async with disagreeing(clean_broker, postgres_database, tmp_path) as system:
        for _ in (AHEAD, BEHIND):
            holder, other = await one_holder(system)
            await holder.kill()
            killed = time.monotonic()
            await eventually(lambda other=other: held_jobs(other), lambda count: count == len(SINGLETON_JOBS))
            assert time.monotonic() - killed < 20
            system.processes.remove(holder)
            await system.start("session-consumer", FAULTS_SKEW=holder._environment["FAULTS_SKEW"])
        await system.connect()
        assert await mended(system) == 0

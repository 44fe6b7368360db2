"""What Kubernetes does to a pod, with real processes: SIGTERM in the middle of work, and a broker that goes and comes.

Each ends with status 0 within the grace that its manifest gives, has acknowledged what it was at, and done it once.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx

from service.messaging import topology
from tests.amqp import Amqp
from tests.deploy.manifests import objects, workload
from tests.servers import Broker
from tests.system import CONSUMERS, Process, System, eventually, running

CUSTOMER = "5491155556666"
# What the gateway is slow at lasts for longer than a machine may stand still, and its time is not up before.
LATENCY, PATIENT = 8, {"GATEWAY_TIMEOUT": "30", "PREFETCH": "16"}
PARTITIONS = 4


@asynccontextmanager
async def terminated(system: System, role: str) -> AsyncIterator[Process]:
    """Send SIGTERM, wait until the process has heard it, and at the end until it is gone: in time, with status 0."""
    (process,) = system.named(role)
    spec = workload(objects("overlays/production"), f"whatsapp-qr-{role}").spec
    hook = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert process.alive
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: listens(process), lambda listening: not listening)
    yield process
    assert await process.ended() == 0
    assert time.monotonic() - started < spec["terminationGracePeriodSeconds"] - hook


async def listens(process: Process) -> bool:
    """Say whether a process takes new connections."""
    try:
        async with httpx.AsyncClient() as http:  # a connection of before may be served to its end
            await http.get(f"{process.url}/livez")
    except httpx.TransportError:
        return False
    return True


async def left_over(system: System, queue: topology.PartitionedQueue) -> int:
    """How many messages nobody has acknowledged: those of a consumer that is gone are back in their queue."""
    async with Amqp(system.amqp_url) as amqp:
        return sum([await amqp.waiting(queue.queue_name(number)) for number in range(PARTITIONS)])


async def test_a_session_consumer_finishes_its_command(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Told to stop while the gateway opens a session, it waits for the answer and announces it, once."""
    async with running(clean_broker, sqlite_database, tmp_path, careful=True, **PATIENT) as system:
        await system.faults(init_latency=LATENCY, no_qr_code=True)
        events = await system.hear()
        waiting = asyncio.create_task(system.post("/init", chatbotId=str(uuid4())))
        await eventually(lambda: at_the_gateway(system))
        assert not waiting.done()
        async with terminated(system, "session-consumer"):
            assert await left_over(system, topology.SESSIONS) == 0  # it has the command still
        assert (await waiting).status_code == 200
        assert [event.type for event in await events.arrived()] == ["session.connecting"]
        assert await left_over(system, topology.SESSIONS) == 0


async def at_the_gateway(system: System) -> list[object]:
    """Which sessions the gateway has."""
    gateway = f"http://127.0.0.1:{system.simulator_port}"
    sessions: list[object] = (await system.http.get(f"{gateway}/sessions")).json()["sessions"]
    return sessions


async def test_a_conversation_consumer_finishes_its_transaction(
    clean_broker: str, postgres_database: str, tmp_path: Path
) -> None:
    """Told to stop while its transaction waits for a lock, it commits, hands the message over, and takes no other."""
    async with running(clean_broker, postgres_database, tmp_path, careful=True) as system:
        _, session_id = await system.connect()
        jobs = await system.jobs()
        database = await asyncpg.connect(postgres_database.replace("+asyncpg", ""))
        transaction = database.transaction()
        await transaction.start()
        await database.execute("LOCK TABLE messages IN SHARE ROW EXCLUSIVE MODE")
        report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": int(time.time())}
        assert (await system.post("/incoming", **report, message="Hola", messageId="WA1")).status_code == 200
        await eventually(lambda: database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        async with terminated(system, "conversation-consumer"):
            assert not jobs.messages
            await transaction.rollback()
            await database.close()
        await jobs.arrived()
        assert await left_over(system, topology.CONVERSATIONS) == 0
        await system.start("conversation-consumer")
        assert (await system.post("/incoming", **report, message="again", messageId="WA2")).status_code == 200
        assert len(await jobs.arrived(2)) == 2


async def test_an_outbound_consumer_finishes_its_send(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Told to stop while the gateway sends, it waits for the answer and records it: the message went out once."""
    async with running(clean_broker, sqlite_database, tmp_path, careful=True, **PATIENT) as system:
        chatbot_id, session_id = await system.connect()
        await system.faults(answer_latency=LATENCY)
        answer = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="once")
        await eventually(lambda: system.sent(session_id))
        assert (await system.message(answer.json()["messageId"]))["sentAt"] is None
        async with terminated(system, "outbound-consumer"):
            pass
        message = await system.message(answer.json()["messageId"])
        assert (bool(message["sentAt"]), message["attempts"]) == (True, 0)
        assert len(await system.sent(session_id)) == 1
        assert await left_over(system, topology.SENDS) == 0


async def test_an_ingress_answers_its_caller(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Told to stop while a call waits for an outcome that does not come, it gives that call its answer."""
    async with running(clean_broker, sqlite_database, tmp_path, careful=True) as system:
        (session_consumer,) = system.named("session-consumer")
        assert await session_consumer.stop() == 0
        waiting = asyncio.create_task(system.post("/init", chatbotId=str(uuid4())))
        await eventually(lambda: left_over(system, topology.SESSIONS))
        async with terminated(system, "ingress"):
            assert not waiting.done()
        assert (await waiting).status_code == 202
        assert await left_over(system, topology.SESSIONS) == 1


async def test_a_broker_that_is_away_restarts_no_pod(
    breakable_broker: Broker, sqlite_database: str, tmp_path: Path
) -> None:
    """All processes stay alive; consumers are not ready until it is back; then the same processes go on."""
    async with running(breakable_broker.url, sqlite_database, tmp_path, careful=True) as system:
        chatbot_id, session_id = await system.connect()
        roles = [process for process in system.processes if process.name in {"ingress", *CONSUMERS}]
        await breakable_broker.stop()
        for process in roles:
            ready = process.name == "ingress"  # it has to answer callers that their call is not taken
            await eventually(
                lambda process=process: process.ready(system.http), lambda found, ready=ready: found is ready
            )
            for path in ("/livez", "/metrics"):
                assert (await system.http.get(process.url + path)).status_code == 200
        await breakable_broker.start()
        for process in roles:
            await eventually(lambda process=process: process.ready(system.http))

        async def sent() -> int:
            body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": "after"}
            call = system.http.post(f"{system.api}/send", json=body, headers={"Idempotency-Key": "after"})
            return (await call).status_code

        await eventually(sent, lambda status: status == 202)
        await eventually(lambda: system.sent(session_id))
        assert len(roles) == 4
        assert all(process.alive for process in roles)

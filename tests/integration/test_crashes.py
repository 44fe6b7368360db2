"""What a kill -9 leaves is done by the next process: nothing is lost, nothing goes out twice, the order stays."""

import asyncio
import signal
import time
from pathlib import Path
from uuid import uuid4

from tests.system import CONSUMERS, System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage

MESSAGES = 40


async def kill_and_replace(system: System, name: str) -> None:
    """End the running process of a kind as a power cut would, and start another."""
    (running_one,) = [process for process in system.named(name) if process.alive]
    running_one.send_signal(signal.SIGKILL)
    await running_one.ended()
    await system.start(name)


async def test_a_killed_consumer_loses_and_doubles_nothing(
    clean_broker: str, database_url: str, tmp_path: Path
) -> None:
    """Each consumer in turn is killed while messages flow both ways: each arrives once, in order; a job has one id."""
    fast = {"SEND_RATE": "1000", "SEND_BURST": "1000", "GATEWAY_TIMEOUT": "2"}
    async with running(clean_broker, database_url, tmp_path, careful=True, **fast) as system:
        chatbot_id, session_id = await system.connect()
        jobs, events = await system.jobs(), await system.hear()
        texts: list[str] = []

        async def flow(batch: list[str]) -> None:
            for text in batch:
                await send_by_amqp(system, SendMessage(chatbot_id=chatbot_id, to="5491144445555", message=text), text)
                report = {"sessionId": session_id, "from": "5491144445555", "timestamp": int(time.time())}
                answer = await system.post("/incoming", **report, message=text, messageId=uuid4().hex)
                assert answer.status_code == 200

        async def job_ids() -> set[str | None]:
            return {job.message_id for job in jobs.messages}

        for victim in CONSUMERS:
            batch = [f"{victim} {number}" for number in range(MESSAGES)]
            handed, out = len(jobs.messages), len(await system.sent(session_id))
            flowing = asyncio.create_task(flow(batch))
            await jobs.arrived(handed + 5)
            await eventually(lambda: system.sent(session_id), lambda found, out=out: len(found) > out)
            await kill_and_replace(system, victim)
            await flowing
            texts += batch
            sent = await eventually(
                lambda: system.sent(session_id), lambda found, texts=texts: len(found) >= len(texts)
            )
            assert [message["message"] for message in sent] == texts
            await eventually(job_ids, lambda ids, texts=texts: len(ids) >= len(texts))

        async def event_ids() -> tuple[int, int]:
            ids = events.ids()
            return len(ids["message.received"]), len(ids["message.read"])

        assert await eventually(event_ids, lambda found: min(found) >= len(texts)) == (len(texts), len(texts))
        assert len(await job_ids()) == len(texts)
        status = await system.post("/init", chatbotId=str(chatbot_id))
        assert status.json() == {"success": True, "sessionId": session_id, "status": "CONNECTED"}

"""What a kill -9 leaves is done by the next process: nothing is lost, nothing goes out twice, the order stays."""

import asyncio
import signal
import time
from pathlib import Path
from uuid import uuid4

import pytest

from tests.system import CONSUMERS, System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage

MESSAGES = 60


async def kill_and_replace(system: System, name: str) -> None:
    """End the running process of a kind as a power cut would, and start another."""
    (running_one,) = [process for process in system.named(name) if process.alive]
    running_one.send_signal(signal.SIGKILL)
    await running_one.ended()
    await system.start(name)


@pytest.mark.parametrize("victim", CONSUMERS)
async def test_a_killed_consumer_loses_and_doubles_nothing(
    clean_broker: str, database_url: str, tmp_path: Path, victim: str
) -> None:
    """Each consumer is killed while messages flow both ways: each arrives once, in order, and every job has one id."""
    fast = {"SEND_RATE": "1000", "SEND_BURST": "1000", "GATEWAY_TIMEOUT": "2"}
    async with running(clean_broker, database_url, tmp_path, **fast) as system:
        chatbot_id, session_id = await system.connect()
        jobs, events = await system.jobs(), await system.hear()
        texts = [f"message {number}" for number in range(MESSAGES)]

        async def answers() -> None:
            for text in texts:
                await send_by_amqp(system, SendMessage(chatbot_id=chatbot_id, to="5491144445555", message=text), text)

        async def customer() -> None:
            for number, text in enumerate(texts):
                report = {"sessionId": session_id, "from": "5491144445555", "timestamp": int(time.time())}
                answer = await system.post("/incoming", **report, message=text, messageId=f"{uuid4().hex}-{number}")
                assert answer.status_code == 200

        flowing = asyncio.gather(answers(), customer())
        if victim == "outbound-consumer":
            await eventually(lambda: system.sent(session_id))
        else:
            await jobs.arrived(5)
        await kill_and_replace(system, victim)
        await flowing

        sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= MESSAGES)
        assert [message["message"] for message in sent] == texts
        await events.arrived(MESSAGES, "message.read")

        async def job_ids() -> set[str | None]:
            return {job.message_id for job in jobs.messages}

        assert len(await eventually(job_ids, lambda ids: len(ids) >= MESSAGES)) == MESSAGES
        assert len(events.ids()["message.received"]) == MESSAGES
        assert len(events.ids()["message.read"]) == MESSAGES
        status = await system.post("/init", chatbotId=str(chatbot_id))
        assert status.json() == {"success": True, "sessionId": session_id, "status": "CONNECTED"}

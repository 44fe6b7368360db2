"""Connections to the broker and to PostgreSQL that are cut or fall silent heal within 30 s, without help."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.integration.test_outages import dead_letters, in_time
from tests.proxy import Proxy
from tests.system import CONSUMERS, System, eventually, running

CUSTOMER = "5491144445555"
HEALED = 30
FAST = {"SEND_RATE": "1000", "SEND_BURST": "1000"}


async def told(system: System, chatbot_id: UUID, session_id: str) -> set[tuple[int, str]]:
    """Make every kind of call at once; return the answers, each of which has to come within 5 s."""
    report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": int(time.time()), "messageId": uuid4().hex}
    with system.transport.careless():
        answers = await asyncio.gather(
            in_time(system.post("/incoming", **report, message="nobody hears it")),
            in_time(system.post("/webhook", type="connected", sessionId=session_id, data={})),
            in_time(system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="nobody hears it")),
            in_time(system.post("/init", chatbotId=str(chatbot_id))),
            in_time(system.get(f"/session/{chatbot_id}")),
        )
    assert all(answer.headers["retry-after"] for answer in answers)
    return {(answer.status_code, answer.json()["code"]) for answer in answers}


async def all_ready(system: System) -> None:
    for process in system.processes:
        if process.name in CONSUMERS:
            await eventually(lambda process=process: process.ready(system.http))


async def both_ways(system: System, chatbot_id: UUID, session_id: str) -> None:
    """Send and receive one message, as callers who try again until they are heard."""
    text = f"message {uuid4()}"
    report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": int(time.time()), "messageId": uuid4().hex}

    async def taken(path: str, headers: dict[str, str], **body: Any) -> bool:
        return (await system.http.post(system.api + path, json=body, headers=headers)).is_success

    await eventually(lambda: taken("/incoming", {}, **report, message=text))
    key = {"Idempotency-Key": text}
    await eventually(lambda: taken("/send", key, chatbotId=str(chatbot_id), to=CUSTOMER, message=text))

    async def sent() -> list[str]:
        return [message["message"] for message in await system.sent(session_id)]

    async def handed() -> list[str]:
        return [json.loads(job.body)["content"] for job in (await system.jobs()).messages]

    await eventually(sent, lambda found: found.count(text) == 1)
    await eventually(handed, lambda found: text in found)


@pytest.mark.parametrize("loss", ["cut", "silent"])
async def test_lost_connections_heal_within_30_s(
    clean_broker: str, postgres_database: str, tmp_path: Path, loss: str
) -> None:
    """All of all processes at once: callers are told in time, then everything is ready and flows again, in time."""
    async with (
        Proxy(clean_broker) as broker,
        Proxy(postgres_database) as database,
        running(
            clean_broker,
            postgres_database,
            tmp_path,
            careful=True,
            AMQP_URL=broker.url,
            DATABASE_URL=database.url,
            **FAST,
        ) as system,
    ):
        chatbot_id, session_id = await system.connect()
        await both_ways(system, chatbot_id, session_id)
        for proxy in (broker, database):
            assert proxy.open
            if loss == "cut":
                proxy.refuse()
            else:
                proxy.lose()
        assert await told(system, chatbot_id, session_id) == {
            (503, "broker_unavailable"),
            (503, "database_unavailable"),
        }
        for proxy in (broker, database):
            proxy.heal()
        healed = time.monotonic()
        await both_ways(system, chatbot_id, session_id)
        await all_ready(system)
        assert time.monotonic() - healed < HEALED
        assert await dead_letters(system) == 0

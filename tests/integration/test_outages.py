"""What happens while the database or the broker is away: callbacks are taken, callers are told, everything resumes."""

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from uuid import uuid4

from service.persistence.database import Database
from service.persistence.tables import DeadLetterRow
from tests.component.rows import all_of
from tests.conftest import Breakable
from tests.servers import Broker
from tests.system import System, eventually, running

CUSTOMER = "5491112345678"


async def in_time(call: Awaitable[Any], seconds: float = 5.0) -> Any:
    """Return the answer of a call that has to come within so many seconds."""
    started = time.monotonic()
    answer = await call
    assert time.monotonic() - started < seconds
    return answer


async def dead_letters(system: System) -> int:
    """How many dead letters there are, in their table or on the way there."""
    channel = await system.channel()
    queue = await channel.get_queue("whatsapp-qr.dead-letters")
    database = Database(system.database_url)
    stored = len(await all_of(database, DeadLetterRow))
    await database.close()
    return stored + (queue.declaration_result.message_count or 0)


def incoming(session_id: str, text: str) -> dict[str, Any]:
    """A customer's message as the gateway posts it."""
    return {
        "sessionId": session_id,
        "from": CUSTOMER,
        "message": text,
        "messageId": f"WA{uuid4().hex}",
        "timestamp": int(time.time()),
    }


async def test_callbacks_are_taken_while_the_database_is_away(
    clean_broker: str, breakable_database: Breakable, tmp_path: Path
) -> None:
    """With the database away /incoming and /webhook answer 200, reads answer 503; all is applied when it is back."""
    async with running(clean_broker, breakable_database.url, tmp_path, careful=True) as system:
        chatbot_id, session_id = await system.connect()
        consumer = system.named("conversation-consumer")[0]
        texts = [f"while away {number}" for number in range(5)]
        async with breakable_database.away():
            with system.transport.careless():
                unread = await in_time(system.get(f"/session/{chatbot_id}"))
            for text in texts:
                assert (await in_time(system.post("/incoming", **incoming(session_id, text)))).status_code == 200
            report = {"type": "disconnected", "sessionId": session_id, "data": {"reason": "logged_out"}}
            await system.control(f"/sessions/{session_id}/drop")  # so that the gateway agrees
            assert (await in_time(system.post("/webhook", **report))).status_code == 200
            if unread.status_code != 200:  # a SQLite file that is locked against writers may still be read
                assert (unread.status_code, unread.json()["code"]) == (503, "database_unavailable")
                assert unread.headers["retry-after"]
            await eventually(lambda: consumer.ready(system.http), lambda ready: not ready)
            assert (await system.http.get(f"http://127.0.0.1:{system.ingress_port}/readyz")).status_code == 200

        async def stored() -> list[str]:
            page = (await system.get("/conversations", chatbotId=str(chatbot_id))).json()
            if not page.get("data"):
                return []
            found = (await system.get(f"/conversations/{page['data'][0]['id']}/messages")).json()
            return [row["content"] for row in found["data"]]

        assert await eventually(stored, lambda found: len(found) >= 5) == texts
        await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
        await eventually(lambda: consumer.ready(system.http))
        assert await dead_letters(system) == 0


async def test_callers_are_told_while_the_broker_is_away(
    breakable_broker: Broker, sqlite_database: str, tmp_path: Path
) -> None:
    """With the broker stopped every writing call answers 503 within 5 s; all processes recover by themselves."""
    async with running(breakable_broker.url, sqlite_database, tmp_path, careful=True) as system:
        chatbot_id, session_id = await system.connect()
        await breakable_broker.stop()
        with system.transport.careless():
            refused = await asyncio.gather(
                in_time(system.post("/incoming", **incoming(session_id, "lost?"))),
                in_time(system.post("/webhook", type="connected", sessionId=session_id, data={})),
                in_time(system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="lost?")),
                in_time(system.post("/init", chatbotId=str(chatbot_id))),
            )
        assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(503, "broker_unavailable")}
        assert all(answer.headers["retry-after"] for answer in refused)
        for process in system.processes:
            if process.name.endswith("consumer"):
                await eventually(lambda process=process: process.ready(system.http), lambda ready: not ready)
        await breakable_broker.start()
        for process in system.processes:
            if process.name != "migrate":
                await eventually(lambda process=process: process.ready(system.http))

        async def taken() -> int:
            return (await system.post("/incoming", **incoming(session_id, "after"))).status_code

        await eventually(taken, lambda status: status == 200)
        jobs = await system.jobs()
        await jobs.arrived(1)
        sent = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="after")
        assert sent.status_code == 202
        await eventually(
            lambda: system.message(sent.json()["messageId"]), lambda found: found.get("deliveryStatus") == "READ"
        )
        assert (await system.post("/init", chatbotId=str(chatbot_id))).json()["status"] == "CONNECTED"
        assert await dead_letters(system) == 0

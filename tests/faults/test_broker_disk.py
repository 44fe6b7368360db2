"""A 2xx answer means that RabbitMQ has the request on disk: it is there after a kill -9 of the broker."""

import asyncio
import json
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tests.integration.test_outages import dead_letters
from tests.servers import Broker
from tests.system import System, eventually, running

if TYPE_CHECKING:
    import httpx

CUSTOMER = "5491144445555"
CALLERS = 8
ACCEPTED_BEFORE = 60
FAST = {"SEND_RATE": "1000", "SEND_BURST": "1000"}


class Callers:
    """Callbacks and sends, as many at once as there are callers; remembers what was accepted."""

    def __init__(self, system: System, chatbot_id: UUID, session_id: str) -> None:
        self.system = system
        self.chatbot_id = chatbot_id
        self.session_id = session_id
        self.refused: list[httpx.Response] = []
        self.received: list[str] = []
        self.sent: list[str] = []
        self.slowest = 0.0
        self._numbers = count()

    @property
    def accepted(self) -> int:
        return len(self.received) + len(self.sent)

    async def call(self) -> None:
        """Call until a call is refused."""
        while not self.refused:
            text = f"message {next(self._numbers)}"
            report = {"sessionId": self.session_id, "from": CUSTOMER, "timestamp": int(time.time())}
            await self._post(self.received, text, "/incoming", **report, message=text, messageId=text)
            await self._post(self.sent, text, "/send", chatbotId=str(self.chatbot_id), to=CUSTOMER, message=text)

    async def _post(self, accepted: list[str], text: str, path: str, **body: Any) -> None:
        began = time.monotonic()
        answer = await self.system.post(path, **body)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if answer.is_success:
            accepted.append(text)
        else:
            self.refused.append(answer)


async def test_what_was_accepted_outlives_a_kill_of_the_broker(
    breakable_broker: Broker, sqlite_database: str, tmp_path: Path
) -> None:
    """Every callback and send with a 2xx right before the kill arrives; the others got 503 within 5 s."""
    async with running(breakable_broker.url, sqlite_database, tmp_path, careful=True, **FAST) as system:
        chatbot_id, session_id = await system.connect()
        (consumer,) = system.named("conversation-consumer")
        assert await consumer.stop() == 0  # so that all waits in the broker
        await breakable_broker.keep_declarations()
        callers = Callers(system, chatbot_id, session_id)

        async def accepted() -> int:
            return callers.accepted

        with system.transport.careless():
            calling = [asyncio.create_task(callers.call()) for _ in range(CALLERS)]
            await eventually(accepted, lambda found: found >= ACCEPTED_BEFORE)
            await breakable_broker.kill()
            await asyncio.gather(*calling)
        assert {(answer.status_code, answer.json()["code"]) for answer in callers.refused} == {
            (503, "broker_unavailable")
        }
        assert callers.slowest < 5
        await breakable_broker.start()
        jobs = await system.jobs()
        await system.start("conversation-consumer")

        async def missing() -> set[str]:
            handed = {json.loads(job.body)["content"] for job in jobs.messages}
            out = {message["message"] for message in await system.sent(session_id)}
            return set(callers.received) - handed | set(callers.sent) - out

        await eventually(missing, lambda found: not found)
        assert await dead_letters(system) == 0

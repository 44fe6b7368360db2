"""Following a session over real HTTP: what a page that shows a QR code gets to see."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.system import NewSystem, System, eventually

KEY = "k" * 32


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    async with new_system(request.param, API_KEYS=KEY) as system:
        yield system


class Followed:
    """The events of one stream, as a client reads them."""

    def __init__(self) -> None:
        self.events: list[dict[str, str]] = []
        self.headers = httpx.Headers()
        self.ended = False

    async def read(self, system: System, session_id: str, **headers: str) -> None:
        async with system.http.stream(
            "GET", f"{system.api}/events/{session_id}", headers=headers, timeout=None
        ) as answer:
            assert answer.status_code == 200
            self.headers, event = answer.headers, {}
            async for line in answer.aiter_lines():
                if not line:
                    self.events += [event] if event else []
                    event = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = value
        self.ended = True

    async def states(self) -> list[dict[str, Any]]:
        return [json.loads(event["data"]) for event in self.events]

    async def over(self) -> bool:
        return self.ended

    async def becomes(self, status: str) -> dict[str, Any]:
        states = await eventually(self.states, lambda seen: bool(seen) and seen[-1]["status"] == status)
        last: dict[str, Any] = states[-1]
        return last


@asynccontextmanager
async def following(system: System, session_id: str, **headers: str) -> AsyncIterator[Followed]:
    followed = Followed()
    task = asyncio.create_task(followed.read(system, session_id, **headers))
    try:
        yield followed
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_link_is_followed_to_its_end(system: System) -> None:
    """The QR code as soon as it is there, its scan, the end of the link: each state as GET /session shows it."""
    chatbot_id = str(uuid4())
    session_id = (await system.post("/init", chatbotId=chatbot_id)).json()["sessionId"]
    async with following(system, session_id) as followed:
        state = await followed.becomes("QR_READY")
        assert state["qrCode"].startswith("data:image/png;base64,")
        assert followed.headers["content-type"].startswith("text/event-stream")
        assert followed.headers["cache-control"] == "no-cache"
        await system.control(f"/sessions/{session_id}/scan", phoneNumber="5491100000000")
        state = await followed.becomes("CONNECTED")
        assert (state["qrCode"], state["phoneNumber"]) == (None, "5491100000000")
        assert state == (await system.get(f"/session/{chatbot_id}")).json()["data"]
        await system.post("/disconnect", chatbotId=chatbot_id)
        await followed.becomes("DISCONNECTED")
        assert {event["event"] for event in followed.events} == {"session"}
        versions = [int(event["id"]) for event in followed.events]
        assert versions == sorted(set(versions))
    # Who comes again is shown what is new.
    async with following(system, session_id, **{"Last-Event-ID": str(versions[-1])}) as again:
        await system.post("/init", chatbotId=chatbot_id)
        await again.becomes("QR_READY")
        assert int(again.events[0]["id"]) > versions[-1]
    await system.post("/disconnect", chatbotId=chatbot_id)


async def test_it_ends_with_the_chatbot(system: System) -> None:
    """Then the session is not there any more: who comes again is told 404."""
    chatbot_id, session_id = await system.connect()
    async with following(system, session_id) as followed:
        await followed.becomes("CONNECTED")
        await system.http.delete(f"{system.api}/chatbots/{chatbot_id}")
        await eventually(followed.over)
    answer = await system.get(f"/events/{session_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_session")


async def test_only_with_a_key(system: System) -> None:
    """It shows what links a phone."""
    _, session_id = await system.connect()
    async with httpx.AsyncClient() as stranger:
        answer = await stranger.get(f"{system.api}/events/{session_id}")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_an_ingress_that_is_told_to_end_ends_its_streams(system: System) -> None:
    """At once, in order: it does not wait for streams until its time is up and cut them off."""
    _, session_id = await system.connect()
    [ingress] = system.named("ingress")
    async with following(system, session_id) as followed:
        await followed.becomes("CONNECTED")
        ingress.send_signal(signal.SIGTERM)
        await eventually(followed.over)
    assert await ingress.ended() == 0
    assert "graceful shutdown exceeded" not in ingress.log()
    await ingress.start()
    await eventually(lambda: ingress.ready(system.http))

"""Calls that cannot be accepted say so within 5 s, however slowly everything behind them fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.ingress.app import build_ingress
from service.ingress.keys import Keys
from service.ingress.waiting import Waiters
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from tests.component.doors import Silence
from tests.component.rows import a_session
from tests.proxy import Proxy

T = TypeVar("T")


class SlowDatabase(Database):
    """Answers just before a reader gives up."""

    async def read(self, work: Callable[[AsyncSession], Awaitable[T]], *, seconds: float | None = None) -> T:
        assert seconds is not None
        answer = await super().read(work)
        await asyncio.sleep(seconds - 0.1)
        return answer


@pytest.mark.parametrize("path", ["send", "init", "disconnect"])
async def test_calls_say_503_in_time(path: str, clean_broker: str, migrated_sqlite: str) -> None:
    """With a slow database and a broker that takes connections and is silent: 503 in less than 5 s."""
    database = SlowDatabase(migrated_sqlite)
    session = await a_session(database)
    bodies = {"send": {"to": "5491112345678", "message": "Hola"}}
    async with Proxy(clean_broker) as proxy:
        proxy.lose()
        publisher = Publisher(proxy.url, 4)
        parts: tuple[Any, Any] = (Silence(), Waiters(database))
        app = build_ingress(publisher, database, *parts, Keys(), version="0")
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        started = time.monotonic()
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.post(
                f"/whatsapp-qr/{path}",
                json={"chatbotId": str(session.chatbot_id)} | bodies.get(path, {}),
                headers={"Idempotency-Key": "one"},
            )
        took = time.monotonic() - started
        await publisher.close()
    await database.close()
    assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")
    assert took < 5.0

"""Calls that cannot be accepted say so within 5 s, however slowly everything behind them fails."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.ingress.app import build_ingress
from service.ingress.keys import Keys
from service.ingress.streams import Streams
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.waiting import Waiters
from tests.component.ingress_app import Silence
from tests.component.rows import a_session
from tests.proxy import Proxy
from whatsapp_qr_contracts.message import Message

T = TypeVar("T")


class Allowing(Database):
    """Keeps how long readers would wait for it."""

    allowed = 0.0

    async def read(self, work: Callable[[AsyncSession], Awaitable[T]], *, seconds: float | None = None) -> T:
        assert seconds is not None
        self.allowed += seconds
        return await super().read(work)


class AllowingPublisher(Publisher):
    """Keeps how long whoever publishes would wait for the broker."""

    allowed = 0.0

    async def publish(self, message: Message, *, seconds: float, **envelope: Any) -> None:  # type: ignore[override]
        self.allowed += seconds
        await super().publish(message, seconds=seconds, **envelope)


@pytest.fixture
def patience() -> None:
    """Here the time limits are what is looked at."""


@pytest.fixture
async def database(migrated_sqlite: str) -> AsyncIterator[Allowing]:
    database = Allowing(migrated_sqlite)
    yield database
    await database.close()


@pytest.mark.parametrize("path", ["send", "init", "disconnect"])
async def test_calls_say_503_in_time(path: str, clean_broker: str, database: Allowing) -> None:
    """With a broker that takes connections and is silent: 503, and all that is waited for is less than 5 s."""
    session = await a_session(database)
    bodies = {"send": {"to": "5491112345678", "message": "Hola"}}
    async with Proxy(clean_broker) as proxy:
        proxy.lose()
        publisher = AllowingPublisher(proxy.url, 4)
        parts: tuple[Any, Any, Any] = (Silence(), Waiters(database), Streams(database))
        app = build_ingress(publisher, database, *parts, Keys(), version="0")
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.post(
                f"/whatsapp-qr/{path}",
                json={"chatbotId": str(session.chatbot_id)} | bodies.get(path, {}),
                headers={"Idempotency-Key": "one"},
            )
        await publisher.close()
    assert (answer.status_code, answer.json()["code"]) == (503, "broker_unavailable")
    assert database.allowed > 0
    assert publisher.allowed > 0
    assert database.allowed + publisher.allowed < 5

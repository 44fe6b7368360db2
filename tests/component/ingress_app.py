"""The ingress as an ASGI application with a real database and a publisher that only records.

What is published is looked at; that it arrives is tested on a real broker elsewhere.
"""

from typing import Any

import httpx

from service.errors import BrokerUnavailable
from service.ingress.app import build_ingress
from service.ingress.keys import Keys
from service.ingress.streams import Streams
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from service.waiting import Waiters
from whatsapp_qr_contracts.message import Message

CONNECTED = {"type": "connected", "sessionId": "a-session-nobody-knows", "data": {}}
INCOMING = {
    "sessionId": "unknown",
    "from": "5491112345678",
    "message": "hi",
    "messageId": "A1",
    "timestamp": "1700000000",
}


class Recorder:
    """Stands for the publisher: keeps what it is given, as bytes, or is away."""

    partitions = 4

    def __init__(self) -> None:
        self.published: list[tuple[Message, dict[str, Any]]] = []
        self.raw: list[tuple[bytes, str]] = []
        self.away = False

    async def publish(self, message: Message, **envelope: Any) -> None:
        self._check()
        assert message.wire()
        self.published.append((message, envelope))

    async def publish_raw(self, body: bytes, *, routing_key: str, **_envelope: Any) -> None:
        self._check()
        self.raw.append((body, routing_key))

    def _check(self) -> None:
        if self.away:
            detail = "no broker"
            raise BrokerUnavailable(detail)

    async def close(self) -> None: ...


class Silence:
    """Stands for the listener: hears nothing."""

    def start(self) -> None: ...

    async def stop(self) -> None: ...


class Ingress:
    def __init__(self, database: Database, keys: Keys | None = None, peer: str = "127.0.0.1") -> None:
        self.database = database
        self.broker = Recorder()
        parts: tuple[Any, Any] = (self.broker, Silence())
        waiting = Waiters(database), Streams(database)
        self.app = build_ingress(parts[0], database, parts[1], *waiting, keys or Keys(), version="1.2.3")
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(peer, 50_000))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        given = {"json": body} if isinstance(body, dict | list) else {"content": body}
        return await self.http.post(f"/whatsapp-qr{path}", **given, **options)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.http.get(f"/whatsapp-qr{path}", params=query)


def a_text(session: SessionRow, **fields: Any) -> dict[str, Any]:
    return {"chatbotId": str(session.chatbot_id), "to": "5491112345678", "message": "hello"} | fields


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["success"], body["status"]) == (False, status)
    assert body["detail"]
    assert code is None or body["code"] == code
    return body

"""What the gateway reports is taken at once or kept: it tries only once."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from service.persistence.database import Database
from tests.component.ingress_app import CONNECTED, INCOMING, Ingress, problem
from whatsapp_qr_contracts.gateway import GatewayConnected, GatewayMessage


async def test_callbacks_are_taken_for_sessions_that_nobody_knows(ingress: Ingress) -> None:
    """200 once the broker has it; the body is passed on as the contract says, under a key of its own."""
    assert (await ingress.post("/webhook", CONNECTED)).json() == {"success": True}
    assert (await ingress.post("/incoming", INCOMING)).json() == {"success": True}
    (connected, _), (message, _) = ingress.broker.published
    assert isinstance(connected, GatewayConnected)
    assert isinstance(message, GatewayMessage)
    assert (message.timestamp, message.sender) == (1_700_000_000, "5491112345678")
    assert connected.partition_key == "a-session-nobody-knows"


async def test_callbacks_need_no_database(tmp_path: Path) -> None:
    """There is none at all here, and both are taken."""
    ingress = Ingress(Database(f"sqlite+aiosqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"))
    assert (await ingress.post("/webhook", CONNECTED)).status_code == 200
    assert (await ingress.post("/incoming", INCOMING)).status_code == 200
    answer = await ingress.get(f"/session/{uuid4()}")
    problem(answer, 503, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    await ingress.http.aclose()
    await ingress.database.close()


async def test_a_callback_without_a_content_type_is_taken(ingress: Ingress) -> None:
    """Gateways in the field leave it out; the report must not be lost for it."""
    assert (await ingress.post("/webhook", json.dumps(CONNECTED))).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "bad"),
    [
        ("/webhook", CONNECTED | {"type": "else"}, "body"),
        ("/webhook", CONNECTED | {"type": "qr"}, "qr.data.qrCode"),
        ("/webhook", CONNECTED | {"sessionId": ""}, "connected.sessionId"),
        ("/incoming", INCOMING | {"timestamp": "soon"}, "timestamp"),
        ("/incoming", INCOMING | {"message": ""}, "body"),
        ("/incoming", INCOMING | {"from": None}, "from"),
        ("/webhook", CONNECTED | {"session_id": "s"}, "connected.session_id"),
        ("/webhook", CONNECTED | {"data": {"phone_number": "5491100000000"}}, "connected.data.phone_number"),
        ("/webhook", CONNECTED | {"type": "qr", "data": {"qr_code": "x"}}, "qr.data.qr_code"),
        ("/incoming", INCOMING | {"push_name": "Ana"}, "push_name"),
    ],
)
async def test_an_invalid_callback_is_kept(ingress: Ingress, path: str, body: dict[str, Any], bad: str) -> None:
    """400 with the field's name, and the original bytes go to the dead letters: the gateway tries only once."""
    given = json.dumps(body).encode() + b" "
    answer = problem(await ingress.post(path, given), 400, "invalid_request")
    assert [error["field"] for error in answer["errors"]] == [bad]
    assert ingress.broker.raw == [(given, "invalid_callback")]
    assert ingress.broker.published == []


@pytest.mark.parametrize("body", [b"{bad", b"\xff{}", b'{"a":' + b"1" * 5_000 + b"}", b"[" * 100_000])
async def test_a_callback_that_cannot_be_read_is_kept(ingress: Ingress, body: bytes) -> None:
    """Whatever is wrong with its bytes: it may be the only copy of a customer's message."""
    problem(await ingress.post("/incoming", body), 400)
    assert ingress.broker.raw == [(body, "invalid_callback")]


@pytest.mark.parametrize("body", [CONNECTED, CONNECTED | {"type": "else"}])
async def test_callbacks_wait_for_the_broker_and_then_say_503(
    ingress: Ingress, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never success before the broker has it, and 503, not 400, also for an invalid one that could not be kept."""
    monkeypatch.setattr("service.ingress.callbacks._SECONDS", 0.5)
    ingress.broker.away = True
    answer = await ingress.post("/webhook", body)
    problem(answer, 503, "broker_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_callback_is_published_as_soon_as_the_broker_is_back(ingress: Ingress) -> None:
    """A short outage does not reach the gateway at all."""
    ingress.broker.away = True
    call = asyncio.create_task(ingress.post("/webhook", CONNECTED))
    done, _ = await asyncio.wait([call], timeout=0.3)
    assert not done
    ingress.broker.away = False
    assert (await call).status_code == 200
    assert len(ingress.broker.published) == 1

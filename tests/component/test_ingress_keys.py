"""Nobody gets in without a key, wherever one is asked for; and what is refused is not even looked at."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from service.ingress.keys import Keys
from service.persistence.database import Database
from tests.component.ingress_app import CONNECTED, INCOMING, Ingress, problem

KEY, OTHER_KEY, TOKEN = "k" * 48, "o" * 48, "t" * 48
SECRET = "whsec_" + "c2VjcmV0" * 5
CHATBOT = {"chatbotId": str(UUID(int=1))}
CALLS: dict[tuple[str, str], dict[str, Any] | None] = {
    ("POST", "/init"): CHATBOT,
    ("POST", "/disconnect"): CHATBOT,
    ("POST", "/send"): CHATBOT | {"to": "5491112345678", "message": "hi"},
    ("PUT", "/chatbots/{chatbot_id}"): None,
    ("DELETE", "/chatbots/{chatbot_id}"): None,
    ("GET", "/qr-code/{session_id}"): None,
    ("GET", "/status/{session_id}"): None,
    ("GET", "/session/{chatbot_id}"): None,
    ("GET", "/events/{session_id}"): None,
    ("GET", "/messages/{message_id}"): None,
    ("DELETE", "/messages/{message_id}"): None,
    ("GET", "/conversations"): None,
    ("GET", "/conversations/{conversation_id}/messages"): None,
}
CALLBACKS = {"/webhook": CONNECTED, "/incoming": INCOMING}
OPEN = {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/livez", "/readyz", "/metrics"}
OPEN |= {"/asyncapi", "/asyncapi.yaml", "/asyncapi/{name}"}
WRONG = {"Authorization": "Bearer wrong"}
SECONDS = 10.0
"""A body that is read twice would be waited for without end."""

Opened = Callable[..., Ingress]


@pytest.fixture
async def opened(migrated_sqlite: str) -> AsyncIterator[Opened]:
    """Opens an ingress that asks for something, for calls from somewhere."""
    doors = []

    def open_one(peer: str = "127.0.0.1", **keys: Any) -> Ingress:
        doors.append(Ingress(Database(migrated_sqlite), Keys(**keys), peer))
        return doors[-1]

    yield open_one
    for door in doors:
        await door.http.aclose()
        await door.database.close()


async def call(ingress: Ingress, method: str, path: str, **headers: str) -> httpx.Response:
    url = "/whatsapp-qr" + path.replace("{", "").replace("}", "")
    return await ingress.http.request(method, url, json=CALLS.get((method, path)), headers=headers)


def signed(body: bytes, *, secret: str = SECRET, age: float = 0) -> dict[str, str]:
    moment = datetime.fromtimestamp(time.time() - age, UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", moment, body.decode()),
    }


# Calls


def test_every_route_is_known_here(ingress: Ingress) -> None:
    """A new route has to be written down above, and is then tried without a key."""
    found = set()
    for context in iter_route_contexts(ingress.app.routes):
        found |= {(method, str(context.path)) for method in context.methods or () if method != "HEAD"}
    guarded = {(method, "/whatsapp-qr" + path) for method, path in CALLS}
    guarded |= {("POST", "/whatsapp-qr" + path) for path in CALLBACKS}
    assert found == guarded | {("GET", path) for path in OPEN}


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_every_call_needs_a_key(opened: Opened, method: str, path: str) -> None:
    """401 without one or with a wrong one; with either of two keys, by either header, it is carried out."""
    ingress = opened(api=(KEY, OTHER_KEY), webhook_token=TOKEN)
    ingress.broker.away = True  # what is let in and would publish ends with 503 at once
    wrong = [{}, WRONG, {"X-API-Key": "wrong"}, {"Authorization": f"Bearer {TOKEN}"}]
    for headers in wrong:
        answer = await call(ingress, method, path, **headers)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"Authorization": f"Bearer {OTHER_KEY}"}):
        assert (await call(ingress, method, path, **headers)).status_code in {400, 404, 503}


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_call_with_a_key_may_come_from_anywhere_by_any_name(opened: Opened, method: str, path: str) -> None:
    """With keys neither the peer, nor a proxy, nor the name, nor a page's origin matters."""
    ingress = opened("192.0.2.1", api=(KEY,))
    ingress.broker.away = True
    far = {"Host": "api.example", "Origin": "https://app.example", "X-Forwarded-For": "192.0.2.9"}
    problem(await call(ingress, method, path, **far), 401, "unauthorized")
    assert (await call(ingress, method, path, **far, **{"X-API-Key": KEY})).status_code in {400, 404, 503}


@pytest.mark.parametrize(("method", "path"), [*CALLS, *(("POST", path) for path in CALLBACKS)])
async def test_without_keys_no_web_page_of_others_gets_in(opened: Opened, method: str, path: str) -> None:
    """403 by a rebound name, and for whatever a page elsewhere posts."""
    ingress = opened()
    problem(await call(ingress, method, path, Host="evil.example:8000"), 403, "foreign_host")
    problem(await call(ingress, method, path, Origin="https://evil.example"), 403, "foreign_origin")
    assert ingress.broker.published == []
    assert ingress.broker.raw == []


@pytest.mark.parametrize("path", ["/init", "/disconnect", "/send"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_what_a_form_can_send_is_no_command(opened: Opened, path: str, kind: str) -> None:
    """The content types that a web page may post without being asked are not read as JSON."""
    ingress = opened()
    body = json.dumps(CALLS["POST", path])
    problem(await ingress.post(path, body, headers={"Content-Type": kind}), 400, "invalid_request")
    assert ingress.broker.published == []


async def test_a_key_is_asked_for_before_anything_is_looked_at(tmp_path: Path) -> None:
    """401, not 400, 404, 405, or 503 for a database that is not there."""
    ingress = Ingress(Database(f"sqlite+aiosqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"), Keys(api=(KEY,)))
    for method, path in (("POST", "/send"), ("GET", "/send"), ("GET", "/nothing"), ("GET", f"/session/{UUID(int=1)}")):
        answer = await ingress.http.request(method, f"/whatsapp-qr{path}", content=b"{bad")
        problem(answer, 401, "unauthorized")
    problem(await ingress.get(f"/session/{UUID(int=1)}"), 401)
    answer = await ingress.http.get(f"/whatsapp-qr/session/{UUID(int=1)}", headers={"X-API-Key": KEY})
    problem(answer, 503, "database_unavailable")
    await ingress.http.aclose()
    await ingress.database.close()


@pytest.mark.parametrize("path", sorted(OPEN))
async def test_health_and_documentation_are_for_everybody(opened: Opened, path: str) -> None:
    """From anywhere, by any name, without a key."""
    ingress = opened("192.0.2.1", api=(KEY,), webhook_secret=SECRET)
    url = path.replace("{name}", "page.js")
    assert (await ingress.http.get(url, headers={"Host": "api.example"})).status_code == 200


# Callbacks


@pytest.mark.parametrize("path", CALLBACKS)
@pytest.mark.parametrize("keys", [{}, {"api": (KEY,)}])
async def test_a_callback_without_proof_comes_from_this_machine(
    opened: Opened, path: str, keys: dict[str, Any]
) -> None:
    """With and without API_KEYS, which are for others; the refusal says what to set, to the caller and in the log."""
    assert (await opened(**keys).post(path, CALLBACKS[path])).status_code == 200
    assert (await opened("::1", **keys).post(path, CALLBACKS[path])).status_code == 200
    far = opened("192.0.2.1", **keys)
    for ingress, headers in (
        (far, {}),
        (far, {"X-API-Key": KEY}),
        (far, {"X-Forwarded-For": "127.0.0.1"}),
        (opened(**keys), {"X-Forwarded-For": "127.0.0.1"}),
        (opened(**keys), {"Forwarded": "for=127.0.0.1"}),
        (opened(**keys), {"X-Real-IP": "127.0.0.1"}),
    ):
        with capture_logs() as logs:
            answer = await ingress.post(path, CALLBACKS[path], headers=headers)
        body = problem(answer, 403, "callback_from_elsewhere")
        assert "WEBHOOK_TOKEN or WEBHOOK_SECRET" in body["detail"]
        [line] = [line for line in logs if line["event"] == "callback_refused"]
        assert (line["peer"], line["code"]) == ("192.0.2.1" if ingress is far else "127.0.0.1", body["code"])
        assert ingress.broker.published == []


@pytest.mark.parametrize("path", CALLBACKS)
@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.1"])
async def test_a_callback_brings_the_token(opened: Opened, path: str, peer: str) -> None:
    """From anywhere, also from this machine; a key of the callers is another thing."""
    ingress = opened(peer, api=(KEY,), webhook_token=TOKEN)
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}, {"X-API-Key": TOKEN}, signed(b"")):
        problem(await ingress.post(path, CALLBACKS[path], headers=headers), 401, "unauthorized")
    assert ingress.broker.published == []
    answer = await ingress.post(path, CALLBACKS[path], headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", CALLBACKS)
@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.1"])
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_callback_is_signed(opened: Opened, path: str, peer: str, token: str | None) -> None:
    """Over its very bytes, with the right secret and now; behind a proxy too. It is then read as ever, once."""
    ingress = opened(peer, webhook_token=token, webhook_secret=SECRET)
    given = json.dumps(CALLBACKS[path], indent=3, ensure_ascii=False).encode() + b"\n"
    for body, headers in (
        (given, {}),
        (given, WRONG),
        (given + b" ", signed(given)),
        (given, signed(given, age=5 * 60 + 2)),
        (given, signed(given, secret="whsec_" + "b3RoZXJz" * 5)),
        (given, signed(given) | {"webhook-signature": "v1"}),
        (b"\xff", signed(b"")),
    ):
        problem(await ingress.post(path, body, headers=headers), 401, "unauthorized")
    assert (ingress.broker.published, ingress.broker.raw) == ([], [])
    far = {"Host": "api.example", "X-Forwarded-For": "192.0.2.9"}
    async with asyncio.timeout(SECONDS):
        answer = await ingress.post(path, given, headers=signed(given) | far)
    assert answer.status_code == 200, answer.text
    assert len(ingress.broker.published) == 1


async def test_a_signed_callback_that_comes_in_pieces_is_read_whole(opened: Opened) -> None:
    """The body is the same whether it was looked at for its signature or not."""
    given = json.dumps(INCOMING).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(given), 10):
            yield given[start : start + 10]

    ingress = opened(webhook_secret=SECRET)
    async with asyncio.timeout(SECONDS):
        answer = await ingress.post("/incoming", pieces(), headers=signed(given))
    assert answer.status_code == 200


async def test_a_signed_callback_has_at_most_1_mib(opened: Opened) -> None:
    """413, as for every other call, before anything is compared."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * (1024 * 1024 // 16)

    ingress = opened(webhook_secret=SECRET)
    problem(await ingress.post("/webhook", chunks(), headers=signed(b"")), 413, "content_too_large")


async def test_an_invalid_callback_is_kept_only_where_it_was_let_in(opened: Opened) -> None:
    """Strangers cannot fill the dead letters; what the gateway signed is kept, byte by byte."""
    for ingress in (opened("192.0.2.1"), opened(webhook_token=TOKEN), opened(webhook_secret=SECRET)):
        assert (await ingress.post("/webhook", b"{bad")).status_code in {401, 403}
        assert ingress.broker.raw == []
    problem(await ingress.post("/webhook", b"{bad ", headers=signed(b"{bad ")), 400, "invalid_request")
    assert ingress.broker.raw == [(b"{bad ", "invalid_callback")]


# Documentation


async def test_the_openapi_document_says_what_to_bring(ingress: Ingress) -> None:
    """Every call and callback names its schemes and the two refusals; what is open names none."""
    document = (await ingress.http.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = [scheme for way in operation.get("security", []) for scheme in way]
            callback = path.removeprefix("/whatsapp-qr") in CALLBACKS
            expected = ["WebhookToken", "WebhookSignature"] if callback else ["ApiKey", "ApiKeyHeader"]
            assert named == (expected if path.startswith("/whatsapp-qr") else [])
            assert set(named) <= set(schemes)
            assert ({"401", "403"} <= set(operation["responses"])) == bool(named)


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-real-ip"])
async def test_without_keys_a_proxy_opens_no_door(opened: Opened, header: str) -> None:
    """It calls from this machine and by its name, for somebody who may be anywhere."""
    ingress = opened()
    problem(await call(ingress, "GET", "/conversations", **{header: "203.0.113.9"}), 403, "forwarded")
    assert (
        await call(opened(api=(KEY,)), "GET", "/conversations", **{header: "203.0.113.9", "x-api-key": KEY})
    ).status_code == 400

"""The ingress' own logic: what it accepts, refuses, publishes and answers to its users."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from service.domain.identities import outgoing_message_id
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from tests.component.ingress_app import CONNECTED, Ingress, a_text, problem
from tests.component.rows import a_session, enqueue, receive
from whatsapp_qr_contracts.message import SessionStatus

MIB = 1024 * 1024


# POST /send


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"chatbotId": "1"}, {"chatbotId"}),
        ({"chatbotId": None}, {"chatbotId"}),
        ({"to": "123456"}, {"to"}),
        ({"to": "1234567890123456"}, {"to"}),
        ({"to": "abc@s.whatsapp.net"}, {"to"}),
        ({"to": 5491112345678}, {"to"}),
        ({"message": ""}, {"message"}),
        ({"message": "\x00"}, {"message"}),
        ({"message": "x" * 65_537}, {"message"}),
        ({"metadata": []}, {"metadata"}),
        ({"metadata": {"k": "x" * 16_384}}, {"metadata"}),
        ({"expiresAt": "soon"}, {"expiresAt"}),
        ({"expiresAt": "9999-12-31T23:59:59-14:00"}, {"expiresAt"}),
        ({"expiresAt": "2030-01-01T00:00:00"}, {"expiresAt"}),
        ({"to": "x", "message": "", "metadata": 1}, {"to", "message", "metadata"}),
    ],
)
async def test_every_bad_field_is_named(
    ingress: Ingress, session: SessionRow, fields: dict[str, Any], bad: set[str]
) -> None:
    """400, never 422, with each bad field by its public name, and nothing is published."""
    body = problem(await ingress.post("/send", a_text(session, **fields)), 400, "invalid_request")
    assert {error["field"] for error in body["errors"]} == bad
    assert all(name in body["detail"] for name in bad)
    assert ingress.broker.published == []


@pytest.mark.parametrize("missing", ["chatbotId", "to", "message"])
async def test_a_missing_field_is_named(ingress: Ingress, session: SessionRow, missing: str) -> None:
    """Each required one."""
    body = a_text(session)
    del body[missing]
    answer = problem(await ingress.post("/send", body), 400, "invalid_request")
    assert [error["field"] for error in answer["errors"]] == [missing]


@pytest.mark.parametrize(
    "fields",
    [
        *({"to": to} for to in ("+54 9 11 1234-5678", "1234567", "123456789012345", "1@lid", "1-2@g.us")),
        *({"message": text} for text in ("x", "x" * 65_536, "😀\x00", "\ud83d")),
        *({"metadata": value} for value in ({}, {"k": "x" * 16_000}, {"a": {"b": [None, 1.5, "\x00"]}})),
        *({"expiresAt": "2030-01-01T00:00:00Z"}, {"future": "field"}),
    ],
)
async def test_a_good_message_is_published_once(ingress: Ingress, session: SessionRow, fields: dict[str, Any]) -> None:
    """202 with the id under which the message will be found; the command can be read by its consumer."""
    answer = await ingress.post("/send", json.dumps(a_text(session, **fields)))
    assert answer.status_code == 202, answer.text
    [(command, envelope)] = ingress.broker.published
    assert type(command).read(command.wire()) == command
    assert envelope["message_id"] == envelope["correlation_id"]
    assert command.partition_key == str(session.chatbot_id)
    assert answer.json() == {
        "success": True,
        "message": "Message enqueued for sending",
        "messageId": str(outgoing_message_id(session.chatbot_id, envelope["message_id"])),
    }


async def test_sending_needs_a_connected_session(ingress: Ingress) -> None:
    """404 without a session, 400 while it is not connected."""
    problem(await ingress.post("/send", a_text(SessionRow(chatbot_id=uuid4()))), 404, "no_session")
    waiting = await a_session(ingress.database, status=SessionStatus.QR_READY)
    problem(await ingress.post("/send", a_text(waiting)), 400, "not_connected")
    assert ingress.broker.published == []


async def test_an_idempotency_key_has_one_effect(ingress: Ingress, session: SessionRow) -> None:
    """The same key and body: the same id each time, before and after the row is there; then nothing is published."""
    key, body = {"Idempotency-Key": "key-1"}, a_text(session, to="+54 9 11 1234-5678", metadata={"a": 1})
    ids = [(await ingress.post("/send", body, headers=key)).json()["messageId"] for _ in range(2)]
    commands = {command.wire() for command, _ in ingress.broker.published}
    assert len(commands) == 1
    assert b'"messageId":"key-1"' in commands.pop()
    stored = await enqueue(ingress.database, session, messageId="key-1", metadata={"a": 1})
    again = await ingress.post("/send", a_text(session, metadata={"a": 1}, message="hello"), headers=key)
    assert (again.status_code, again.json()["messageId"]) == (202, str(stored.id))
    assert set(ids) == {str(stored.id)}
    assert len(ingress.broker.published) == 2
    for other in ({"message": "other"}, {"to": "5491100000000"}, {"metadata": {}}):
        problem(await ingress.post("/send", body | other, headers=key), 409, "id_reused")
    other_chatbot = await a_session(ingress.database)
    assert (await ingress.post("/send", a_text(other_chatbot), headers=key)).json()["messageId"] not in ids


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_an_idempotency_key_has_1_to_200_characters(ingress: Ingress, session: SessionRow, key: str) -> None:
    """Anything else is refused, by name."""
    answer = await ingress.post("/send", a_text(session), headers={"Idempotency-Key": key})
    assert [error["field"].lower() for error in problem(answer, 400)["errors"]] == ["idempotency-key"]


@pytest.mark.parametrize("path", ["/send", "/init", "/disconnect"])
async def test_a_request_is_written_in_camel_case(ingress: Ingress, session: SessionRow, path: str) -> None:
    """400 that says which name to write, also where the field is there under its own name, or optional."""
    body = a_text(session) | {"chatbot_id": str(session.chatbot_id)}
    answer = problem(await ingress.post(path, body), 400, "invalid_request")
    assert answer["errors"] == [{"field": "chatbot_id", "message": "write chatbotId, not chatbot_id"}]
    del body["chatbotId"]
    assert problem(await ingress.post(path, body), 400, "invalid_request") == answer
    late = problem(await ingress.post("/send", a_text(session, expires_at="2030-01-01T00:00:00Z")), 400)
    assert late["detail"] == "expires_at: write expiresAt, not expires_at"
    assert ingress.broker.published == []
    own = await ingress.post("/send", a_text(session, metadata={"expires_at": "the caller's own"}))
    assert own.status_code == 202


# Whole bodies


@pytest.mark.parametrize("body", [b"", b"{bad", b'"text"', b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"1" * 5_000])
@pytest.mark.parametrize("path", ["/send", "/init", "/disconnect", "/webhook", "/incoming"])
async def test_what_is_no_json_object_is_a_problem(ingress: Ingress, path: str, body: bytes) -> None:
    """400 with a problem, whatever the bytes."""
    problem(await ingress.post(path, body), 400)


@pytest.mark.parametrize("path", ["/send", "/init", "/webhook", "/incoming"])
async def test_a_body_has_at_most_1_mib(ingress: Ingress, path: str) -> None:
    """413 for more, declared or in chunks; exactly 1 MiB is read."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * (MIB // 16)

    declared = problem(await ingress.post(path, b" " * (MIB + 1)), 413)
    assert problem(await ingress.post(path, chunks()), 413) == declared
    problem(await ingress.post(path, b" " * MIB), 400)
    assert ingress.broker.raw == [] or path in {"/webhook", "/incoming"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/send", "POST"),
        ("PUT", "/init", "POST"),
        ("DELETE", "/webhook", "POST"),
        ("PATCH", f"/chatbots/{UUID(int=1)}", "DELETE, PUT"),
        ("POST", f"/messages/{UUID(int=1)}", "DELETE, GET"),
        ("GET", "/nothing", None),
    ],
)
async def test_a_wrong_method_or_path_is_a_problem(
    ingress: Ingress, method: str, path: str, allowed: str | None
) -> None:
    """In the same form as every other error; 405 names all that is allowed, also where each has its own endpoint."""
    answer = await ingress.http.request(method, f"/whatsapp-qr{path}")
    problem(answer, 405 if allowed else 404)
    assert answer.headers.get("allow") == allowed


# Commands and reads


@pytest.mark.parametrize("path", ["/send", "/init", "/disconnect"])
async def test_a_command_without_a_broker_is_503(ingress: Ingress, session: SessionRow, path: str) -> None:
    """With Retry-After: nothing was promised."""
    ingress.broker.away = True
    answer = await ingress.post(path, a_text(session))
    problem(answer, 503, "broker_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_there_is_nothing_to_disconnect_without_a_session(ingress: Ingress) -> None:
    """404, and no command."""
    problem(await ingress.post("/disconnect", {"chatbotId": str(uuid4())}), 404, "no_session")
    assert ingress.broker.published == []


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"cursor": "zzz"}, {"cursor": "x" * 201}]
)
async def test_pages_have_limits(ingress: Ingress, session: SessionRow, query: dict[str, Any]) -> None:
    """A limit of 1 to 200 and a cursor that a page gave; anything else is 400."""
    stored = await receive(ingress.database, session)
    for path, given in (
        ("/conversations", {"chatbotId": session.chatbot_id}),
        (f"/conversations/{stored.conversation_id}/messages", {}),
    ):
        problem(await ingress.get(path, **given, **query), 400)
        for limit in (1, 200):
            page = (await ingress.get(path, **given, limit=limit)).json()
            assert (len(page["data"]), page["nextCursor"]) == (1, None)


async def test_pages_go_on_by_their_cursor(ingress: Ingress, session: SessionRow) -> None:
    """Five messages by two: each once, oldest first, with the fields of the contract."""
    stored = [await receive(ingress.database, session, f"A{n}") for n in range(5)]
    shown: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await ingress.get(f"/conversations/{stored[0].conversation_id}/messages", limit=2, **cursor)).json()
        shown += page["data"]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert [message["id"] for message in shown] == [str(one.id) for one in stored]
    assert set(shown[0]) == {
        *("id", "conversationId", "role", "content", "deliveryStatus", "whatsappMessageId", "attempts", "errorCode"),
        *("errorMessage", "metadata", "createdAt", "sentAt", "deliveredAt", "readAt", "failedAt"),
    }


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *((f"/session/{UUID(int=1)}", 404), ("/session/x", 400), ("/status/x", 404), ("/qr-code/x", 404)),
        *((f"/messages/{UUID(int=1)}", 404), ("/messages/x", 400), (f"/conversations/{UUID(int=1)}/messages", 404)),
        *(("/conversations", 400), ("/conversations?chatbotId=x", 400)),
    ],
)
async def test_what_is_not_there_is_404_and_what_is_no_id_is_400(ingress: Ingress, path: str, status: int) -> None:
    """As a problem, on every read."""
    problem(await ingress.get(path), status)


async def test_a_session_is_shown_with_its_qr_code_only_while_there_is_one(ingress: Ingress) -> None:
    """The three reads of a session agree."""
    session = await a_session(ingress.database, status=SessionStatus.CONNECTING)
    shown = (await ingress.get(f"/session/{session.chatbot_id}")).json()["data"]
    assert (shown["status"], shown["qrCode"], shown["sessionId"]) == ("CONNECTING", None, session.session_id)
    problem(await ingress.get(f"/qr-code/{session.session_id}"), 404, "no_qr_code")
    status = (await ingress.get(f"/status/{session.session_id}")).json()["session"]
    assert {key: status[key] for key in ("sessionId", "chatbotId", "status", "lastConnectedAt")} == {
        key: shown[key] for key in ("sessionId", "chatbotId", "status", "lastConnectedAt")
    }


@pytest.mark.parametrize("path", ["/status/a%00b", "/qr-code/a%00b"])
async def test_a_name_that_no_database_can_hold_is_unknown(database: Database, path: str) -> None:
    """U+0000 in a path is removed like in every text: 404 on both databases, never 500."""
    ingress = Ingress(database)
    problem(await ingress.get(path), 404, "no_session")
    await ingress.http.aclose()


# Unexpected errors, documentation, health


async def test_an_unexpected_error_is_a_problem_too(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 in the form of every other error, without a word about its inside."""

    async def breaks(*_args: object, **_fields: object) -> None:
        detail = "secret"
        raise KeyError(detail)

    monkeypatch.setattr(ingress.broker, "publish", breaks)
    answer = await ingress.post("/webhook", CONNECTED)
    problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


async def test_the_documentation_needs_no_internet(ingress: Ingress) -> None:
    """Neither the page nor what it loads names another host."""
    page = await ingress.http.get("/docs")
    assert page.status_code == 200
    assert re.findall(r"""(?:https?:)?//[^"'\s]+""", page.text) == []
    for path in re.findall(r"""(?:src|href)="(/[^"]+)\"""", page.text):
        assert (await ingress.http.get(path)).status_code == 200, path


async def test_the_openapi_document_names_our_errors(ingress: Ingress) -> None:
    """No 422, which is never sent; every reference leads somewhere; the second call gives the same document."""
    answer = await ingress.http.get("/openapi.json")
    document = answer.json()
    assert not any(
        "422" in operation["responses"] for path in document["paths"].values() for operation in path.values()
    )
    assert "HTTPValidationError" not in answer.text
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert "ProblemBody" in names
    assert names <= set(document["components"]["schemas"])
    assert (await ingress.http.get("/openapi.json")).json() == document


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_needs_nothing(ingress: Ingress, path: str) -> None:
    """Also without a broker: callbacks are taken at once, whatever else is away."""
    ingress.broker.away = True
    assert (await ingress.http.get(path)).json() == {"success": True}


# GET /metrics


async def test_every_answer_is_counted_by_its_route(ingress: Ingress) -> None:
    """Refusals too; no id ever becomes a label, known or not."""
    known, unknown = uuid4(), uuid4()
    before = counted(await ingress.http.get("/metrics"))
    await ingress.get(f"/status/{known}")
    await ingress.get(f"/nothing/{unknown}")
    await ingress.http.post("/whatsapp-qr/send", headers={"host": "evil.example"})
    after = counted(await ingress.http.get("/metrics"))
    news = {line: count - before.get(line, 0) for line, count in after.items() if count != before.get(line, 0)}
    assert {
        'method="GET",route="/whatsapp-qr/status/{session_id}",status="404"': 1,
        'method="GET",route="none",status="404"': 1,
        'method="POST",route="none",status="403"': 1,
    }.items() <= news.items()
    assert str(known) not in str(after)
    assert str(unknown) not in str(after)


def counted(answer: httpx.Response) -> dict[str, float]:
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        labels: float(count)
        for labels, count in re.findall(r"^whatsapp_qr_requests_total\{(.*)\} (.*)$", answer.text, re.MULTILINE)
    }

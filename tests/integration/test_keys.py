"""Keys, tokens and signatures with real processes and the simulator as the gateway."""

import json
from pathlib import Path

import pytest

from tests.system import System, eventually, running
from whatsapp_qr_contracts.gateway import GatewayMessage

KEY, TOKEN = "5e" * 24, "70" * 24
SECRET = "whsec_" + "c2VjcmV0" * 5
EVERYWHERE = "0.0.0.0"  # noqa: S104  # what API_KEYS are for
INCOMING = {"sessionId": "s", "from": "5491112345678", "message": "hi", "messageId": "A1", "timestamp": 1_700_000_000}


@pytest.mark.parametrize("proof", [{"WEBHOOK_SECRET": SECRET}, {"WEBHOOK_TOKEN": TOKEN}], ids=["signed", "token"])
async def test_a_session_links_and_a_message_arrives(
    clean_broker: str, sqlite_database: str, tmp_path: Path, proof: dict[str, str]
) -> None:
    """The simulator proves itself by the same settings; whoever else calls is refused; no log shows a secret."""
    async with running(clean_broker, sqlite_database, tmp_path, HTTP_HOST=EVERYWHERE, API_KEYS=KEY, **proof) as system:
        jobs = await system.jobs()
        chatbot_id, session_id = await system.connect()
        await system.control(f"/sessions/{session_id}/customers", **{"from": "5491112345678", "message": "Hola"})
        (job,) = await jobs.arrived()
        assert json.loads(job.body)["chatbotId"] == str(chatbot_id)

        del system.http.headers["X-API-Key"]
        refused = [await system.get(f"/status/{session_id}"), await system.post("/incoming", **INCOMING)]
        assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(401, "unauthorized")] * 2
        (ingress,) = system.named("ingress")
        assert (await system.http.get(f"{ingress.url}/docs")).status_code == 200

        logs = "".join(process.log() for process in system.processes)
        assert '"callback_refused"' in logs
        assert not any(secret in logs for secret in (KEY, TOKEN, SECRET))


@pytest.mark.parametrize("command", ["ingress", "up"])
async def test_other_machines_are_not_let_in_without_a_key(sqlite_database: str, tmp_path: Path, command: str) -> None:
    """The command ends with status 2 and a sentence that says what to set, before anything has begun."""
    system = System("amqp://nobody:nothing@127.0.0.1:1/", sqlite_database, tmp_path, HTTP_HOST=EVERYWHERE)
    process = system._process(command)
    await process.start()
    assert await process.ended() == 2
    assert process.log().startswith("whatsapp-qr: HTTP_HOST=0.0.0.0 lets other machines in")
    assert "Set API_KEYS" in process.log()
    assert not (tmp_path / ".local").exists()
    await system.close()


async def test_a_consumer_needs_no_key(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """It only tells how it is, wherever it listens."""
    system = System(clean_broker, sqlite_database, tmp_path, HTTP_HOST=EVERYWHERE)
    try:
        await system.migrate()
        await system.start("session-consumer")
    finally:
        await system.close()


async def test_the_socket_says_who_calls(sqlite_database: str, tmp_path: Path) -> None:
    """No header changes the peer, whatever uvicorn would believe; what a proxy passes on is refused."""
    nowhere = "amqp://nobody:nothing@127.0.0.1:1/"
    system = System(nowhere, sqlite_database, tmp_path, FORWARDED_ALLOW_IPS="*")
    try:
        (ingress,) = await system.start("ingress")
        headers = {"X-Forwarded-For": "203.0.113.9", "Content-Type": "application/json"}
        body = GatewayMessage.model_validate(INCOMING).wire()
        answer = await system.http.post(f"{system.api}/incoming", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "callback_from_elsewhere")

        async def refusals() -> list[str]:
            return [json.loads(line)["peer"] for line in ingress.log().splitlines() if '"callback_refused"' in line]

        assert await eventually(refusals) == ["127.0.0.1"]
    finally:
        await system.close()

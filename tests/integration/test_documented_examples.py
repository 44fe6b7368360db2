"""Every example in schemas/ is something that the running service accepts: copy it, and it works."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from service.messaging import topology
from tests.amqp import Amqp
from tests.documented import PUBLISHED, linked
from tests.system import NewSystem, System, eventually, send_by_amqp
from whatsapp_qr_contracts.commands import CancelMessage, RegisterChatbot
from whatsapp_qr_contracts.fields import A_CHATBOT
from whatsapp_qr_contracts.message import COMMANDS

CHATBOT = UUID(A_CHATBOT)


def command_examples() -> Iterator[Any]:
    """Headers and body of each example of a command, from both documents."""
    for name, message in sorted(PUBLISHED.messages.items()):
        if message.get("x-exchange") != COMMANDS:
            continue
        for number, example in enumerate(message["examples"]):
            yield pytest.param(name, example["headers"], example["payload"], id=f"{name}-asyncapi-{number}")
        for number, body in enumerate(PUBLISHED.bodies[name]["examples"]):
            yield pytest.param(name, {}, body, id=f"{name}-schema-{number}")


def requests() -> Iterator[Any]:
    """Each call of openapi.yaml with each example of its body; what ends a session comes last."""
    calls = [
        (operation["operationId"], method, path, operation)
        for path, operations in PUBLISHED.openapi["paths"].items()
        for method, operation in operations.items()
    ]
    last = ["cancel", "webhook", "disconnect", "remove"]
    for name, method, path, operation in sorted(calls, key=lambda call: (call[0] in last, call[0])):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for label, example in content.get("examples", {"": {"value": None}}).items():
            yield pytest.param(method, path, operation, example["value"], id=f"{name}-{label}".rstrip("-"))


@pytest.fixture(scope="module")
async def system(new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service without pacing."""
    async with new_system(SEND_RATE="1000", SEND_BURST="1000") as system:
        yield system


async def carried_out(system: System) -> None:
    """Wait until all that was asked of the chatbot has been handled: both its queues are in order."""
    events = await system.hear()
    asked = {"a": RegisterChatbot(chatbot_id=CHATBOT), "b": CancelMessage(chatbot_id=CHATBOT, message_id=uuid4())}
    marks = {f"{name} {uuid4()}": command for name, command in asked.items()}
    for mark, command in marks.items():
        await send_by_amqp(system, command, mark)

    async def look() -> set[str | None]:
        return {event.correlation_id for event in events.messages}

    await eventually(look, marks.keys().__le__)


@pytest.mark.parametrize(("name", "headers", "body"), list(command_examples()))
async def test_a_command_is_accepted(system: System, name: str, headers: dict[str, Any], body: dict[str, Any]) -> None:
    """As it stands, under its name alone and under its partition's key: neither dies nor is it returned."""
    await linked(system)
    dead = await system.hear(topology.DEAD_LETTERS)
    async with Amqp(system.amqp_url) as amqp:
        for key in (name, f"{name}.0"):
            await amqp.publish(json.dumps(body).encode(), key, message_id=str(uuid4()), type=name, headers=headers)
        await carried_out(system)
    assert [letter.headers for letter in dead.messages] == []


@pytest.mark.parametrize(("method", "path", "operation", "body"), list(requests()))
async def test_a_request_is_accepted(
    system: System, method: str, path: str, operation: dict[str, Any], body: dict[str, Any] | None
) -> None:
    """With the documented parameters and body it is none of a bad request, and answers as the document says."""
    await linked(system)
    sent: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
    for parameter in operation.get("parameters", ()):
        sent[parameter["in"]][parameter["name"]] = str(parameter["example"])
    url = f"http://127.0.0.1:{system.ingress_port}{path.format(**sent['path'])}"
    dead = await system.hear(topology.DEAD_LETTERS)
    request: dict[str, Any] = {"params": sent["query"], "headers": sent["header"], "json": body}
    async with system.http.stream(method, url, **request) as answer:
        if not answer.headers["content-type"].startswith("text/event-stream"):  # which has no end
            await answer.aread()
    await carried_out(system)
    documented = operation["responses"][str(answer.status_code)]["content"]
    assert answer.headers["content-type"].partition(";")[0] in documented
    assert answer.status_code != 400, answer.url
    assert [letter.headers for letter in dead.messages] == []

"""The committed documents say what the code does."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aio_pika
import pytest
import yaml

from schemas import generate
from service.messaging import topology
from whatsapp_qr_contracts import events
from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.message import Message


def _committed(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((generate.FOLDER / name).read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def asyncapi() -> dict[str, Any]:
    return _committed("asyncapi.yaml")


def test_the_committed_documents_are_the_generated_ones() -> None:
    """A change of the contract is a reviewed difference."""
    documents = generate.generated()
    assert {name for name in documents if not name.startswith(("messages/", "../"))} == {
        *("asyncapi.yaml", "openapi.yaml", "gateway.openapi.yaml", "routing.json")
    }
    assert [name for name, text in documents.items() if generate.difference(name, text)] == []


def test_the_environment_does_not_change_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same on every machine."""
    monkeypatch.setenv("PARTITIONS", "nonsense")
    assert generate.main(["--check"]) == 0


@pytest.mark.slow
def test_a_stale_document_is_named_with_its_difference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` says which document and where, writes nothing, and is content after a run without it."""
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--release"]) == 0
    stale = tmp_path / "asyncapi.yaml"
    stale.write_text(stale.read_text(encoding="utf-8").replace("asyncapi: 3.1.0", "asyncapi: 2.6.0"), encoding="utf-8")
    assert generate.main(["--check"]) == 1
    complaint = capsys.readouterr().err
    assert "schemas/asyncapi.yaml is out of date" in complaint
    assert "-asyncapi: 2.6.0\n+asyncapi: 3.1.0\n" in complaint
    assert "openapi.yaml" not in complaint
    assert "2.6.0" in stale.read_text(encoding="utf-8")
    left_over = tmp_path / "messages" / "message.gone.json"
    left_over.write_text("{}")
    generate.main(["--check"])
    assert "schemas/messages/message.gone.json describes nothing" in capsys.readouterr().err
    generate.main([])
    assert not left_over.exists()
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_every_message_is_described(asyncapi: dict[str, Any], message: type[Message]) -> None:
    """With its name, its text and its fields; on its exchange, and on its queue where it has one."""
    described = asyncapi["components"]["messages"][message.__name__]
    assert described["name"] == message.name
    assert described["description"]
    fields = {field.serialization_alias or field.alias for field in message.model_fields.values()}
    assert set(asyncapi["components"]["schemas"][message.__name__]["properties"]) == fields
    channels = {
        name for name, channel in asyncapi["channels"].items() if message.__name__ in channel.get("messages", {})
    }
    kinds = {re.sub(".*(?=Exchange|Queue)", "", name) for name in channels}
    assert kinds == ({"Exchange"} if message in _events() else {"Exchange", "Queue"})


def _events() -> set[type[Message]]:
    return {message for message in MESSAGES if issubclass(message, events.Event)}


async def test_the_channels_are_what_is_declared_on_the_broker(
    asyncapi: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each exchange, queue, argument and binding."""
    channel = AsyncMock()
    queues: dict[str, AsyncMock] = defaultdict(AsyncMock)
    channel.declare_queue.side_effect = lambda name, **_options: queues[name]
    connection = AsyncMock()
    connection.__aenter__.return_value.channel.return_value = channel
    monkeypatch.setattr(aio_pika, "connect", AsyncMock(return_value=connection))
    await topology.declare("amqp://nowhere", 2)
    for partitioned in topology.PARTITIONED:
        del queues[partitioned.queue_name(0)]  # the document speaks of the others

    exchanges = {call.args: call.kwargs["arguments"] or {} for call in channel.declare_exchange.await_args_list}
    assert {
        (exchange["name"], exchange["type"]): exchange.get("x-arguments", {})
        for exchange in _described(asyncapi, "exchange")
    } == exchanges
    declared = [call for call in channel.declare_queue.await_args_list if not call.kwargs.get("passive")]
    arguments = {call.args[0]: call.kwargs["arguments"] for call in declared}
    assert {
        queue["name"]: (
            queue["x-arguments"],
            {(bound["exchange"], bound["routingKey"]) for bound in queue["x-bindings"]},
        )
        for queue in _described(asyncapi, "queue")
        if not queue["exclusive"]
    } == {name: (arguments[name], {call.args for call in queue.bind.await_args_list}) for name, queue in queues.items()}


def test_the_queue_of_an_ingress_is_described(asyncapi: dict[str, Any]) -> None:
    """It is the only one that belongs to a process."""
    [described] = [queue for queue in _described(asyncapi, "queue") if queue["exclusive"]]
    queue = topology.ingress_queue("{process}")
    assert (described["name"], described["x-arguments"]) == (queue.name, queue.arguments)


def _described(asyncapi: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    bindings = [channel["bindings"]["amqp"] for channel in asyncapi["channels"].values()]
    text = json.dumps([binding[kind] for binding in bindings if kind in binding])
    described: list[dict[str, Any]] = json.loads(text.replace(".{partition}", ".1"))
    return described


def test_every_reference_leads_somewhere(asyncapi: dict[str, Any]) -> None:
    """Nothing refers to what the document does not have."""
    for target in re.findall(r"\$ref: '#/([^']+)'", (generate.FOLDER / "asyncapi.yaml").read_text(encoding="utf-8")):
        place: Any = asyncapi
        for step in target.split("/"):
            place = place[step]
        assert place

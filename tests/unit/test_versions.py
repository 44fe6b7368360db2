"""What consumers do with the versions of a message: they read the previous one, and ignore what they do not know."""

from types import SimpleNamespace
from typing import Any

import pytest

from schemas import generate, released
from service.errors import Undeliverable
from service.messaging import topology
from service.messaging.inbox import Delivery, Gate
from service.messaging.receiving import read
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.events import MessageSent
from whatsapp_qr_contracts.message import COMMANDS, Message

RELEASED = released.load(generate.FOLDER / released.RELEASED)
READ_BY_THE_SERVICE = [message for queue in topology.PARTITIONED for message in queue.carries]


@pytest.mark.parametrize("message", READ_BY_THE_SERVICE, ids=lambda message: message.name)
def test_what_was_released_is_read(message: type[Message]) -> None:
    """Each released example, under its released version, also where the present version is higher."""
    way, schema = RELEASED.messages[message.name]
    for example in schema["examples"]:
        assert _read(message, example, {"schema-version": way["schemaVersion"]})


def _read(message: type[Message], example: Any, headers: dict[str, Any]) -> Message:
    """Read an example as a consumer does that knows this message."""
    raw = SimpleNamespace(
        body=released.as_json(example).encode(),
        type=message.name,
        headers=headers,
        message_id="m",
        timestamp=None,
        redelivered=False,
    )
    return read(Delivery(raw, 0, Gate()), {message.name: message}, "queue").body


class SendMessage2(SendMessage):
    """A command whose body changed once."""

    schema_version = 2


@pytest.mark.parametrize("headers", [{"schema-version": 1}, {"schema-version": 2}, {}])
def test_a_consumer_reads_the_previous_version(headers: dict[str, Any]) -> None:
    """And its own, and takes the newest where none is named; fields that it does not know are ignored."""
    read = _read(SendMessage2, SendMessage.example() | {"future": {"x": 1}}, headers)
    assert read == SendMessage2.model_validate(SendMessage.example())


@pytest.mark.parametrize("version", [0, 3, -1, "2", None])
def test_a_consumer_refuses_a_version_that_it_does_not_know(version: object) -> None:
    """It becomes a dead letter, which can be replayed once the service is newer."""
    with pytest.raises(Undeliverable) as refused:
        _read(SendMessage2, SendMessage.example(), {"schema-version": version})
    assert refused.value.code == "unknown_version"


def test_the_direction_of_a_message_is_in_its_routing() -> None:
    """It decides what breaks."""
    ways = {name: way for name, (way, _) in RELEASED.messages.items()}
    assert {name for name, way in ways.items() if way["writer"] == "you"} == {
        name for name, way in ways.items() if way["exchange"] == COMMANDS
    }
    assert ways[MessageSent.name]["writer"] == "service"

"""The judge of the conformance tests sees each kind of difference between a message and schemas/."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tests.published import Published

PUBLISHED = Published()


def a_message(name: str = "message.sent") -> Any:
    """The documented example of a message, as it would be captured."""
    described = PUBLISHED.messages[name]
    example = described["examples"][0]
    return SimpleNamespace(
        body=json.dumps(example["payload"]).encode(),
        headers=dict(example["headers"]),
        exchange=described["x-exchange"],
        routing_key=described["x-routing-key"].replace("{partition}", "2"),
        message_id="id",
        correlation_id="cause",
        timestamp=datetime.now(UTC),
        delivery_mode=2,
        content_type="application/json",
        type=name,
    )


def body(**changes: Any) -> Callable[[Any], None]:
    """Change fields of the body; None removes one."""

    def change(message: Any) -> None:
        fields = json.loads(message.body) | changes
        message.body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()

    return change


def header(name: str, value: Any) -> Callable[[Any], None]:
    """Change a header; None removes it."""

    def change(message: Any) -> None:
        message.headers.pop(name, None)
        if value is not None:
            message.headers[name] = value

    return change


def put(name: str, value: Any) -> Callable[[Any], None]:
    """Change a property."""
    return lambda message: setattr(message, name, value)


@pytest.mark.parametrize("name", sorted(PUBLISHED.names))
def test_the_examples_conform(name: str) -> None:
    """Every documented example is without fault."""
    assert PUBLISHED.faults(a_message(name)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (body(messageId=None), "'messageId' is a required property"),
        (body(messageId="no uuid"), "is not a 'uuid'"),
        (body(occurredAt="2026-01-01T12:00:00"), "is not a 'date-time'"),
        (body(deliveryStatus="READ"), "'SENT' was expected"),
        (body(chatbotId=7), "7 is not of type 'string'"),
        (body(novelty="x"), "'novelty' was unexpected"),
        (header("partition-key", None), "'partition-key' is a required property"),
        (header("partition-key", "another"), "partition-key is not as described"),
        (header("schema-version", 99), "1 was expected"),
        (header("unheard-of", 1), "'unheard-of' was unexpected"),
        (put("message_id", " "), "message_id is not as described"),
        (put("correlation_id", None), "correlation_id is not as described"),
        (put("timestamp", None), "timestamp is not as described"),
        (put("delivery_mode", 1), "delivery_mode is not as described"),
        (put("content_type", None), "content_type is not as described"),
        (put("exchange", "whatsapp-qr.commands"), "exchange is not as described"),
        (put("routing_key", "message.sent.2"), "routing key is not as described"),
        (put("type", "message.unknown"), "message.unknown is described nowhere"),
    ],
)
def test_a_difference_is_found(change: Callable[[Any], None], says: str) -> None:
    """And named."""
    message = a_message()
    change(message)
    assert says in "\n".join(PUBLISHED.faults(message))

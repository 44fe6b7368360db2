"""The messages of the contract as AsyncAPI sees them: envelope, headers and payload."""

import importlib
import inspect
import pkgutil
import re
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

import whatsapp_qr_contracts
from service.messaging import topology
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import COMMANDS, Message

DEAD_LETTER = "DeadLetter"
PARTITION = "{partition}"
_PARTITION_KEY = {
    "type": "string",
    "description": "What decides the partition: the chatbot's id as lower-case text, or a session id of a foreign form",
}
_FURTHER_HEADERS: dict[type[Message], dict[str, Any]] = {
    IncomingJob: {
        "conversation-sequence": {
            "type": "integer",
            "minimum": 1,
            "description": "Counts the customer's messages of the conversation, from 1",
        }
    }
}
_DEAD_LETTER_HEADERS = {
    "reason": "Stable code; missing where the broker moved the message (routing key `delivery_limit` or its own)",
    "detail": "The reason in words",
    "source-queue": "The queue it was read from",
    "source-exchange": "The exchange it was published to",
    "source-routing-key": "The routing key it was published under",
    "source-path": "The path it was posted to, for the body of a gateway callback",
    "burial": "Identifies this death: a dead letter that is delivered twice counts once",
    "original": "JSON: the properties of the original, and those of its headers that could not be copied as they were",
}


def pattern(of_partition_1: str) -> str:
    """Return the pattern of a routing key or queue, given that of partition 1; other names stay as they are."""
    return re.sub(r"\.1$", f".{PARTITION}", of_partition_1)


def contract_messages() -> list[type[Message]]:
    """Return every message class of the contracts, by name."""
    found: set[type[Message]] = set()
    for module in pkgutil.iter_modules(whatsapp_qr_contracts.__path__, f"{whatsapp_qr_contracts.__name__}."):
        classes = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        found.update(kind for _, kind in classes if issubclass(kind, Message) and hasattr(kind, "name"))
    return sorted(found, key=lambda message: message.name)


def message_objects() -> dict[str, Any]:
    """Return the AsyncAPI message object of every message, by class name."""
    objects = {message.__name__: _message_object(message) for message in contract_messages()}
    return dict(sorted({**objects, DEAD_LETTER: _dead_letter()}.items()))


def _message_object(message: type[Message]) -> dict[str, Any]:
    return {
        "name": message.name,
        "title": message.__name__,
        "description": inspect.cleandoc(message.__doc__ or ""),
        "contentType": "application/json",
        "headers": _headers(message),
        "payload": {"$ref": f"#/components/schemas/{message.__name__}"},
        "correlationId": {
            "$ref": f"#/components/correlationIds/{'command' if message.exchange == COMMANDS else 'cause'}"
        },
        "bindings": {"amqp": {"messageType": message.name, "bindingVersion": "0.3.0"}},
        "x-exchange": message.exchange,
        "x-routing-key": pattern(topology.routing_key(message, 1)),
    }


def _headers(message: type[Message]) -> dict[str, Any]:
    version: dict[str, Any] = {"type": "integer", "const": message.schema_version}
    further = _FURTHER_HEADERS.get(message, {})
    headers: dict[str, Any] = {"type": "object"}
    if message.exchange == COMMANDS:
        version = {"type": "integer", "minimum": 1, "maximum": message.schema_version}
        version["description"] = "The newest where it is left out"
    else:
        headers["required"] = ["partition-key", "schema-version", *further]
    return headers | {
        "properties": {
            "partition-key": {"$ref": "#/components/schemas/PartitionKey"},
            "schema-version": version,
            **further,
        }
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "title": DEAD_LETTER,
        "description": "A message that can never be processed: its original bytes, with the reason in the headers.",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "description": "Beside the original headers:",
            "properties": {
                name: {"type": "string", "description": text} for name, text in _DEAD_LETTER_HEADERS.items()
            },
        },
        "payload": {"description": "Whatever was received, not necessarily JSON"},
        "correlationId": {"$ref": "#/components/correlationIds/cause"},
    }


class _WireSchema(GenerateJsonSchema):
    """Describes what is on the wire."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave titles out: they would only repeat the fields' names."""
        del schema
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: FBT001  # pydantic's signature
        """Say that what the service writes is complete, defaults included."""
        return self.mode == "serialization" or super().field_is_required(field, total)


def schemas() -> dict[str, Any]:
    """Return the JSON Schema of every payload and of every type in them, each once, by name."""
    modes: list[tuple[type[Message], JsonSchemaMode]] = [
        (message, "validation" if message.exchange == COMMANDS else "serialization") for message in contract_messages()
    ]
    _, found = models_json_schema(modes, ref_template="#/components/schemas/{model}", schema_generator=_WireSchema)
    every = {**found["$defs"], "PartitionKey": _PARTITION_KEY}
    return {name: _without_siblings_of_ref(every[name]) for name in sorted(every)}


def _without_siblings_of_ref(node: Any) -> Any:
    # AsyncAPI's schemas follow draft 07, where everything beside a $ref is ignored.
    match node:
        case {"$ref": str(target), **others} if others:
            return {"allOf": [{"$ref": target}], **_without_siblings_of_ref(others)}
        case dict():
            return {name: _without_siblings_of_ref(value) for name, value in node.items()}
        case list():
            return [_without_siblings_of_ref(value) for value in node]
        case _:
            return node

"""The published documents as a judge: what is wrong with a message that was captured, and what was never captured."""

import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from aio_pika.abc import AbstractIncomingMessage
from jsonschema import Draft202012Validator, FormatChecker

from tests.servers import REPOSITORY

SCHEMAS = REPOSITORY / "schemas"

_FORMATS = FormatChecker(["uuid"])


@_FORMATS.checks("date-time", raises=ValueError)
def _is_instant(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


class Published:
    """What schemas/ promises: one JSON Schema per message, and its headers and properties in asyncapi.yaml."""

    def __init__(self, folder: Path = SCHEMAS) -> None:
        self.asyncapi: dict[str, Any] = yaml.safe_load((folder / "asyncapi.yaml").read_text(encoding="utf-8"))
        self.openapi: dict[str, Any] = yaml.safe_load((folder / "openapi.yaml").read_text(encoding="utf-8"))
        self.bodies: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "messages").glob("*.json")
        }
        self.messages: dict[str, dict[str, Any]] = {
            message["name"]: message for message in self.asyncapi["components"]["messages"].values()
        }

    @property
    def names(self) -> set[str]:
        """Every message of the contract, by the name that it carries as its type."""
        return set(self.bodies)

    def faults(self, message: AbstractIncomingMessage) -> list[str]:
        """Say what about a captured message is not as published. What is not described is a fault too."""
        name = str(message.type)
        if name not in self.bodies or name not in self.messages:
            return [f"{name} is described nowhere"]
        described = self.messages[name]
        body = json.loads(message.body)
        found = [*_violations(self.bodies[name], body), *_violations(described["headers"], dict(message.headers))]
        found += self._wrong_properties(message, described, body)
        return [f"{name} {message.message_id}: {fault}" for fault in found]

    def _wrong_properties(
        self, message: AbstractIncomingMessage, described: dict[str, Any], body: dict[str, Any]
    ) -> list[str]:
        name, partition = str(message.routing_key).removeprefix(described["name"]), described["x-routing-key"]
        numbered = partition.endswith(".{partition}") and (not name or name.lstrip(".").isdigit())
        chatbot = str(body.get("chatbotId") or body["sessionId"].split("_")[1])
        properties = {
            "exchange": message.exchange == described["x-exchange"],
            "routing key": numbered or message.routing_key == partition,
            "message_id": bool((message.message_id or "").strip()),
            "correlation_id": bool((message.correlation_id or "").strip()),
            "timestamp": message.timestamp is not None,
            "delivery_mode": message.delivery_mode == 2,
            "content_type": message.content_type == described["contentType"],
            "type": message.type == described["bindings"]["amqp"]["messageType"],
            "partition-key": message.headers.get("partition-key") in {chatbot, body.get("sessionId")},
        }
        return [f"{name} is not as described" for name, right in properties.items() if not right]


def _violations(schema: dict[str, Any], value: Any) -> list[str]:
    validator = Draft202012Validator(_closed(schema), format_checker=_FORMATS)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses fields it does not name: readers ignore them, but they belong into the document."""
    closed = copy.deepcopy(schema)
    for part in [closed, *closed.get("$defs", {}).values()]:
        if "properties" in part:
            part.setdefault("additionalProperties", False)
    return closed

"""The JSON Schema of each message of the contract: of its body and of its headers."""

import inspect
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from whatsapp_qr_contracts.message import COMMANDS, Message

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def mode_of(message: type[Message]) -> JsonSchemaMode:
    """Return whose side the schema describes: what may be sent to the service, or what it sends."""
    return "validation" if message.exchange == COMMANDS else "serialization"


def examples(message: type[Message]) -> list[dict[str, Any]]:
    """Return bodies as they may come: a whole one, and a short one where others may leave something out."""
    whole, short = message.example(), message.example(required_only=True)
    return [whole, short] if mode_of(message) == "validation" and short != whole else [whole]


class WireSchema(GenerateJsonSchema):
    """Describes what is on the wire."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave titles out: they would only repeat the fields' names."""
        del schema
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: FBT001  # pydantic's signature
        """Say that what the service writes is complete, defaults included."""
        return self.mode == "serialization" or super().field_is_required(field, total)


def headers_schema(message: type[Message]) -> dict[str, Any]:
    """Return the schema of a message's AMQP headers."""
    schema = message.headers.model_json_schema(schema_generator=WireSchema)
    properties = {
        name: {word: value for word, value in of.items() if word != "default"}
        for name, of in schema["properties"].items()
    }
    version = {"maximum": message.schema_version} if message.exchange == COMMANDS else {"const": message.schema_version}
    properties["schema-version"] = properties["schema-version"] | version
    required = {"required": schema["required"]} if "required" in schema else {}
    return {"type": "object", "description": schema["description"], "properties": properties, **required}


def message_schema(message: type[Message]) -> dict[str, Any]:
    """Return the schema of a message's body as a document that needs no other."""
    schema = message.model_json_schema(mode=mode_of(message), schema_generator=WireSchema)
    head = {
        "$schema": DIALECT,
        "$id": f"urn:whatsapp-qr:{message.name}:{message.schema_version}",
        "title": message.__name__,
        "description": description(message),
    }
    return head | {word: value for word, value in schema.items() if word not in head} | {"examples": examples(message)}


def schemas_of(models: Sequence[tuple[type[BaseModel], JsonSchemaMode]]) -> dict[str, Any]:
    """Return the JSON Schema of models and of every type in them, each once, by name."""
    _, found = models_json_schema(models, ref_template="#/components/schemas/{model}", schema_generator=WireSchema)
    return {name: found["$defs"][name] for name in sorted(found["$defs"])}


def description(model: type[BaseModel]) -> str:
    """Return what a model's docstring says."""
    return inspect.cleandoc(model.__doc__ or "")

"""The messages of the contract as AsyncAPI sees them: envelope, headers, payload and examples."""

from typing import Any

from schemas.catalogue import description, examples, headers_schema, mode_of, schemas_of
from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.message import COMMANDS, Message

DEAD_LETTER = "DeadLetter"
_KEYS = {
    "chatbotId": "the body's `chatbotId` as lower-case text",
    "sessionId": "the chatbot in the body's `sessionId`, as lower-case text; a `sessionId` of a foreign form itself",
}
_DEAD_LETTER_HEADERS = {
    "reason": "Stable code; missing where the broker moved the message (routing key `delivery_limit` or its own)",
    "detail": "The reason in words",
    "source-path": "The path it was posted to, for the body of a gateway callback",
    "death-id": "Identifies this death: a dead letter that is delivered twice counts once",
    "original": "JSON: what was known of the original's properties",
}
_DEAD_LETTER_EXAMPLE = {
    "name": "aRefusedCallback",
    "summary": "A callback of the gateway without its `sessionId`",
    "headers": {
        "reason": "invalid_callback",
        "detail": "sessionId: Field required",
        "source-path": "/whatsapp-qr/webhook",
        "death-id": "5f0c7ad2b1de5c3f9a3c6a8d2e4b7f10",
        "original": "{}",
    },
    "payload": {"type": "qr", "data": {}},
}


def message_objects() -> dict[str, Any]:
    """Return the AsyncAPI message object of every message, by class name."""
    objects = {message.__name__: _message_object(message) for message in MESSAGES}
    return dict(sorted({**objects, DEAD_LETTER: _dead_letter()}.items()))


def _message_object(message: type[Message]) -> dict[str, Any]:
    return {
        "name": message.name,
        "title": message.__name__,
        "summary": description(message).partition("\n\n")[0],
        "description": description(message),
        "contentType": "application/json",
        "headers": headers_schema(message),
        "payload": {"$ref": f"#/components/schemas/{message.__name__}"},
        "correlationId": {
            "$ref": f"#/components/correlationIds/{'command' if message.exchange == COMMANDS else 'cause'}"
        },
        "examples": [
            {"name": name, "headers": message.headers.example(message.schema_version), "payload": payload}
            for name, payload in zip(("whole", "short"), examples(message), strict=False)
        ],
        "bindings": {"amqp": {"messageType": message.name, "bindingVersion": "0.3.0"}},
        "x-exchange": message.exchange,
        "x-routing-key": message.routing_key,
        "x-partition-key": _KEYS[message.keyed_by],
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "name": "dead-letter",
        "title": DEAD_LETTER,
        "summary": "A message that reached no handler",
        "description": "A message that reached no handler: its bytes, with the reason in the headers. What a consumer "
        "cannot process it writes into the table itself.",
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
        "examples": [_DEAD_LETTER_EXAMPLE],
    }


def schemas() -> dict[str, Any]:
    """Return the schema of every payload and of every type in them, each once, by name."""
    found = schemas_of([(message, mode_of(message)) for message in MESSAGES])
    return {name: _without_siblings_of_ref(schema) for name, schema in found.items()}


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

"""Additions to the OpenAPI document: errors, keys, and an example for everything."""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from service.ingress import bodies
from service.ingress.guard import describe_guard
from service.ingress.problems import CALLBACK_PATHS, ProblemBody, example
from whatsapp_qr_contracts.fields import A_CHATBOT, A_SESSION
from whatsapp_qr_contracts.message import WireModel

_BODIES = {name: kind for name, kind in vars(bodies).items() if isinstance(kind, type) and issubclass(kind, WireModel)}
_EVERYWHERE = {
    "400": ("invalid_request",),
    "401": ("unauthorized",),
    "403": ("forwarded", "foreign_host", "foreign_origin"),
    "413": ("content_too_large",),
    "503": ("broker_unavailable", "database_unavailable"),
}
_CALLBACKS = _EVERYWHERE | {
    "403": ("callback_from_elsewhere", "foreign_host", "foreign_origin"),
    "503": ("broker_unavailable",),
}
_READS = _EVERYWHERE | {"503": ("database_unavailable",)}
_ERRORS: dict[str, dict[str, tuple[str, ...]]] = {
    "init": {"404": ("unknown_chatbot",), "502": ("gateway_unreachable", "gateway_error")},
    "disconnect": {"404": ("no_session",)},
    "send": {"400": ("invalid_request", "not_connected"), "404": ("no_session",), "409": ("id_reused",)},
    "cancel": {"404": ("no_message",), "409": ("not_pending", "being_sent")},
    "qr_code": _READS | {"404": ("no_session", "no_qr_code")},
    "status": _READS | {"404": ("no_session",)},
    "session": _READS | {"404": ("no_session",)},
    "events": _READS | {"404": ("no_session",)},
    "message": _READS | {"404": ("no_message",)},
    "conversations": _READS | {"400": ("invalid_request", "invalid_cursor"), "404": ("not_found",)},
    "messages": _READS | {"400": ("invalid_request", "invalid_cursor"), "404": ("no_conversation",)},
}
_PARAMETERS = {
    "session_id": ("The session", A_SESSION),
    "chatbot_id": ("The chatbot", A_CHATBOT),
    "chatbotId": ("The chatbot", A_CHATBOT),
    "message_id": ("The message's id, as in POST /send and in the events", "213479c7-5b5a-56f5-8798-e081035027a2"),
    "conversation_id": ("The conversation", "acf6155f-620b-5a70-b926-049d6b11d50d"),
    "limit": ("Rows per page", 50),
    "cursor": (
        "nextCursor of the page before",
        "WyIyMDI2LTAxLTAxVDEyOjAwOjAwKzAwOjAwIiwgImFjZjYxNTVmLTYyMGItNWE3MC1iOTI2LTA0OWQ2YjExZDUwZCJd",
    ),
    "last-event-id": ("The id of the last event that was received: it is not repeated", "3"),
    "idempotency-key": ("The same key with the same body has one effect; keep it per message", "order-1234-shipped"),
}
_HEADERS = {
    "401": ("WWW-Authenticate", "The required scheme", "Bearer"),
    "503": ("Retry-After", "Seconds after which to try again", "2"),
}
_METRICS = "# HELP whatsapp_qr_retrying Operations that wait for the database or the broker\nwhatsapp_qr_retrying 0.0\n"


def describe(app: FastAPI) -> None:
    """Describe keys and our errors in the OpenAPI document; remove the framework's 422, which is never sent."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = generate()
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs", {}))
        schemas["ProblemBody"] = problem
        _restore_examples(schemas)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        describe_guard(document)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _describe(operation, path, schemas)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _restore_examples(schemas: dict[str, Any]) -> None:
    # FastAPI omits null values, even if an example shows that a field may be null.
    for name in schemas.keys() & _BODIES.keys():
        schemas[name]["examples"] = [_BODIES[name].example()]
        for field in _BODIES[name].model_fields.values():
            if field.examples:
                schemas[name]["properties"][field.alias]["examples"] = field.examples


def _describe(operation: dict[str, Any], path: str, schemas: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        parameter["description"], parameter["example"] = _PARAMETERS[parameter["name"]]
    for media in operation.get("requestBody", {}).get("content", {}).values():
        media["examples"] = dict(_examples(media["schema"], schemas))
    errors = (_CALLBACKS if path in CALLBACK_PATHS else _EVERYWHERE) | _ERRORS.get(operation["operationId"], {})
    for status, response in operation["responses"].items():
        if status in _HEADERS:
            name, text, value = _HEADERS[status]
            response["headers"] = {name: {"description": text, "schema": {"type": "string"}, "example": value}}
        for kind, media in response.get("content", {}).items():
            if kind == "application/problem+json":
                media["examples"] = {code: {"value": example(int(status), code)} for code in errors[status]}
            elif kind == "text/plain":
                media["example"] = _METRICS
            elif kind == "text/event-stream":  # OpenAPI 3.1 cannot describe the single events of a stream
                response["description"] = "The session, now and after each change; `data` is a SessionData"
                media.clear()
                media |= {"schema": {"type": "string"}, "example": _stream()}
            else:
                media["examples"] = dict(_examples(media["schema"], schemas))
                _say_what_it_is(response, media["schema"], schemas)


def _stream() -> str:
    data = json.dumps(bodies.SessionData.example())
    return f"event: session\ndata: {data}\nid: 3\nretry: 2000\n\n"


def _examples(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for option in schema.get("oneOf", [schema]):
        name = option["$ref"].rpartition("/")[2]
        for value in schemas[name]["examples"]:
            yield name, {"value": value}


def _say_what_it_is(response: dict[str, Any], schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    if response["description"] == "Successful Response":
        response["description"] = schemas[schema["$ref"].rpartition("/")[2]]["description"]

"""The OpenAPI document of the WhatsApp gateway: what any gateway must offer, and what it calls back."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from schemas.catalogue import DIALECT, description, schemas_of
from whatsapp_qr_contracts.fields import A_SESSION
from whatsapp_qr_contracts.gateway import (
    GatewayConnected,
    GatewayDisconnected,
    GatewayMessage,
    GatewayQr,
    GatewayReceipt,
    GatewayReport,
)
from whatsapp_qr_contracts.gateway_http import (
    DisconnectRequest,
    Done,
    Healthy,
    InitRequest,
    QrCodeAnswer,
    Refusal,
    SendRequest,
    SentAnswer,
    SessionsAnswer,
    StatusAnswer,
)
from whatsapp_qr_contracts.message import WireModel

_DESCRIPTION = """\
What the WhatsApp QR service asks of a WhatsApp gateway, a separate microservice that holds the connections to WhatsApp.
Whoever fulfils this can be named in `WHATSAPP_QR_SERVICE_URL`.

* Unknown fields are ignored on both sides.
* Every call may be repeated. A gateway that sends each `messageId` of POST /send once, however often it is asked,
  never doubles a message.
* 502, 503, 504 and 429 say that a call was not taken: it is repeated later. After 500, and after no answer in time
  (POST /init 8 s, POST /send 10 s, others 5 s), its outcome counts as unknown.
* 400 is a refusal. With a `code` it is believed; without one the service asks GET /status.

The webhooks below are what the gateway calls, at the ingress of the service, under the paths that they name. It waits
5 s for the answer. Only 200 says that the report is on disk; after 503 or no answer it must be repeated later if it is
not to be lost, and doing so is harmless. 400 says that the body is wrong: do not repeat it. Where the service has a
`WEBHOOK_TOKEN` or a `WEBHOOK_SECRET`, each call brings the one as a bearer token, or is signed with the other by
Standard Webhooks.
"""

_REPORTS: tuple[type[GatewayReport], ...] = (GatewayQr, GatewayConnected, GatewayDisconnected, GatewayReceipt)
_ASKED: tuple[type[WireModel], ...] = (InitRequest, SendRequest, DisconnectRequest, *_REPORTS, GatewayMessage)
_ANSWERED: tuple[type[WireModel], ...] = (
    *(Done, QrCodeAnswer, StatusAnswer, SessionsAnswer, SentAnswer, Refusal, Healthy),
)
_CODES = {
    "unknown_session": "There is no such session.",
    "not_connected": "The session is not connected.",
    "not_on_whatsapp": "5491112345678 is not on WhatsApp.",
    "restricted": "WhatsApp has restricted the account.",
    "refused": "WhatsApp refused the message.",
}
_SECURITY = {
    "WebhookToken": {"type": "http", "scheme": "bearer", "description": "WEBHOOK_TOKEN, where that is set"},
    "WebhookSignature": {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "With webhook-id and webhook-timestamp, by Standard Webhooks; where WEBHOOK_SECRET is set",
    },
}


@dataclass(frozen=True)
class _Call:
    operation: str
    method: str
    path: str
    answer: type[WireModel]
    asked: type[WireModel] | None = None
    refusals: tuple[str, ...] = ()
    unknown: bool = False

    def described(self) -> dict[str, Any]:
        """Return its OpenAPI operation."""
        model = self.asked or self.answer
        text = description(model).partition(": ")[2] if self.asked else description(model)
        operation: dict[str, Any] = {
            "operationId": self.operation,
            "summary": text[0].upper() + text[1:].partition("\n\n")[0],
            "tags": ["Gateway"],
        }
        if self.asked:
            operation["requestBody"] = {"required": True, "content": _content(self.asked)}
        answers = {"200": {"description": description(self.answer), "content": _content(self.answer)}}
        if self.refusals:
            answers["400"] = {"description": "Refused", "content": _refusals(self.refusals)}
        if self.unknown:
            answers["404"] = {"description": "There is none", "content": _refusals(("unknown_session",))}
        return {**operation, "responses": answers}


_CALLS = (
    _Call("init", "post", "/init", Done, InitRequest, ("restricted", "refused")),
    _Call("disconnect", "post", "/disconnect", Done, DisconnectRequest, ("unknown_session",)),
    _Call("send", "post", "/send", SentAnswer, SendRequest, tuple(_CODES)),
    _Call("status", "get", "/status/{sessionId}", StatusAnswer, unknown=True),
    _Call("sessions", "get", "/sessions", SessionsAnswer),
    _Call("qrCode", "get", "/qr-code/{sessionId}", QrCodeAnswer, unknown=True),
    _Call("health", "get", "/health", Healthy),
)


def document() -> dict[str, Any]:
    """Return the document."""
    # Of answers too: the service reads them, and what may be left out is left out.
    schemas = schemas_of([(model, "validation") for model in (*_ASKED, *_ANSWERED)])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "WhatsApp gateway",
            "version": version("whatsapp-qr-contracts"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": DIALECT,
        "servers": [{"url": "http://whatsapp-qr-service:3001", "description": "WHATSAPP_QR_SERVICE_URL"}],
        "security": [],
        "tags": [
            {"name": "Gateway", "description": "What the service calls"},
            {"name": "Callbacks", "description": "What the gateway calls"},
        ],
        "paths": _paths(),
        "webhooks": {
            "webhook": {"post": _callback("webhook", "/whatsapp-qr/webhook", _REPORTS)},
            "incoming": {"post": _callback("incoming", "/whatsapp-qr/incoming", (GatewayMessage,))},
        },
        "components": {"schemas": schemas | {"Problem": _PROBLEM}, "securitySchemes": _SECURITY},
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for call in _CALLS:
        path = paths.setdefault(call.path, {})
        path[call.method] = call.described()
        if "{sessionId}" in call.path:
            path["parameters"] = [
                {
                    "name": "sessionId",
                    "in": "path",
                    "required": True,
                    "description": "The session",
                    "schema": {"type": "string"},
                    "example": A_SESSION,
                }
            ]
    return paths


def _content(model: type[WireModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(model), "example": model.example()}}


def _reference(model: type[WireModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _refusals(codes: Sequence[str]) -> dict[str, Any]:
    examples = {code: {"value": {"success": False, "error": _CODES[code], "code": code}} for code in codes}
    return {"application/json": {"schema": _reference(Refusal), "examples": examples}}


def _flat(text: str) -> str:
    return " ".join(text.split())


def _callback(name: str, path: str, reports: Sequence[type[GatewayReport]]) -> dict[str, Any]:
    schema: dict[str, Any] = {"oneOf": [_reference(report) for report in reports]}
    examples = {report.name.removeprefix("gateway."): {"value": report.example()} for report in reports}
    answers: dict[str, Any] = {
        "200": {
            "description": "It is on disk, also for a session that is unknown",
            "content": {"application/json": {"schema": {"type": "object"}, "example": {"success": True}}},
        }
    }
    for status, (text, code, detail) in _REFUSED.items():
        problem = {"type": "about:blank", "title": text, "status": int(status), "code": code, "detail": detail}
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": {**problem, "success": False}}
        answers[status] = {"description": text, "content": {"application/problem+json": content}}
    return {
        "operationId": name,
        "summary": f"The gateway posts this to {path} of the ingress",
        "description": "\n".join(f"* `{report.name}`: {_flat(description(report))}" for report in reports),
        "tags": ["Callbacks"],
        "security": [{scheme: []} for scheme in _SECURITY],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": schema if len(reports) > 1 else _reference(*reports),
                    "examples": examples,
                }
            },
        },
        "responses": answers,
    }


_REFUSED = {
    "400": ("Bad Request", "invalid_request", "sessionId: Field required"),
    "401": ("Unauthorized", "unauthorized", "send WEBHOOK_TOKEN as `Authorization: Bearer <token>`"),
    "403": ("Forbidden", "callback_from_elsewhere", "this comes from another machine: set WEBHOOK_TOKEN"),
    "413": ("Content Too Large", "content_too_large", "the body has more than 1 MiB"),
    "503": ("Service Unavailable", "broker_unavailable", "try again: RabbitMQ is not reachable"),
}
_PROBLEM = {
    "type": "object",
    "description": "An error, by RFC 9457",
    "required": ["status", "code", "detail", "success"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; decide by this, not by the texts"},
        "detail": {"type": "string"},
        "success": {"const": False},
    },
}

"""Authorizes requests before they are processed. A refused request has no effect except a log line."""

from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ingress.keys import Keys
from service.ingress.problems import CALLBACK_PATHS, Problem, is_callback, responses

GUARDED = "/whatsapp-qr"

_log = structlog.get_logger()

_SCHEMES = {
    "ApiKey": {"type": "http", "scheme": "bearer", "description": "One of API_KEYS, if that is set"},
    "ApiKeyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "One of API_KEYS, if that is set",
    },
    "WebhookToken": {"type": "http", "scheme": "bearer", "description": "WEBHOOK_TOKEN, if that is set"},
    "WebhookSignature": {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "With webhook-id and webhook-timestamp, by Standard Webhooks; if WEBHOOK_SECRET is set",
    },
}


class Guard:
    """ASGI middleware: 401 or 403 for unauthorized requests; health and documentation are public."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        try:
            receive = await self._admit(Request(scope, receive), receive)
        except Problem as problem:
            await problem.answer()(scope, receive, send)
        except ClientDisconnect:
            return
        else:
            await self._app(scope, receive, send)

    async def _admit(self, request: Request, receive: Receive) -> Receive:
        """Return the source of the request's body for the application, or raise the Problem that answers it."""
        if not is_callback(request.scope["path"]):
            self._keys.admit_call(request.headers, request.scope["http_version"])
            return receive
        body = b""
        if self._keys.needs_body(request.headers):
            body = await request.body()
            receive = _once_more(body, receive)
        peer = request.client.host if request.client else None
        try:
            self._keys.admit_callback(request.headers, peer, body, request.scope["http_version"])
        except Problem as problem:
            # The gateway tries only once: its report is lost, and an operator has to be informed.
            _log.warning("callback_refused", peer=peer, code=problem.code, detail=problem.detail)
            raise
        return receive


def _once_more(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


def describe_guard(document: dict[str, Any]) -> None:
    """Add the required credentials of each call to the OpenAPI document."""
    document["components"]["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        if not path.startswith(GUARDED):
            continue
        schemes = ("WebhookToken", "WebhookSignature") if path in CALLBACK_PATHS else ("ApiKey", "ApiKeyHeader")
        for operation in operations.values():
            operation["responses"] |= {str(status): response for status, response in responses(401, 403).items()}
            operation["security"] = [{scheme: []} for scheme in schemes]

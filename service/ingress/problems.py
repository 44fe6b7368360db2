"""Every error that a caller can get, as application/problem+json (RFC 9457) with a stable code."""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from service.errors import BrokerUnavailable, Unavailable, Undeliverable
from service.messaging.dead_letters import dead_letter_callback
from service.messaging.publishing import Publisher

log = structlog.get_logger()

CALLBACK_PATHS = frozenset({"/whatsapp-qr/webhook", "/whatsapp-qr/incoming"})
_RETRY_AFTER_SECONDS = "2"


def is_callback(path: str) -> bool:
    """Return whether the router accepts this path as a callback's: its patterns allow a line feed at the end."""
    return path.removesuffix("\n") in CALLBACK_PATHS


class FieldFault(BaseModel):
    """The fault of one field."""

    field: str = Field(description="Path of the field, parts joined by dots; `body` for the whole body")
    message: str


class ProblemBody(BaseModel):
    """An error."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable; use this for decisions, not the texts")
    detail: str
    success: bool = False
    errors: list[FieldFault] | None = None


class Problem(Exception):  # noqa: N818  # RFC 9457's own word
    """Ends a request with an error."""

    def __init__(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers

    def answer(self) -> JSONResponse:
        """Return its response."""
        return answer(self.status, self.code, self.detail, headers=self.headers)


def _title(status: int) -> str:
    # The phrase of 413 differs between versions of Python.
    return "Content Too Large" if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else HTTPStatus(status).phrase


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of an endpoint's errors."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": _title(status), "content": content} for status in statuses}


_EXAMPLES = {
    "invalid_request": "to: write a phone number of 7 to 15 digits with country code (5491112345678)",
    "invalid_cursor": "take the cursor from nextCursor of the page before",
    "not_connected": "the session is DISCONNECTED: link it first, then send again",
    "unauthorized": "send a key, one of API_KEYS, as `Authorization: Bearer <key>` or as `X-API-Key: <key>`",
    "forwarded": "a proxy forwarded this, and without API_KEYS only this machine is let in: set API_KEYS",
    "foreign_host": "this machine must be called by the name localhost or 127.0.0.1",
    "foreign_origin": "a web page of another machine sent this; to allow it set API_KEYS",
    "callback_from_elsewhere": "this comes from another machine: set WEBHOOK_TOKEN or WEBHOOK_SECRET, here and at the "
    "gateway",
    "unknown_chatbot": "the chatbot is not registered: PUT /whatsapp-qr/chatbots/{id} registers it",
    "no_session": "the chatbot has no session: POST /whatsapp-qr/init creates one",
    "no_qr_code": "there is no QR code while the session is CONNECTED",
    "no_message": "there is no such message (yet)",
    "no_conversation": "there is no such conversation (yet)",
    "not_found": "Not Found",
    "id_reused": "this Idempotency-Key was used with another body: use a new one",
    "not_pending": "the message is SENT: only a PENDING message can be cancelled",
    "being_sent": "the message is being sent at this moment: try again in some seconds",
    "content_too_large": "the body may have at most 1048576 bytes",
    "gateway_unreachable": "the WhatsApp gateway did not open the session: is it running? Try again",
    "gateway_error": "the WhatsApp gateway did not open the session: is it running? Try again",
    "broker_unavailable": "try again: RabbitMQ is not reachable",
    "database_unavailable": "try again: the database is not available",
}


def example(status: int, code: str) -> dict[str, Any]:
    """Return the body of an error as an example."""
    detail = _EXAMPLES[code]
    errors = None
    if code == "invalid_request":
        field, _, message = detail.partition(": ")
        errors = [FieldFault(field=field, message=message)]
    body = ProblemBody(title=_title(status), status=status, code=code, detail=detail, errors=errors)
    return body.model_dump(exclude_none=True)


def answer(
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[FieldFault] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return the response of an error."""
    body = ProblemBody(title=_title(status), status=status, code=code, detail=detail, errors=errors)
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )


def unavailable(error: Unavailable) -> JSONResponse:
    """Return the response while the database or the broker is unavailable."""
    return answer(503, error.code, f"try again: {error.detail}", headers={"Retry-After": _RETRY_AFTER_SECONDS})


def _faults(error: RequestValidationError, content_type: str) -> list[FieldFault]:
    if content_type and "json" not in content_type:
        return [FieldFault(field="body", message=f"send JSON, with Content-Type: application/json, not {content_type}")]
    faults = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"] if part not in {"body", "query", "path", "header"}]
        if fault["type"] == "json_invalid":
            place = []
        message = str(fault["msg"]).removeprefix("Value error, ")
        faults.append(FieldFault(field=".".join(place) or "body", message=message))
    return faults


def _methods_at(request: Request) -> list[str]:
    # The framework names only the methods of the first endpoint with this path; there may be one endpoint per method.
    path = request.scope["path"]
    contexts = [one for one in iter_route_contexts(request.app.routes) if one.path and one.methods]
    return sorted(
        {name for one in contexts if compile_path(str(one.path))[0].match(path) for name in one.methods or ()}
    )


@dataclass(frozen=True)
class Problems:
    """Answers every error of the application as a problem; an unreadable callback is stored as a dead letter."""

    publisher: Publisher

    def install(self, app: FastAPI) -> None:
        """Install the handlers for the application's errors."""
        app.add_exception_handler(Problem, self.problem)
        app.add_exception_handler(Unavailable, self.away)
        app.add_exception_handler(RequestValidationError, self.malformed)
        app.add_exception_handler(HTTPException, self.http)
        app.add_exception_handler(Exception, self.unexpected)

    async def problem(self, _request: Request, error: Exception) -> JSONResponse:
        """Answer an endpoint's refusal."""
        assert isinstance(error, Problem)  # noqa: S101  # installed only for this class; likewise below
        return error.answer()

    async def away(self, _request: Request, error: Exception) -> JSONResponse:
        """Answer while the database or the broker is unavailable."""
        assert isinstance(error, Unavailable)  # noqa: S101
        return unavailable(error)

    async def malformed(self, request: Request, error: Exception) -> JSONResponse:
        """Answer a request with invalid fields."""
        assert isinstance(error, RequestValidationError)  # noqa: S101
        faults = _faults(error, request.headers.get("content-type", ""))
        if trouble := await self._keep(request, json.dumps([fault.model_dump() for fault in faults])):
            return trouble
        return answer(400, "invalid_request", "; ".join(f"{f.field}: {f.message}" for f in faults), errors=faults)

    async def http(self, request: Request, error: Exception) -> JSONResponse:
        """Answer the framework's refusals: unknown path, too large a body, or a body that is not JSON."""
        assert isinstance(error, HTTPException)  # noqa: S101
        status = error.status_code
        if status == HTTPStatus.BAD_REQUEST and (trouble := await self._keep(request, str(error.detail))):
            return trouble
        headers = dict(error.headers or {})
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods_at(request))
        return answer(status, _title(status).lower().replace(" ", "_"), str(error.detail), headers=headers)

    async def unexpected(self, request: Request, error: Exception) -> JSONResponse:
        """Answer and log an unexpected error."""
        route = getattr(request.scope.get("route"), "path", "none")
        log.error("request_failed", route=route, exc_info=error)
        return answer(500, "internal_error", "an unexpected error occurred; see the log of the ingress")

    async def _keep(self, request: Request, why: str) -> JSONResponse | None:
        """Store an invalid callback as a dead letter; return the answer if that is not possible now."""
        if not is_callback(request.scope["path"]):
            return None
        lost = Undeliverable(why, code="invalid_callback")
        try:
            await dead_letter_callback(self.publisher, await request.body(), lost, path=request.scope["path"])
        except BrokerUnavailable as trouble:
            return unavailable(trouble)
        return None

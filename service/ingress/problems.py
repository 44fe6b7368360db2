"""Every error that a caller can meet, as application/problem+json (RFC 9457) with a stable code."""

import json
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from service.errors import BrokerUnavailable, Unavailable, Undeliverable
from service.messaging.dead_letters import dead_letter_callback
from service.messaging.publishing import Publisher

log = structlog.get_logger()

CALLBACK_PATHS = frozenset({"/whatsapp-qr/webhook", "/whatsapp-qr/incoming"})
_RETRY_AFTER_SECONDS = "2"


class FieldFault(BaseModel):
    """What is wrong with one field."""

    field: str = Field(description="Path of the field, parts joined by dots; `body` for the whole body")
    message: str


class ProblemBody(BaseModel):
    """An error."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable; decide by this, not by the texts")
    detail: str
    success: bool = False
    errors: list[FieldFault] | None = None


class Problem(Exception):  # noqa: N818  # RFC 9457's own word
    """Ends a request with an error."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the errors that an endpoint may answer with."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def answer(
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[FieldFault] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return the response of an error."""
    body = ProblemBody(title=HTTPStatus(status).phrase, status=status, code=code, detail=detail, errors=errors)
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )


def unavailable(error: Unavailable) -> JSONResponse:
    """Return the response while a part that the service stands on is away."""
    return answer(503, error.code, f"try again: {error.detail}", headers={"Retry-After": _RETRY_AFTER_SECONDS})


def _faults(error: RequestValidationError) -> list[FieldFault]:
    faults = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"] if part not in {"body", "query", "path", "header"}]
        if fault["type"] == "json_invalid":
            place = []
        message = str(fault["msg"]).removeprefix("Value error, ")
        faults.append(FieldFault(field=".".join(place) or "body", message=message))
    return faults


def install(app: FastAPI, publisher: Publisher) -> None:
    """Let the application answer every error as a problem; a malformed callback is kept as a dead letter too."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> JSONResponse:
        return answer(error.status, error.code, error.detail)

    @app.exception_handler(Unavailable)
    async def away(_request: Request, error: Unavailable) -> JSONResponse:
        return unavailable(error)

    async def keep(request: Request, why: str) -> JSONResponse | None:
        """Keep a callback that cannot be used; return the answer where that is not possible now."""
        if request.url.path in CALLBACK_PATHS:
            lost = Undeliverable(why, code="invalid_callback")
            try:
                await dead_letter_callback(publisher, await request.body(), lost, path=request.url.path)
            except BrokerUnavailable as trouble:
                return unavailable(trouble)
        return None

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = _faults(error)
        if trouble := await keep(request, json.dumps([fault.model_dump() for fault in faults])):
            return trouble
        return answer(400, "invalid_request", "; ".join(f"{f.field}: {f.message}" for f in faults), errors=faults)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.BAD_REQUEST and (trouble := await keep(request, str(error.detail))):
            return trouble  # bytes that are no JSON text at all
        # The phrase of 413 differs between versions of Python.
        too_large = error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        code = "content_too_large" if too_large else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        headers = dict(error.headers) if error.headers else None
        return answer(error.status_code, code, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("request_failed", path=request.url.path, exc_info=error)
        return answer(500, "internal_error", "something failed here that should not; the log of the ingress says what")

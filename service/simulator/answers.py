"""Answers in the gateway's form, and answers that are never sent."""

import asyncio

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service.errors import GatewayRefused, Rejected, ServiceError


def failure(status: int, error: str, code: str | None = None) -> JSONResponse:
    """Return a failure in the gateway's form."""
    return JSONResponse({"success": False, "error": error} | ({"code": code} if code else {}), status)


async def explain(request: Request, error: Exception) -> JSONResponse:
    """Translate an error into a status code and a sentence."""
    match error:
        case GatewayRefused():
            return failure(400, error.detail, error.code)
        case Rejected():
            return failure(404 if error.code == "unknown_session" else 409, error.detail, error.code)
        case ServiceError():
            return failure(500, error.detail)
        case RequestValidationError():
            # The sender of a message has to know that another attempt is useless.
            return failure(400, _sentence(error), "refused" if request.url.path == "/send" else None)
        case HTTPException():
            return failure(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
        case _:
            raise error


def _sentence(error: RequestValidationError) -> str:
    parts = (f"{'.'.join(str(step) for step in fault['loc'])}: {fault['msg']}" for fault in error.errors())
    return "The request is not valid. " + "; ".join(parts)


class LateAnswer(JSONResponse):
    """An answer that is delayed until the client has disconnected, for at most so many seconds."""

    def __init__(self, content: object, *, seconds: float) -> None:
        super().__init__(content)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer a client that is still connected."""
        try:
            async with asyncio.timeout(self._seconds):
                await _client_gone(receive)
        except TimeoutError:
            await super().__call__(scope, receive, send)


class NoAnswer(Response):
    """No answer at all: the TCP connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reset the connection; if the server does not allow that, break off after the headers."""
        # ASGI cannot drop a connection. uvicorn's receive is a method of the object that holds the transport.
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        if transport is None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
            message = f"the simulator interrupts the answer of {scope['path']} on purpose"
            raise ConnectionAbortedError(message)
        transport.abort()
        await _client_gone(receive)


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Refuses bodies that are too large, before they are read."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ingress.problems import answer

MAX_BODY_BYTES = 1024 * 1024
_TOO_LARGE = 413
_DETAIL = f"the body may have at most {MAX_BODY_BYTES} bytes"


class BodyLimit:
    """ASGI middleware: 413 for a body of more than 1 MiB, declared or sent in chunks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            await answer(_TOO_LARGE, "content_too_large", _DETAIL)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(_TOO_LARGE, _DETAIL)
            return message

        try:
            await self._app(scope, counted, send)
        except HTTPException:  # raised while the guard read the body, before the application could answer it
            await answer(_TOO_LARGE, "content_too_large", _DETAIL)(scope, receive, send)

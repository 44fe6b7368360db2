"""Two ports of one process: the gateway's callbacks arrive at one, all other requests at the other."""

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from service.ingress.problems import answer, is_callback

_log = structlog.get_logger()


class Ports:
    """ASGI middleware: 404 for a request at the wrong port. The port is taken from the socket, never from a header."""

    def __init__(self, app: ASGIApp, internal_port: int | None) -> None:
        self._app = app
        self._internal_port = internal_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http" or self._internal_port is None:
            await self._app(scope, receive, send)
            return
        _, port = scope["server"] or ("", None)
        wanted = is_callback(scope["path"])
        if wanted == (port == self._internal_port):
            await self._app(scope, receive, send)
            return
        if wanted:
            # The gateway tries only once: its report is lost, and an operator has to be informed.
            _log.warning("callback_at_public_port", path=scope["path"], internal_port=self._internal_port)
        detail = "callbacks are accepted at another port" if wanted else "only callbacks are accepted at this port"
        await answer(404, "not_found", f"{detail}: see INTERNAL_PORT")(scope, receive, send)

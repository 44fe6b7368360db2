"""Counts the ingress' answers, by route and status, for /metrics, and traces them."""

import structlog
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics, tracing

_TRACED = "/whatsapp-qr"
_SERVER_ERROR = 500
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})


class Counting:
    """ASGI middleware, the outermost: it also counts requests that the others refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        structlog.contextvars.clear_contextvars()  # one connection's requests may share a context
        if not scope["path"].startswith(_TRACED):
            await self._counted(scope, receive, send, None)
            return

        # A requested path may contain anything, and each would be a separate span name: so only the route is recorded.
        def describe() -> tracing.Attributes:
            return {"http.request.method": _method(scope), "url.scheme": scope["scheme"]}

        with tracing.root(_method(scope), SpanKind.SERVER, describe, Headers(scope=scope)) as span:
            await self._counted(scope, receive, send, span)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, span: Span | None) -> None:
        answered = False

        async def noted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                _note(scope, message["status"], span)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if not answered:  # the framework answers it outside of all middleware
                _note(scope, _SERVER_ERROR, span)
            raise


def _note(scope: Scope, status: int, span: Span | None) -> None:
    # Each requested path would be a new series, so only the route's template is recorded.
    route = getattr(scope.get("route"), "path", "none")
    metrics.REQUESTS.labels(_method(scope), route, status).inc()
    if span is not None:
        span.update_name(f"{_method(scope)} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= _SERVER_ERROR:
            span.set_status(StatusCode.ERROR)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"

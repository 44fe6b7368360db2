"""Counts what the ingress answers, by route and status, for /metrics."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics


class Counting:
    """ASGI middleware, the outermost: what the others refuse is counted too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it was answered."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A path as it was asked for would be a new series each: only the route's own template is told.
                route = getattr(scope.get("route"), "path", "none")
                metrics.REQUESTS.labels(scope["method"], route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, noted if scope["type"] == "http" else send)

"""How a consumer process is: /livez, /readyz and /metrics."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import metrics
from service.errors import DatabaseUnavailable
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.persistence.schema import Schema


@dataclass(frozen=True)
class Health:
    """The endpoints that tell how a consumer process is.

    Args:
        living: by name, whether each task is there without which nothing is done.
        consuming: whether every partition is subscribed and nothing is held.
        observe: refreshes the metrics that are looked up rather than counted.
        publisher: says whether the broker answers.
        database: says whether it answers.
        schema: says whether it is as it should be.
    """

    living: Callable[[], dict[str, bool]]
    consuming: Callable[[], bool]
    observe: Callable[[], Awaitable[None]]
    publisher: Publisher
    database: Database
    schema: Schema

    def routes(self) -> list[Route]:
        """Return the endpoints under their paths."""
        return [Route("/livez", self.livez), Route("/readyz", self.readyz), Route("/metrics", self.metrics)]

    async def livez(self, _request: Request) -> JSONResponse:
        """Say whether it works at all. Never the broker or the database: an outage must not restart every process."""
        checks = self.living()
        alive = all(checks.values())
        return JSONResponse({"success": alive, "checks": checks}, 200 if alive else 503)

    async def readyz(self, _request: Request) -> JSONResponse:
        """Say whether work would be done now."""
        checks = {"consuming": self.consuming(), "broker": await self.publisher.ping(), "database": True}
        try:
            await self.database.ping()
        except DatabaseUnavailable:
            checks["database"] = False
        fault = await self.schema.fault()
        checks["schema"] = not fault
        ready = all(checks.values())
        answer = {"success": ready, "checks": checks} | ({"detail": fault} if fault else {})
        return JSONResponse(answer, 200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """Tell Prometheus about this process."""
        await self.observe()
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

"""The health of a consumer process: /livez, /readyz and /metrics."""

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
    """The health endpoints of a consumer process.

    Args:
        living: returns, by name, whether each necessary task runs.
        consuming: returns whether every partition is subscribed and no operation is being retried.
        observe: refreshes the metrics that are read from the database.
        publisher: checks the broker.
        database: is checked.
        schema: checks the revision.
    """

    living: Callable[[], dict[str, bool]]
    consuming: Callable[[], bool]
    observe: Callable[[], Awaitable[None]]
    publisher: Publisher
    database: Database
    schema: Schema

    def routes(self) -> list[Route]:
        """Return the routes of the endpoints."""
        return [Route("/livez", self.livez), Route("/readyz", self.readyz), Route("/metrics", self.metrics)]

    async def livez(self, _request: Request) -> JSONResponse:
        """Report whether the tasks run. It ignores broker and database: an outage must not restart every process."""
        checks = self.living()
        alive = all(checks.values())
        return JSONResponse({"success": alive, "checks": checks}, 200 if alive else 503)

    async def readyz(self, _request: Request) -> JSONResponse:
        """Report whether messages would be processed now."""
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
        """Return the metrics of this process."""
        await self.observe()
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

"""Builds the ingress: REST calls, gateway callbacks, reads, health, documentation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.responses import PlainTextResponse, Response

from service import metrics
from service.ending import Ending
from service.ingress.agreeing import Agreement
from service.ingress.bodies import Accepted
from service.ingress.callbacks import callbacks
from service.ingress.commands import Commands
from service.ingress.counting import Counting
from service.ingress.describing import describe
from service.ingress.documents import documents
from service.ingress.guard import Guard
from service.ingress.keys import Keys
from service.ingress.limits import BodyLimit
from service.ingress.ports import Ports
from service.ingress.problems import Problems
from service.ingress.reads import Reads
from service.ingress.streams import Streams
from service.messaging.listening import Listener
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.tracing import NOT_BY_FASTAPI
from service.waiting import Waiters

_DESCRIPTION = """Links chatbots to WhatsApp by QR code, and sends and receives their messages.

A 2xx answer means that the message broker has the request on disk. Errors are `application/problem+json` with a stable
`code`; 503 has `Retry-After`. If `API_KEYS` is set, every call needs a key (Authorize, below). To use
the service by AMQP see [/asyncapi](asyncapi)."""


def build_ingress(
    publisher: Publisher,
    database: Database,
    listener: Listener,
    waiters: Waiters,
    streams: Streams,
    keys: Keys,
    *,
    version: str,
    internal_port: int | None = None,
) -> FastAPI:
    """Return the application of the ingress. It accepts requests at once, even if other parts are unavailable.

    With an internal port, only that port accepts callbacks, and it accepts nothing else.
    """
    ending = Ending()
    agreement = Agreement(database, publisher.partitions, ending)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        listener.start()
        agreement.start()
        yield
        await agreement.end()
        await listener.stop()
        await publisher.close()
        await database.close()

    app = FastAPIOffline(
        title="WhatsApp QR service",
        version=version,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        redoc_url=None,
        telemetry=NOT_BY_FASTAPI,
        strict_content_type=False,  # a callback without a content type must not be lost
    )
    app.state.streams, app.state.ending = streams, ending
    app.add_middleware(Guard, keys=keys)
    app.add_middleware(BodyLimit)  # middleware added later runs earlier: the limit covers the guard's reads too
    app.add_middleware(Ports, internal_port=internal_port)
    app.add_middleware(Counting)
    Problems(publisher).install(app)
    app.include_router(Commands(publisher, database, waiters).router())
    app.include_router(Reads(database, streams).router())
    app.include_router(callbacks(publisher))
    app.include_router(documents())

    @app.get("/livez", tags=["Health"])
    async def livez() -> Accepted:
        """Answer while the process is alive."""
        return Accepted()

    @app.get("/readyz", tags=["Health"])
    async def readyz() -> Accepted:
        """Answer once requests are accepted. Callbacks are accepted during any outage, so no other part is checked."""
        return Accepted()

    @app.get("/metrics", tags=["Health"], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Return the metrics of this process."""
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    describe(app)
    return app

"""Puts the ingress together: REST calls, gateway callbacks, reads, health, documentation."""

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
`code`; 503 carries `Retry-After`. Where `API_KEYS` is set, every call brings a key (Authorize, below). To use
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
    """Return the ingress' application. It takes requests at once, whatever else is away.

    With an internal port, callbacks are taken there alone, and nothing else is.
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
    app.add_middleware(BodyLimit)  # the last one added comes first: what the guard reads is limited too
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
        """Answer as soon as requests are taken. Callbacks are taken whatever else is away, so nothing else counts."""
        return Accepted()

    @app.get("/metrics", tags=["Health"], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Tell Prometheus about this process."""
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    describe(app)
    return app

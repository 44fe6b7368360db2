"""Builds the simulator's web application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service import tracing
from service.errors import ServiceError
from service.loopback import fault_of, is_forwarded
from service.simulator import contract, control
from service.simulator.answers import explain, failure
from service.simulator.phones import PairingPace
from service.simulator.signing import Credentials
from service.simulator.simulator import SimulatorOptions, running_simulator


class Traced:
    """ASGI middleware: reports caused by a call become part of the call's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        with tracing.continued(headers.get("traceparent")):
            await self._app(scope, receive, send)


class OnlyHere:
    """ASGI middleware: refuses requests that may come from a web page open on this machine, or through a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            fault = fault_of(headers)
            if is_forwarded(headers, scope["http_version"]):
                fault = "forwarded", "a proxy forwarded this"
            if fault:
                code, detail = fault
                await failure(403, f"{detail}; to accept other machines set SIMULATOR_HOST", code)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def simulator_app(  # noqa: PLR0913  # all by name: one for each value that tests change
    *,
    callback_url: str,
    state_path: Path | None = None,
    public_url: str = "http://127.0.0.1:3001",
    connecting_seconds: float = 0.2,
    qr_seconds: float = 20,
    qr_limit: int = 15,
    receipt_delay: float = 0.2,
    hold_seconds: float = 60,
    credentials: Credentials | None = None,
    only_here: bool = False,
) -> FastAPI:
    """Return a WhatsApp gateway with simulated phones; it works while its lifespan runs.

    Args:
        callback_url: Base URL of the ingress; callbacks go to `/whatsapp-qr/webhook` and `/whatsapp-qr/incoming`.
        state_path: SQLite file that stores sessions, sent messages and waiting callbacks; None keeps them in memory.
        public_url: Base URL of the simulator for people; only for the logged hint how to scan.
        connecting_seconds: From /init to the first QR code.
        qr_seconds: How long a QR code is shown before the next one.
        qr_limit: QR codes shown before a pairing ends (`qr_expired`).
        receipt_delay: Seconds from a send to `delivered`, and from there to `read`.
        hold_seconds: How long the fault `timeout_after_accept` delays an answer.
        credentials: Credentials of every callback; None if none are required.
        only_here: Refuse requests that may come from a web page or through a proxy: only this machine may call it.
    """
    options = SimulatorOptions(
        callback_url=callback_url,
        credentials=credentials or Credentials(),
        state_path=state_path,
        public_url=public_url.rstrip("/"),
        receipt_delay=receipt_delay,
        hold_seconds=hold_seconds,
        pace=PairingPace(connecting_seconds=connecting_seconds, qr_seconds=qr_seconds, qr_limit=qr_limit),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running_simulator(options) as simulator:
            app.state.simulator = simulator
            yield

    app = FastAPI(
        title="WhatsApp gateway simulator",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=tracing.NOT_BY_FASTAPI,
    )
    for error in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, explain)
    app.add_middleware(Traced)
    if only_here:
        app.add_middleware(OnlyHere)
    app.include_router(contract.routes)
    app.include_router(control.routes)
    return app

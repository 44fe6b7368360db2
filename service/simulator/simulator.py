"""The running simulator: its parts, wired together, and its background work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import structlog
from fastapi import Depends, Request

from service.simulator.callbacks import CallbackLanes
from service.simulator.chats import Chats
from service.simulator.faults import Faults
from service.simulator.phones import PairingPace, Phones
from service.simulator.reporting import Reports
from service.simulator.signing import Credentials
from service.simulator.store import Store
from service.tasks import end
from whatsapp_qr_contracts.message import SessionStatus

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """The simulator's options; `simulator_app` explains each."""

    callback_url: str
    credentials: Credentials
    state_path: Path | None
    public_url: str
    receipt_delay: float
    hold_seconds: float
    pace: PairingPace


@dataclass(slots=True, kw_only=True)
class Simulator:
    """The objects that the endpoints use."""

    phones: Phones
    chats: Chats
    reports: Reports
    hold_seconds: float
    faults: Faults


@asynccontextmanager
async def running_simulator(options: SimulatorOptions) -> AsyncIterator[Simulator]:
    """Open the state, resume waiting work, and run pairings and callbacks until the end."""
    store = Store(options.state_path)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    # trust_env: callbacks go to our own ingress, never through a proxy
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:  # noqa: S113 - lanes time out
        lanes = CallbackLanes(store, client, options.callback_url, options.credentials)
        reports = Reports(store, lanes.wake)
        phones = Phones(store, reports, options.pace)
        phones.resume()
        lanes.start()
        pairing = asyncio.create_task(_keep_pairing(phones, options.public_url))
        try:
            yield Simulator(
                phones=phones,
                chats=Chats(store, reports, options.receipt_delay),
                reports=reports,
                hold_seconds=options.hold_seconds,
                faults=Faults(),
            )
        finally:
            await end([pairing])
            await lanes.stop()
            store.close()


async def _keep_pairing(phones: Phones, public_url: str) -> None:
    while True:
        phones.changed.clear()
        session = phones.advance()
        if session is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(phones.next_advance()):
                    await phones.changed.wait()
            continue
        if session.status is SessionStatus.QR_READY and session.codes_shown == 1:
            url = f"{public_url}/simulator/sessions/{session.session_id}/scan"
            _log.info("simulator.qr_ready", scan_with=f"""curl {url} --json '{{"phoneNumber": "5491112345678"}}'""")
        await asyncio.sleep(0)


async def _simulator(request: Request) -> Simulator:
    simulator: Simulator = request.app.state.simulator
    return simulator


Running = Annotated[Simulator, Depends(_simulator)]
"""The running simulator, for an endpoint."""

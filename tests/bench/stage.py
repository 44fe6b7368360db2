"""The stage of the benchmark: real servers, real processes, linked sessions, and the calls that are made to them."""

import asyncio
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.calling import Request, percentiles, post_all
from tests.bench.measuring import LOOK_SECONDS, Cost, Meter, total
from tests.servers import Broker, Postgres
from tests.system import Process, System, eventually

AT_ONCE = 32
_LINKS_AT_ONCE = 16
_UNPACED = {"SEND_RATE": "100000", "SEND_BURST": "100000"}
_QUIET = {"SWEEP_PERIOD": "3600", "RECONCILE_PERIOD": "3600"}
_MINUTES = 600.0


def be_started_anew(name: str, environment: dict[str, str], log: Path) -> None:
    """Be a process with nothing in memory but its own: a forked one would share what others have imported."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(log.parent)
    os.execve(sys.executable, [sys.executable, "-m", "service.cli", name], environment)  # noqa: S606  # ourselves


@dataclass
class Stage:
    """A running service that is measured."""

    system: System
    meter: Meter
    chatbots: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)

    async def start(self, name: str, **settings: str) -> Process:
        """Start a process."""
        return (await self.system.start(name, **(_UNPACED | _QUIET | settings)))[0]

    def running(self, name: str) -> Process:
        """Return a process that runs."""
        return next(process for process in self.system.named(name) if process.alive)

    async def stop(self, *names: str) -> None:
        """Stop processes; they finish what they have begun."""
        for process in [one for one in self.system.processes if one.name in names and one.alive]:
            assert await process.stop() == 0, process.log()[-2000:]

    async def link(self, count: int) -> None:
        """Link so many chatbots, some at once: init, QR code, scan, and wait until all are CONNECTED."""
        while len(self.sessions) < count:  # a QR code that is not scanned soon is shown anew, and reported
            chatbots = [str(uuid.uuid4()) for _ in range(min(_LINKS_AT_ONCE, count - len(self.sessions)))]
            await post_all(
                self.system.api,
                lambda number, of=chatbots: ("/init", {"chatbotId": of[number]}),
                len(chatbots),
                AT_ONCE,
            )
            answers = [await self.system.get(f"/session/{chatbot_id}") for chatbot_id in chatbots]
            sessions = [str(answer.raise_for_status().json()["data"]["sessionId"]) for answer in answers]
            for session_id in sessions:  # /init answers 202 before, where the machine is busy
                await eventually(lambda one=session_id: self._starts(one))
            await post_all(
                self.system.controls,
                lambda number, of=sessions: (f"/sessions/{of[number]}/scan?wait=20", {"phoneNumber": "5491100000000"}),
                len(sessions),
                AT_ONCE,
            )
            self.chatbots += chatbots
            self.sessions += sessions
        await self.handled("session-consumer", count, "whatsapp_qr_session_transitions_total", status="CONNECTED")

    async def _starts(self, session_id: str) -> bool:
        gateway = self.system.controls.removesuffix("/simulator")
        return (await self.system.http.get(f"{gateway}/status/{session_id}")).is_success

    async def handled(self, name: str, count: float, metric: str = "whatsapp_qr_handled_total", **labels: str) -> None:
        """Wait until a process has done so much."""
        process = self.running(name)
        async with asyncio.timeout(_MINUTES):
            while total(await self.meter.page(process), metric, **labels) < count:
                await asyncio.sleep(LOOK_SECONDS)

    async def call(self, make: Any, count: int, at_once: int, label: str) -> dict[str, float]:
        """Make so many calls of the ingress, and return how long its answers took."""
        return percentiles(await post_all(self.system.api, make, count, at_once), label)

    def incoming(self, mark: str, *, sessions: int = 0) -> Any:
        """Return what makes customers' messages: to so many sessions in turn, one customer each."""
        chosen = self.sessions[: sessions or None]

        def make(number: int) -> Request:
            return "/incoming", {
                "sessionId": chosen[number % len(chosen)],
                "from": "5491112345678",
                "message": "Is my order on its way? It should have come yesterday.",
                "messageId": f"{mark}{number}",
                "timestamp": int(time.time()),
            }

        return make

    def send(self, *, sessions: int = 0) -> Any:
        """Return what makes messages to send."""
        chosen = self.chatbots[: sessions or None]
        text = "It is: the carrier says tomorrow between nine and twelve."

        def make(number: int) -> Request:
            return "/send", {"chatbotId": chosen[number % len(chosen)], "to": "5491112345678", "message": text}

        return make

    async def receipts(self, count: int) -> Any:
        """Return what makes receipts for what the simulator has sent."""
        answer = await self.system.http.get(f"{self.system.controls}/sent")
        sent = answer.json()["sent"][-count:]

        def make(number: int) -> Request:
            data = {"messageId": sent[number]["messageId"], "status": "delivered", "timestamp": int(time.time())}
            return "/webhook", {"type": "receipt", "sessionId": sent[number]["sessionId"], "data": data}

        return make

    async def backlog(self, name: str, items: int, metric: str = "whatsapp_qr_handled_total", **labels: str) -> Cost:
        """Follow a process through what waits for it."""
        return await self.meter.backlog(self.running(name), items, metric, **labels)


@asynccontextmanager
async def staged(kind: str, folder: Path) -> AsyncIterator[Stage]:
    """Run the servers, an empty database of a kind and the whole service."""
    async with AsyncExitStack() as ends:
        broker, postgres = Broker(), Postgres() if kind == "postgres" else None
        database = f"sqlite+aiosqlite:///{folder / 'bench.db'}"
        for server in filter(None, (broker, postgres)):
            ends.push_async_callback(server.close)
            await server.start()
        if postgres is not None:
            database = await postgres.create_database()
        system = System(await broker.renew(), database, folder, entry=be_started_anew)
        ends.push_async_callback(system.close)
        stage = Stage(system, Meter(system, broker, postgres))
        await system.migrate()
        for name in ("ingress", "session-consumer", "conversation-consumer", "outbound-consumer", "simulator"):
            await stage.start(name)
        await system.faults(receipts=False)
        yield stage

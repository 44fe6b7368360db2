"""What is measured, case by case: a process alone with a backlog, so that nothing else keeps it waiting."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.calling import Request, percentiles, post_all
from tests.bench.measuring import Cost, cost, cpu_seconds, memory
from tests.bench.stage import AT_ONCE, Stage
from tests.servers import REPOSITORY, free_ports
from tests.system import CONSUMERS, eventually

PROCESSES = ("ingress", *CONSUMERS)
_IDLE_SECONDS = 10.0
_DUTY_RUNS = 20
_GATEWAY_SECONDS = 0.3
_ALONE = 50
_PACED_SESSIONS = 20
_TURNS = 5


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    messages: int = 2000
    sessions: int = 1000

    @property
    def few(self) -> int:
        """For what takes longer per item."""
        return max(self.messages // 5, 10)


Costs = dict[str, Cost]
Memory = dict[str, dict[str, float]]
"""Megabytes by process: idle, and after everything, with all sessions."""


async def idle(stage: Stage) -> Cost:
    """The whole service with nothing to do: the cost of one second."""
    first = await stage.meter.read()
    await asyncio.sleep(_IDLE_SECONDS)
    return cost(first, await stage.meter.read(), int(_IDLE_SECONDS))


async def pairing(stage: Stage, size: Size) -> Cost:
    """Init, QR code, scan, CONNECTED, through all processes."""
    return await stage.meter.during(stage.running("session-consumer"), lambda: stage.link(size.sessions), size.sessions)


async def whole(stage: Stage, size: Size) -> Costs:
    """From the call to the job for the workers, and from the call to the gateway, all processes at once."""
    conversation, outbound = stage.running("conversation-consumer"), stage.running("outbound-consumer")

    async def received() -> None:
        await post_all(stage.system.api, stage.incoming("first"), size.messages, AT_ONCE)
        await stage.handled("conversation-consumer", size.messages, type="gateway.message")

    async def sent() -> None:
        await post_all(stage.system.api, stage.send(), size.messages, AT_ONCE)
        await stage.handled("outbound-consumer", size.messages, "whatsapp_qr_sends_total", outcome="sent")

    return {
        "whole, a customer's message": await stage.meter.during(conversation, received, size.messages),
        "whole, a send": await stage.meter.during(outbound, sent, size.messages),
    }


async def doors(stage: Stage, size: Size) -> Costs:
    """The ingress alone: callbacks and sends, one at a time and many at once. Leaves a backlog."""
    ingress, costs = stage.running("ingress"), Costs()
    for name, make in (("callback", stage.incoming("many")), ("send", stage.send())):
        latency: dict[str, float] = {}

        async def many(make: object = make, latency: dict[str, float] = latency) -> None:
            latency.update(await stage.call(make, size.messages, AT_ONCE, f"of {AT_ONCE} at once"))

        found = await stage.meter.during(ingress, many, size.messages)
        alone = stage.incoming("alone") if name == "callback" else make
        latency.update(await stage.call(alone, size.few, 1, "alone"))
        costs[f"ingress, {name}"] = replace(found, latency_ms=latency)
    return costs


async def conversations(stage: Stage, size: Size) -> Costs:
    """The conversation consumer on the backlog that the doors left; then one session alone, then receipts."""
    name, waiting = "conversation-consumer", size.messages + size.few
    await stage.start(name)
    incoming, outgoing = await asyncio.gather(
        stage.backlog(name, waiting, type="gateway.message"), stage.backlog(name, waiting, type="message.send")
    )
    costs = {"conversation, a customer's message": incoming, "conversation, a send": outgoing}
    await stage.stop(name)
    await post_all(stage.system.api, stage.incoming("one", sessions=1), size.messages, AT_ONCE)
    await stage.start(name)
    costs["conversation, one session alone"] = await stage.backlog(name, size.messages, type="gateway.message")
    return costs


async def receipts(stage: Stage, size: Size) -> Costs:
    """The conversation consumer on receipts of what was sent."""
    name = "conversation-consumer"
    await stage.stop(name)
    await post_all(stage.system.api, await stage.receipts(size.messages), size.messages, AT_ONCE)
    await stage.start(name)
    return {"conversation, a receipt": await stage.backlog(name, size.messages, type="gateway.receipt")}


async def sends(stage: Stage, size: Size) -> Costs:
    """The outbound consumer on the backlog: many sessions without pacing, then few with one message a second each."""
    name, sent = "outbound-consumer", {"outcome": "sent"}
    await stage.stop("conversation-consumer")
    await stage.start(name)
    waiting = size.messages + size.few
    costs = {"outbound, a send": await stage.backlog(name, waiting, "whatsapp_qr_sends_total", **sent)}
    await stage.stop(name)
    sessions = min(size.sessions, _PACED_SESSIONS)
    await post_all(stage.system.api, stage.send(sessions=sessions), 9 * sessions, AT_ONCE)
    await stage.start("conversation-consumer")
    await stage.handled("conversation-consumer", 9 * sessions, type="message.send")
    await stage.stop("conversation-consumer")
    outbound = await stage.start(name, SEND_RATE="1", SEND_BURST="1")
    await stage.handled(name, 2 * sessions, "whatsapp_qr_sends_total", **sent)
    paced = await stage.meter.counted(outbound, 5 * sessions, "whatsapp_qr_sends_total", **sent)
    costs[f"outbound, a paced send ({sessions} sessions)"] = paced
    await stage.handled(name, 9 * sessions, "whatsapp_qr_sends_total", **sent)
    await stage.stop(name)
    return costs


async def facts(stage: Stage, size: Size) -> Costs:
    """Reports that connections were lost and found; the session consumer asks the gateway about each."""
    costs, process = Costs(), stage.running("session-consumer")
    for act, report in (("drop", "disconnected"), ("reconnect", "connected")):
        kind = {"type": f"gateway.{report}"}
        begun = await process.metric(stage.system.http, "whatsapp_qr_handled_total", **kind)

        async def reported(act: str = act, begun: float = begun, kind: dict[str, str] = kind) -> None:
            def make(number: int) -> Request:
                return f"/sessions/{stage.sessions[number]}/{act}", {}

            await post_all(stage.system.controls, make, size.sessions, AT_ONCE)
            await stage.handled("session-consumer", begun + size.sessions, **kind)

        costs[f"session, {report}"] = await stage.meter.during(process, reported, size.sessions)
    return costs


async def duties(stage: Stage, size: Size) -> Costs:
    """One run of reconciler and sweeper over all sessions, all CONNECTED."""
    costs, name = Costs(), "session-consumer"
    for duty, setting in (("reconciler", "RECONCILE_PERIOD"), ("sweeper", "SWEEP_PERIOD")):
        await stage.stop(name)
        process = await stage.start(name, **{setting: "0.1"})
        runs = {"duty": duty, "outcome": "done"}
        await stage.handled(name, 2, "whatsapp_qr_duty_runs_total", **runs)
        found = await stage.meter.counted(process, _DUTY_RUNS, "whatsapp_qr_duty_runs_total", **runs)
        costs[f"{duty}, {size.sessions} sessions"] = found
    return costs


@asynccontextmanager
async def plain(stage: Stage, folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Run the handler that the service is compared with; give its URL and its process."""
    port = free_ports(1)[0]
    command = [str(REPOSITORY / "tests" / "bench" / "plain.py"), str(port), stage.system.database_url]
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'contracts'}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stage.system.controls.removesuffix("/simulator"),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
    )

    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(answers)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        await process.wait()


async def compared(stage: Stage, size: Size, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """How long callers wait here and of a handler that does everything itself, in turn, so that both have the same day.

    With a gateway that answers at once, and with one that takes 0.3 s. The plain handler's CPU per call comes with it.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    async with plain(stage, folder) as (url, pid):
        for name, seconds, make, ours in (
            ("a customer's message", 0.0, stage.incoming("plain"), stage.incoming("ours")),
            ("a send", 0.0, _plain_send(stage), stage.send()),
            (f"a send, gateway {_GATEWAY_SECONDS} s", _GATEWAY_SECONDS, _plain_send(stage), stage.send()),
        ):
            await stage.system.faults(receipts=False, latency=seconds)
            doors = {"service": (stage.system.api, ours), "plain": (url, make)}
            found[name] = {door: {} for door in doors}
            before = cpu_seconds([pid])
            for label, count, at_once in ((f"of {AT_ONCE} at once", size.messages // 2, AT_ONCE), ("alone", _ALONE, 1)):
                took: dict[str, list[float]] = {door: [] for door in doors}
                for door in list(doors) * _TURNS:
                    took[door] += await post_all(*doors[door], count // _TURNS, at_once)
                for door in doors:
                    found[name][door] |= percentiles(took[door], label)
            calls = sum(count // _TURNS * _TURNS for count in (size.messages // 2, _ALONE))
            found[name]["plain"]["cpu"] = (cpu_seconds([pid]) - before) * 1000 / calls
    await stage.system.faults(receipts=False)
    return found


def _plain_send(stage: Stage) -> object:
    def make(number: int) -> tuple[str, dict[str, str]]:
        session = stage.sessions[number % len(stage.sessions)]
        return "/send", {"sessionId": session, "to": "5491112345678", "message": "It is on its way."}

    return make


def memories(stage: Stage) -> dict[str, float]:
    """Megabytes by process."""
    return {process.name: memory(process) for process in stage.system.processes if process.alive}

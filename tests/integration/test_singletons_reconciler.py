"""The reconciler in the running service: what the gateway does not say, forgets or gets wrong is mended."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.integration.singletons import FAST, mended, mends_nothing, redriven, sample
from tests.system import Heard, NewSystem, System, eventually

STEPS = ("connected", "disconnected", "qr", "initialize", "end", "action_required")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, new_system: NewSystem) -> AsyncIterator[System]:
    async with new_system(request.param, **FAST) as system:
        yield system


async def session(system: System, session_id: str) -> dict[str, Any]:
    """The session as users see it."""
    answer = await system.get(f"/status/{session_id}")
    return answer.json()["session"] if answer.status_code == 200 else {}


async def becomes(system: System, session_id: str, status: str, reason: str | None = None) -> None:
    await eventually(
        lambda: session(system, session_id),
        lambda found: (found.get("status"), found.get("statusReason")) == (status, reason),
    )


async def became_lost(events: Heard, session_id: str) -> None:
    """Wait for the event: the reconciler begins the session anew soon after, and the status shows it only briefly."""

    async def look() -> bool:
        bodies = [json.loads(event.body) for event in events.messages]
        return any((one["sessionId"], one["statusReason"]) == (session_id, "connection_lost") for one in bodies)

    await eventually(look)


async def at_gateway(system: System, session_id: str) -> str | None:
    """The status that the gateway gives."""
    answer = await system.http.get(f"http://127.0.0.1:{system.simulator_port}/status/{session_id}")
    return answer.json()["session"]["status"] if answer.status_code == 200 else None


async def begun(system: System) -> str:
    """Ask for the link of a new chatbot and return its session id."""
    return (await system.post("/init", chatbotId=str(uuid4()))).json()["sessionId"]


@pytest.mark.one_database("postgres")
async def test_what_was_not_reported_is_found(system: System) -> None:
    """With every callback lost: the QR code, the connection, its loss and its return are found one after another."""
    before = {step: await redriven(system, f"session_{step}") for step in STEPS}
    await system.faults(loseCallbacks=True)
    try:
        session_id = await begun(system)
        await system.scan(session_id)  # waits for QR_READY before and for CONNECTED afterwards
        events = await system.hear("whatsapp-qr.events", "session.disconnected")
        await system.control(f"/sessions/{session_id}/drop")
        await became_lost(events, session_id)
        await becomes(system, session_id, "CONNECTED")
    finally:
        await system.faults()
    for step in ("qr", "connected", "disconnected", "initialize"):
        await mended(system, f"session_{step}", before[step])


async def test_what_was_unlinked_unheard_gets_a_qr_code(system: System) -> None:
    """A logout on the phone of which nobody was told ends in a QR code that can be scanned."""
    _, session_id = await system.connect()
    await system.faults(loseCallbacks=True)
    try:
        events = await system.hear("whatsapp-qr.events", "session.disconnected")
        await system.control(f"/sessions/{session_id}/unlink")
        await became_lost(events, session_id)
    finally:
        await system.faults()
    await system.scan(session_id)


async def test_a_gateway_that_lost_its_disk_gets_its_sessions_back(system: System) -> None:
    """The gateway restarts without its state: what is wanted gets a QR code again, what is not wanted stays away."""
    before = await redriven(system, "session_initialize")
    _, session_id = await system.connect()
    unwanted, unwanted_id = await system.connect()
    await system.post("/disconnect", chatbotId=str(unwanted))
    [simulator] = [process for process in system.named("simulator") if process.alive]
    await simulator.kill()
    for file in (system.folder / ".local").glob("simulator.db*"):
        file.unlink()
    await system.start("simulator")
    assert await at_gateway(system, session_id) != "CONNECTED"
    await system.scan(session_id)
    await mended(system, "session_initialize", before)
    assert await at_gateway(system, unwanted_id) is None


async def test_what_was_ended_while_the_gateway_was_away_ends_there(system: System) -> None:
    """/disconnect answers while the gateway is away, and the gateway is told once it is back."""
    before = await redriven(system, "session_end")
    chatbot_id, session_id = await system.connect()
    [simulator] = [process for process in system.named("simulator") if process.alive]
    await simulator.kill()
    assert (await system.post("/disconnect", chatbotId=str(chatbot_id))).json()["status"] == "DISCONNECTED"
    await system.start("simulator")
    await eventually(lambda: at_gateway(system, session_id), lambda status: status == "DISCONNECTED")
    await mended(system, "session_end", before)
    await becomes(system, session_id, "DISCONNECTED", "requested")


async def test_a_gateway_that_is_away_decides_nothing(system: System) -> None:
    """While the gateway does not answer, the reconciler fails and every session stays as it is."""
    _, session_id = await system.connect()
    [consumer] = system.named("session-consumer")
    [simulator] = [process for process in system.named("simulator") if process.alive]
    before = {step: await redriven(system, f"session_{step}") for step in STEPS}

    async def failures() -> float:
        return await sample(consumer, "singleton_job_runs_total", singleton_job="reconciler", outcome="failed")

    failed = await failures()
    await simulator.kill()
    await eventually(failures, lambda now: now > failed + 2)
    assert (await session(system, session_id))["status"] == "CONNECTED"
    await system.start("simulator")
    assert {step: await redriven(system, f"session_{step}") for step in STEPS} == before


@pytest.mark.one_database("postgres")
async def test_a_pairing_that_hangs_is_begun_anew(system: System) -> None:
    """A gateway that never shows a QR code: the reason is visible, and the code comes once the gateway can."""
    await system.faults(noQrCode=True)
    try:
        session_id = await begun(system)
        await becomes(system, session_id, "CONNECTING", "no_qr_code")
    finally:
        await system.faults()
    await system.scan(session_id)


async def test_a_connection_that_does_not_send_is_shown(system: System) -> None:
    """The gateway says CONNECTED and refuses every send: `action_required` is shown until the message is out."""
    before = await redriven(system, "session_action_required")
    chatbot_id, session_id = await system.connect()
    events = await system.hear("whatsapp-qr.events", "session.connected")
    await system.faults(failureRate=1, failureKind="not_connected")
    try:
        answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="at last")
        await becomes(system, session_id, "CONNECTED", "action_required")
        await events.arrived(1)
        assert (await system.message(answer.json()["messageId"]))["deliveryStatus"] == "PENDING"
    finally:
        await system.faults()
    await eventually(
        lambda: system.message(answer.json()["messageId"]), lambda found: found.get("deliveryStatus") == "READ"
    )
    await becomes(system, session_id, "CONNECTED")
    await mended(system, "session_action_required", before)


async def test_a_gateway_that_still_loads_its_sessions_is_given_time(new_system: NewSystem) -> None:
    """After a restart it lists a session late: it is not opened anew, as a second login would end the first."""
    async with new_system("sqlite", **FAST | {"RECONCILE_AGE": "60"}) as system:
        _, session_id = await system.connect()
        [consumer] = system.named("session-consumer")

        async def runs() -> float:
            return await sample(consumer, "singleton_job_runs_total", singleton_job="reconciler", outcome="done")

        await system.faults(loading=[session_id])
        ran = await runs()
        await eventually(runs, lambda now: now > ran + 2)  # each looks twice
        assert await at_gateway(system, session_id) is None
        await system.faults()
        ran = await runs()
        await eventually(runs, lambda now: now > ran + 1)
        assert await at_gateway(system, session_id) == "CONNECTED"
        assert (await session(system, session_id))["status"] == "CONNECTED"
        assert await redriven(system, "session_initialize") == 0


@pytest.mark.one_database("sqlite")
async def test_a_service_that_works_mends_nothing(system: System) -> None:
    """Linking, losing and finding a connection, ending it: with their callbacks these move no counter."""
    [consumer] = system.named("session-consumer")
    for listed in (await system.http.get(f"http://127.0.0.1:{system.simulator_port}/sessions")).json()["sessions"]:
        chatbot_id = UUID(listed["sessionId"].split("_")[1])
        await system.post("/disconnect", chatbotId=str(chatbot_id))

    async def runs() -> float:
        return await sample(consumer, "singleton_job_runs_total", singleton_job="reconciler", outcome="done")

    async def traffic() -> None:
        chatbot_id, session_id = await system.connect()
        events = await system.hear("whatsapp-qr.events", "session.disconnected")
        ran = await runs()
        await eventually(runs, lambda now: now > ran + 5)
        await system.control(f"/sessions/{session_id}/drop")
        await became_lost(events, session_id)
        await system.http.post(f"{system.controls}/sessions/{session_id}/reconnect")  # 409: it was mended meanwhile
        await becomes(system, session_id, "CONNECTED")
        await system.post("/disconnect", chatbotId=str(chatbot_id))
        ran = await runs()
        await eventually(runs, lambda now: now > ran + 5)

    counts = {step: partial(redriven, system, f"session_{step}") for step in STEPS}
    await mends_nothing(counts, traffic)

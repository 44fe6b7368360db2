"""Two session consumers: one does the jobs, and the other goes on when that one is killed."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.component.rows import change, enqueue
from tests.integration.singletons import FAST, rows_by_hand, sample, session_row
from tests.system import Process, System, eventually, running

SWEEPING = {**FAST, "RECONCILE_PERIOD": "3600"}
SINGLETON_JOBS = ("sweeper", "reconciler")


async def held(process: Process) -> list[float]:
    return [await sample(process, "singleton_job_held", singleton_job=job) for job in SINGLETON_JOBS]


@pytest.mark.one_database("postgres")
async def test_the_singleton_jobs_of_a_killed_process_are_taken_over(
    clean_broker: str, database_url: str, tmp_path: Path
) -> None:
    """Each job is held by one of two processes; kill -9 of its holder moves it, and what breaks then is mended."""
    async with running(clean_broker, database_url, tmp_path, extra=("session-consumer",), **SWEEPING) as system:
        chatbot_id, _ = await system.connect()
        first, second = system.named("session-consumer")

        async def holders() -> list[list[float]]:
            return [await held(first), await held(second)]

        seen = await eventually(holders, lambda found: all(sum(one) == 1 for one in zip(*found, strict=True)))
        victim, heir = (first, second) if seen[0][0] else (second, first)
        await victim.kill()
        await eventually(lambda: held(heir), lambda found: found == [1, 1])
        await _is_mended(system, heir, chatbot_id)
        assert await heir.stop() == 0
        [replacement] = await system.start("session-consumer")
        await eventually(lambda: held(replacement), lambda found: found == [1, 1])


async def _is_mended(system: System, by: Process, chatbot_id: object) -> None:
    async with rows_by_hand(system) as database:
        message = await enqueue(database, await session_row(database, chatbot_id), wakes=False)  # type: ignore[arg-type]
        await change(database, message, handed_over=True)
    await eventually(lambda: system.message(message.id), lambda found: found.get("deliveryStatus") == "READ")
    await eventually(lambda: sample(by, "redriven_total", kind="pending"))


async def test_metrics_say_what_the_database_says(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """/metrics of the session consumer shows the four states, ages and counters; ids are never labels."""
    async with running(clean_broker, sqlite_database, tmp_path, **SWEEPING) as system:
        chatbot_id, session_id = await system.connect()
        [consumer] = system.named("session-consumer")
        [outbound] = system.named("outbound-consumer")
        await eventually(lambda: sample(consumer, "sessions", status="CONNECTED"), lambda count: count == 1)
        assert await sample(consumer, "sessions", status="DISCONNECTED") == 0
        await system.control(f"/sessions/{session_id}/drop")
        await eventually(lambda: sample(consumer, "sessions", status="CONNECTED"), lambda count: count == 0)
        await system.control(f"/sessions/{session_id}/reconnect")
        await eventually(lambda: system.status(session_id), lambda status: status == "CONNECTED")
        answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491133334444", message="counted")
        await eventually(
            lambda: system.message(answer.json()["messageId"]), lambda found: found.get("deliveryStatus") == "READ"
        )
        await eventually(lambda: sample(outbound, "sends_total", outcome="sent"), lambda count: count == 1)
        await eventually(lambda: sample(outbound, "sending"), lambda count: count == 0)
        text = (await system.http.get(f"{consumer.url}/metrics")).text
        states = {
            found.labels["status"]
            for family in text_string_to_metric_families(text)
            for found in family.samples
            if found.name == "whatsapp_qr_sessions"
        }
        assert states == {"DISCONNECTED", "CONNECTING", "QR_READY", "CONNECTED"}
        assert str(chatbot_id) not in text

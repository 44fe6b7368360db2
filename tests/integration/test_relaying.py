"""What is committed is told on a real broker, whatever a subscriber does with the queue that is his own."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.consumers import relay
from service.consumers.announcing import OF_CONVERSATIONS, Announcer
from service.messaging import publishing as publishing_module
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable
from service.persistence import migrations
from service.persistence.database import Database
from service.persistence.tables import MessageRow
from service.persistence.unpublished import Part
from tests.amqp import Amqp, publishing, until
from tests.component.rows import Outputs, a_report, a_session, all_of, handle
from tests.proxy import Proxy
from tests.system import eventually
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import EVENTS

EVENT = "message.received"


@pytest.fixture
async def database(sqlite_database: str) -> AsyncIterator[Database]:
    await asyncio.to_thread(migrations.upgrade, sqlite_database)
    database = Database(sqlite_database)
    yield database
    await database.close()


@asynccontextmanager
async def announcing(database: Database, publisher: Publisher) -> AsyncIterator[Announcer]:
    """Tell what is committed, as the active process of the only partition does."""
    announcer = Announcer(database, publisher, RetryWhileUnavailable(), OF_CONVERSATIONS, lambda: Part(1, {0: 1.0}))
    announcer.start()
    try:
        yield announcer
    finally:
        await announcer.stop()


async def all_told(database: Database) -> bool:
    """Say whether the rows have nothing left to tell."""
    rows: list[MessageRow] = await all_of(database, MessageRow)
    return all(row.handed_over and row.told_version == row.version for row in rows)


async def listen(amqp: Amqp, queue: str) -> list[Any]:
    """Take what comes to a queue, from now on."""
    heard: list[Any] = []
    declared = await amqp.channel.get_queue(queue, ensure=False)
    await declared.consume(partial(_append, heard), no_ack=True)
    return heard


async def _append(heard: list[Any], message: Any) -> None:
    heard.append(message)


def refused() -> float:
    return REGISTRY.get_sample_value("whatsapp_qr_events_refused_total", {"type": EVENT}) or 0.0


def not_confirmed() -> float:
    return REGISTRY.get_sample_value("whatsapp_qr_published_total", {"type": EVENT, "outcome": "failed"}) or 0.0


async def test_a_subscribers_full_queue_holds_nothing_back(clean_broker: str, database: Database) -> None:
    """A healthy subscriber gets every event in time, at most as often as it is tried, and each job comes once.

    That holds for what the process before left untold, several pages of it, and for what is committed meanwhile.
    """
    left, new = 450, 50
    session, before = await a_session(database), refused()
    reports = [a_report(session, f"A{number}", message=f"{number}") for number in range(left + new)]
    await handle(database, *reports[:left], announcer=Outputs())
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        full = await amqp.channel.declare_queue(
            exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        await full.bind(EVENTS, "#")
        await amqp.publish(b"fills it", EVENT, EVENTS)
        events, jobs = await listen(amqp, await amqp.bound(EVENTS, EVENT)), await listen(amqp, IncomingJob.name)
        began = time.monotonic()
        async with announcing(database, publisher) as announcer:
            await handle(database, *reports[left:], announcer=announcer)  # type: ignore[arg-type]
            await until(lambda: len({event.message_id for event in events}) == left + new)
            assert time.monotonic() - began < sum(relay._TRY_AGAIN_SECONDS)
            await until(lambda: len(jobs) == left + new)
            await eventually(lambda: all_told(database))
            assert refused() - before == left + new
            await full.delete(if_empty=False)
            later = [a_report(session, f"B{number}", message=f"later {number}") for number in range(5)]
            await handle(database, *later, announcer=announcer)  # type: ignore[arg-type]
            await until(lambda: len({event.message_id for event in events}) == left + new + 5)
            await eventually(lambda: all_told(database))
    times = Counter(event.message_id for event in events)
    assert max(times.values()) <= relay.EVENT_TRIES
    assert [times[event.message_id] for event in events[-5:]] == [1] * 5
    assert len(jobs) == len({job.message_id for job in jobs}) == left + new + 5
    assert [job.headers["conversation-sequence"] for job in jobs] == list(range(1, len(jobs) + 1))
    assert refused() - before == left + new


async def test_a_time_out_is_no_refusal(clean_broker: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not confirmed in time is told until it is, however often; then events and jobs go out in order."""
    session, before, failed = await a_session(database), refused(), not_confirmed()
    for publish in (Publisher.publish, Publisher.publish_raw):
        monkeypatch.setitem(publish.__kwdefaults__, "seconds", 0.3)  # type: ignore[attr-defined]
    monkeypatch.setattr(publishing_module, "_PUBLISH_SECONDS", 0.3)
    async with Proxy(clean_broker) as proxy, publishing(clean_broker), Amqp(clean_broker) as amqp:
        events, jobs = await listen(amqp, await amqp.bound(EVENTS, EVENT)), await listen(amqp, IncomingJob.name)
        publisher = Publisher(proxy.url, 1)
        async with announcing(database, publisher) as announcer:
            await handle(database, a_report(session, "A0", message="0"), announcer=announcer)  # type: ignore[arg-type]
            await until(lambda: events and jobs)
            proxy.hold_answers()
            for number in range(1, 4):
                report = a_report(session, f"A{number}", message=f"{number}")
                await handle(database, report, announcer=announcer)  # type: ignore[arg-type]
            await until(lambda: not_confirmed() - failed > 2 * relay.EVENT_TRIES)
            assert {job.headers["conversation-sequence"] for job in jobs} <= {1, 2}  # the others wait behind it
            proxy.heal()
            await until(lambda: {job.headers["conversation-sequence"] for job in jobs} == {1, 2, 3, 4})
            await eventually(lambda: all_told(database))
        await publisher.close()
    assert refused() == before
    assert list(dict.fromkeys(job.headers["conversation-sequence"] for job in jobs)) == [1, 2, 3, 4]
    assert len({event.message_id for event in events}) == 4

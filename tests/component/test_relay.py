"""Everything that is committed is told, in order, whatever its destination does, on both databases."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import update
from sqlmodel import col
from structlog.testing import capture_logs

from service import metrics
from service.consumers import announcing, relay
from service.consumers.announcing import OF_CONVERSATIONS, OF_SENDING, OF_SESSIONS, Announcer, Sources
from service.consumers.conversation import ConversationConsumer
from service.errors import BrokerUnavailable, DatabaseUnavailable, PublishRefused
from service.messaging.retrying import RetryWhileUnavailable
from service.persistence.confirmations import Confirmation
from service.persistence.database import Database
from service.persistence.tables import CommandRow, ConversationRow, MessageRow, SessionRow
from service.persistence.unpublished import Part
from tests.amqp import a_chatbot, until
from tests.component.conversing import World, a_receipt
from tests.component.rows import (
    a_command,
    a_report,
    a_session,
    all_of,
    change,
    enqueue,
    receive,
    received,
    reread,
    sent,
)
from whatsapp_qr_contracts.commands import CancelMessage
from whatsapp_qr_contracts.jobs import IncomingJob, SendJob
from whatsapp_qr_contracts.message import EVENTS, Message
from whatsapp_qr_contracts.partitions import chatbot_key

JOBS = IncomingJob.name
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
FULL = PublishRefused("a queue has no room")
AWAY = BrokerUnavailable("no broker")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses be short."""
    monkeypatch.setattr(relay, "_LOOK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(relay, "_TRY_AGAIN_SECONDS", (0.02, 0.04))
    monkeypatch.setattr(relay, "backoff", lambda _failures: 0.02)


class Broker:
    """Stands for the publisher: confirms, or does what a test says for a message."""

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions
        self.tried: list[str] = []
        self.out: list[str] = []
        self.ids: list[str] = []
        self.trouble: Callable[[Message], Exception | None] = lambda _: None
        self.slow: Callable[[Message], bool] = lambda _: False
        self.go_on = asyncio.Event()
        self._now: set[str] = set()

    async def publish(self, message: Message, *, message_id: str, correlation_id: str, headers: Any) -> None:
        assert (correlation_id, "conversation-sequence" in headers) == ("c", message.name == JOBS)
        assert message_id not in self._now, "one output was published twice at once"
        self._now.add(message_id)
        try:
            self.tried.append(label(message))
            if self.slow(message):
                await self.go_on.wait()
            await asyncio.sleep(0)
            if error := self.trouble(message):
                raise error
            self.out.append(label(message))
            self.ids.append(message_id)
        finally:
            self._now.remove(message_id)

    def jobs(self) -> list[str]:
        return [text for name, _, text in (one.partition(" ") for one in self.out) if name == JOBS]


def label(message: Message) -> str:
    """Name a message, and its text where it has one."""
    return f"{message.name} {getattr(message, 'content', getattr(message, 'message', ''))}".strip()


class Process:
    """A consumer process with a broker of its own; it is the only reader of its partitions."""

    def __init__(self, database: Database, sources: Sources = OF_CONVERSATIONS, partitions: int = 1) -> None:
        self.database, self.broker = database, Broker(partitions)
        # A machine that stands still for some seconds is no finding.
        sources = {name: [replace(source, settled=60.0) for source in some] for name, some in sources.items()}
        self.part = Part(partitions, {})
        self.stopped = False
        self.announcer = Announcer(database, self.broker, RetryWhileUnavailable(), sources, lambda: self.part)  # type: ignore[arg-type]
        self._consumer = ConversationConsumer(database, self.announcer, timedelta(hours=1))

    def owns(self, *partitions: int, since: float = 1.0, busy: frozenset[str] = frozenset()) -> None:
        self.part = Part(self.part.partitions, dict.fromkeys(partitions, since), busy=busy)

    async def handle(self, *messages: Message) -> None:
        """Handle each message in a batch of its own."""
        for message in messages:
            await self.handle_together(message)

    async def handle_together(self, *messages: Message) -> None:
        """Handle messages in one batch."""
        assert await self._consumer.handle([received(message) for message in messages]) == []

    async def stop(self) -> None:
        assert self.stopped or self.announcer.alive
        self.stopped = True
        await self.announcer.stop()

    async def is_direct(self) -> None:
        """Wait until it has looked at what it owns now, and nothing is left in the rows."""
        relays = self.announcer._relays.values()
        await until(lambda: not any(one._relayed or one._owned != one._part().owned for one in relays))


def relaying(destination: str) -> bool:
    return bool(REGISTRY.get_sample_value("whatsapp_qr_relaying", {"destination": destination}))


def relayed(*names: str) -> float:
    return sum(metrics.RELAYED.labels(name)._value.get() for name in names or (EVENTS, JOBS, SendJob.name))


@asynccontextmanager
async def running(process: Process, *partitions: int) -> AsyncIterator[Process]:
    """Let a process tell while it owns these partitions."""
    process.owns(*partitions)
    process.announcer.start()
    try:
        yield process
    finally:
        process.broker.go_on.set()
        await process.stop()


@pytest.fixture
async def process(database: Database) -> AsyncIterator[Process]:
    """A conversation consumer to which nothing was left, in direct mode."""
    async with running(Process(database), 0) as process:
        await process.is_direct()
        yield process


def told(message: MessageRow) -> bool:
    return message.handed_over and message.told_version == message.version


async def is_told(database: Database, message: MessageRow) -> None:
    """Wait until the row says that nothing of it is left to tell."""
    async with asyncio.timeout(60):
        while not told(await reread(database, message)):
            await asyncio.sleep(0.02)


def in_order(labels: list[str]) -> list[str]:
    """Return each of them once, where it came first: what was not confirmed in time may come again."""
    return list(dict.fromkeys(labels))


# Direct


async def test_what_is_committed_is_published_at_once(database: Database, process: Process) -> None:
    """Event and job go out without a look at the rows, in order per conversation, and the rows say that they did."""
    session, before = await a_session(database), relayed()
    await process.handle(*(a_report(session, f"A{n}", message=f"{n}") for n in range(5)), a_command(session))
    await until(lambda: len(process.broker.out) == 12)
    assert process.broker.jobs() == ["0", "1", "2", "3", "4"]
    assert process.broker.out.count("conversation.started") == 1
    for message in await all_of(database, MessageRow):
        await is_told(database, message)
    assert [row.told_version for row in await all_of(database, ConversationRow)] == [1]
    assert len(set(process.broker.ids)) == 12
    assert relayed() == before


async def test_nobody_waits_for_a_slow_destination(database: Database, process: Process) -> None:
    """Neither the handler nor another destination: what goes to the slow one alone waits, and is told once."""
    session = await a_session(database)
    process.broker.slow = lambda message: message.name == JOBS
    reports = [a_report(session, f"A{n}", message=f"{n}") for n in range(3)]
    await process.handle(*reports, a_command(session))
    await until(lambda: len(process.broker.out) == 5)
    assert process.broker.jobs() == []
    process.broker.go_on.set()
    await until(lambda: len(process.broker.out) == 8)
    assert process.broker.jobs() == ["0", "1", "2"]


async def test_what_is_under_way_to_a_destination_is_bounded(database: Database, process: Process) -> None:
    """However much waits: what others publish over the same connection waits for no more."""
    session = await a_session(database)
    process.broker.slow = lambda message: message.name == JOBS
    senders = [f"54911{n:08}@s.whatsapp.net" for n in range(relay._UNDER_WAY + 5)]
    await process.handle_together(*(a_report(session, f"A{n}", **{"from": sender}) for n, sender in enumerate(senders)))
    await until(lambda: sum(one.startswith(JOBS) for one in process.broker.tried) == relay._UNDER_WAY)
    await until(lambda: sum(one.startswith("message.received") for one in process.broker.out) == len(senders))
    assert sum(one.startswith(JOBS) for one in process.broker.tried) == relay._UNDER_WAY
    process.broker.go_on.set()
    await until(lambda: len(process.broker.jobs()) == len(senders))


async def test_a_destination_that_is_away_is_not_tried_for_each(database: Database, process: Process) -> None:
    """Those that were under way have failed: however many wait, the rest is left to the rows until it is back."""
    session = await a_session(database)
    process.broker.slow = lambda message: message.name == JOBS
    process.broker.trouble = lambda message: AWAY if message.name == JOBS else None
    senders = [f"54911{n:08}@s.whatsapp.net" for n in range(4 * relay._UNDER_WAY)]
    await process.handle_together(*(a_report(session, f"A{n}", **{"from": sender}) for n, sender in enumerate(senders)))
    await until(lambda: sum(one.startswith(JOBS) for one in process.broker.tried) == relay._UNDER_WAY)
    with_backoff = asyncio.Event()
    process.announcer._relays[JOBS]._pause = with_backoff.wait  # type: ignore[assignment,method-assign]
    process.broker.go_on.set()
    await until(lambda: relaying(JOBS))
    assert sum(one.startswith(JOBS) for one in process.broker.tried) == relay._UNDER_WAY
    del process.announcer._relays[JOBS]._pause
    with_backoff.set()
    process.broker.trouble = lambda _: None
    await until(lambda: len(process.broker.jobs()) == len(senders))


@pytest.mark.parametrize("left", [False, True], ids=["just committed", "left in its row"])
async def test_what_is_under_way_is_noted_before_a_partition_is_given_up(database: Database, *, left: bool) -> None:
    """Whoever takes it over finds nothing untold, and so tells nothing once more."""
    session = await a_session(database)
    if left:
        await Process(database).handle(a_report(session))
    async with running(Process(database), 0) as process:
        process.broker.slow = lambda message: message.name == JOBS
        if not left:
            await process.is_direct()
            await process.handle(a_report(session))
        await until(lambda: f"{JOBS} hi" in process.broker.tried)
        settling = asyncio.create_task(process.announcer.settle())
        await asyncio.wait([settling], timeout=0.1)
        assert not settling.done()
        process.broker.go_on.set()
        await settling
        [message] = await all_of(database, MessageRow)
        assert message.handed_over


@pytest.mark.parametrize("trouble", [DatabaseUnavailable("away"), ValueError("odd")], ids=["away", "odd"])
async def test_a_partition_is_given_up_whatever_the_database_does(
    database: Database, process: Process, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """What cannot be noted is told once more."""
    message = await receive(database, await a_session(database))

    async def fail(_work: object, **_options: object) -> None:
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr(database, "transact", fail)
        process.announcer.confirmations.note(Confirmation(MessageRow, (message.id,), place=0))
        await process.announcer.settle()
        assert not (await reread(database, message)).handed_over


async def test_more_than_memory_holds_is_told_from_the_rows(
    database: Database, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs wait in memory up to a bound; what does not fit any more stays in its row, and keeps its order."""
    monkeypatch.setattr(relay, "_MOST_DIRECT", 2)
    session, before = await a_session(database), relayed()
    process.broker.slow = lambda message: message.name == JOBS
    with capture_logs() as logs:
        await process.handle(*(a_report(session, f"A{n}", message=f"{n}") for n in range(6)))
    assert relaying(JOBS)
    told_why = [line["reason"] for line in logs if line["event"] == "relaying" and line["destination"] == JOBS]
    assert told_why == ["too many outputs wait"]
    process.broker.go_on.set()
    await until(lambda: len(process.broker.jobs()) == 6)
    assert process.broker.jobs() == ["0", "1", "2", "3", "4", "5"]
    assert relayed() > before


# From the rows


@pytest.mark.parametrize(("destination", "trouble"), [(JOBS, FULL), (JOBS, AWAY), (EVENTS, AWAY)])
async def test_what_is_not_confirmed_is_told_until_it_is(
    database: Database, process: Process, destination: str, trouble: Exception
) -> None:
    """A full queue of jobs, and a broker that is away, are waited for, however often; the others go on meanwhile."""
    session = await a_session(database)
    to_it = JOBS if destination == JOBS else "message.received"
    process.broker.trouble = lambda message: trouble if message.name == to_it else None
    await process.handle(a_report(session, message="1"))
    await until(lambda: process.broker.tried.count(f"{to_it} 1") > relay.EVENT_TRIES + 1)
    await process.handle(a_report(session, "A2", message="2"))
    other = f"{'message.received' if destination == JOBS else JOBS} 2"
    await until(lambda: other in process.broker.out)
    assert relaying(destination)
    assert not any(one.startswith(to_it) for one in process.broker.out)
    assert not [message for message in await all_of(database, MessageRow) if told(message)]
    process.broker.trouble = lambda _: None
    for message in await all_of(database, MessageRow):
        await is_told(database, message)
    assert [one for one in process.broker.out if one.startswith(to_it)] == [f"{to_it} 1", f"{to_it} 2"]
    await process.is_direct()
    before = relayed()
    await process.handle(a_report(session, "A3", message="3"))
    await until(lambda: {f"{to_it} 3", f"{JOBS} 3"} <= set(process.broker.out))
    assert relayed() == before


async def test_what_is_committed_for_a_partition_that_was_lost_overtakes_nothing(
    database: Database, process: Process
) -> None:
    """It is left in its row: what came before it may be there too, and the next owner tells both in order."""
    session = await a_session(database)
    process.broker.trouble = lambda message: AWAY if message.name == JOBS else None
    await process.handle(a_report(session, message="1"))
    await until(lambda: relaying(JOBS))
    process.owns()
    process.broker.trouble = lambda _: None
    await process.is_direct()
    await process.handle(a_report(session, "A2", message="2"))
    await process.announcer.settle()
    assert process.broker.jobs() == []
    process.owns(0, since=2.0)
    await until(lambda: len(process.broker.jobs()) == 2)
    assert process.broker.jobs() == ["1", "2"]


async def test_a_full_partition_keeps_the_jobs_of_no_other_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much waits for it, more than a page: the other partition's jobs are not even left to their rows."""
    monkeypatch.setattr(relay, "PAGE", 2)
    full, free = [await a_session(database, chatbot_id=a_chatbot(number, 2)) for number in range(2)]
    async with running(Process(database, partitions=2), 0, 1) as process:
        await process.is_direct()
        process.broker.trouble = lambda message: FULL if getattr(message, "session_id", "") == full.session_id else None
        await process.handle(*(a_command(full, message=f"full {n}") for n in range(5)))
        await until(lambda: relaying(SendJob.name))
        before = relayed(f"{SendJob.name}.1")
        await process.handle(*(a_command(free, message=f"free {n}") for n in range(5)))
        await until(lambda: sum(one.startswith(f"{SendJob.name} free") for one in process.broker.out) == 5)
        assert (relaying(SendJob.name), relaying(f"{SendJob.name}.1")) == (True, False)
        assert relayed(f"{SendJob.name}.1") == before
        process.broker.trouble = lambda _: None
        for message in await all_of(database, MessageRow):
            await is_told(database, message)


async def test_nothing_of_a_conversation_overtakes_what_is_untold(database: Database, process: Process) -> None:
    """While one job fails the later ones of its conversation wait; those of others go out."""
    session, trouble = await a_session(database), {"2": AWAY}
    process.broker.trouble = lambda message: trouble.get(label(message).removeprefix(f"{JOBS} "))
    await process.handle(*(a_report(session, f"A{n}", message=f"{n}") for n in range(1, 4)))
    await until(lambda: process.broker.tried.count(f"{JOBS} 2") > 1)
    await process.handle(a_report(session, "A4", message="4"), a_report(session, "B", **{"from": "5491100000000"}))
    await until(lambda: "hi" in process.broker.jobs())
    assert process.broker.jobs() == ["1", "hi"]
    trouble.clear()
    await process.handle(a_report(session, "A5", message="5"))
    await until(lambda: "5" in process.broker.jobs())
    assert in_order(process.broker.jobs()) == ["1", "hi", "2", "3", "4", "5"]


async def test_what_waits_behind_a_failed_publish_is_left_to_the_rows(database: Database, process: Process) -> None:
    """It was given to the relay while the publish before it was under way: it does not overtake that."""
    session, errors = await a_session(database), [AWAY]
    process.broker.slow = lambda message: label(message) == f"{JOBS} 1"
    process.broker.trouble = lambda message: errors.pop() if errors and message.name == JOBS else None
    await process.handle(a_report(session, "A1", message="1"))
    await until(lambda: f"{JOBS} 1" in process.broker.tried)
    await process.handle(a_report(session, "A2", message="2"), a_report(session, "A3", message="3"))
    process.broker.go_on.set()
    await until(lambda: "3" in process.broker.jobs())
    assert process.broker.jobs() == ["1", "2", "3"]


async def test_pages_are_told_in_order(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process before left untold is more than a page: it comes in order, and before anything new."""
    monkeypatch.setattr(relay, "PAGE", 2)
    session, customers = await a_session(database), ["5491100000000", "5491111111111"]
    for n in range(5):
        for customer in customers:
            await receive(database, session, f"{customer} {n}", message=f"{customer} {n}", **{"from": customer})
    await database.transact(lambda tx: tx.execute(update(MessageRow).values(correlation_id="c")))
    await database.transact(lambda tx: tx.execute(update(ConversationRow).values(correlation_id="c")))
    process = Process(database)
    async with running(process):
        await process.is_direct()
        assert process.broker.tried == []
        process.owns(0)
        last = {"from": customers[0], "message": f"{customers[0]} 5"}
        await process.handle(a_report(session, f"{customers[0]} 5", **last))
        await until(lambda: len(process.broker.out) == 24)
        await process.is_direct()
    for customer, count in zip(customers, (6, 5), strict=True):
        jobs = [job for job in process.broker.jobs() if job.startswith(customer)]
        assert jobs == [f"{customer} {n}" for n in range(count)]
    assert len(set(process.broker.ids)) == len(process.broker.ids) == 24


async def test_only_the_owner_of_a_partition_tells(database: Database) -> None:
    """What others own is left to them; what is taken over, again too, is looked through at once."""
    sessions = [await a_session(database, chatbot_id=a_chatbot(partition, 2)) for partition in (0, 1)]
    before, process = World(database), Process(database, partitions=2)
    for session in sessions:
        await before.handle(a_report(session, message=f"{session.key_hash % 2}"))
    async with running(process, 1):
        await until(lambda: len(process.broker.out) == 3)
        await process.is_direct()
        assert process.broker.jobs() == ["1"]
        process.owns(0, 1)
        await until(lambda: len(process.broker.out) == 6)
        assert process.broker.jobs() == ["1", "0"]
        await process.is_direct()
        await before.handle(a_report(sessions[1], "A2", message="again"))
        process.owns(0, 1, since=2.0)
        await until(lambda: "again" in process.broker.jobs())


async def test_a_row_that_was_forgotten_is_told(database: Database, process: Process) -> None:
    """Whoever wrote it should have told it by now; what has just been written is left to whoever wrote it."""
    session, other = await a_session(database), World(database)
    for text in ("old", "new"):
        await other.handle(a_report(session, text, message=text))
    [old] = await all_of(database, MessageRow, content="old")
    await change(database, old, changed_at=LONG_AGO)
    await until(lambda: {f"{JOBS} old", "message.received old"} <= set(process.broker.out))
    await is_told(database, old)
    assert not any("new" in one for one in process.broker.tried)


async def test_a_database_that_is_away_is_waited_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are looked at again once it is back, whatever the driver said meanwhile."""
    await World(database).handle(a_report(await a_session(database), message="1"))
    process, read, errors = Process(database), database.read, [DatabaseUnavailable("away"), RuntimeError("odd")] * 3

    async def fail(work: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return await read(work, **options)

    monkeypatch.setattr(database, "read", fail)
    async with running(process, 0):
        await until(lambda: len(process.broker.out) == 3)
    assert errors == []


async def test_a_row_that_nobody_understands_holds_nothing_back(database: Database, process: Process) -> None:
    """A newer version has written it, say: it stays untold, and everything else of its destination is told."""
    session, other = await a_session(database), World(database)
    for command_id in ("new", "old"):
        await other.handle(CancelMessage(chatbot_id=session.chatbot_id, message_id=uuid4()), message_id=command_id)
    row = CommandRow
    strange = update(row).where(col(row.command_id) == "new").values(outcome={"name": "message.x"}, created_at=LONG_AGO)
    known = update(row).where(col(row.command_id) == "old")
    [old] = await all_of(database, row, command_id="old")
    await database.transact(lambda tx: tx.execute(strange))
    await database.transact(
        lambda tx: tx.execute(known.values(created_at=LONG_AGO, outcome=(old.outcome or {}) | {"command_id": "c"}))
    )
    await until(lambda: "command.rejected" in process.broker.out)
    await process.handle(a_report(session))
    await until(lambda: "message.received hi" in process.broker.out)
    assert [row.command_id for row in await all_of(database, CommandRow, told_version=0)] == ["new"]


# Events that a subscriber's full queue refuses


async def test_a_refused_event_holds_nothing_back(database: Database, process: Process) -> None:
    """It is tried EVENT_TRIES times, then counts as told; jobs and other events go out as if nothing had happened."""
    session, before = await a_session(database), relayed()
    counter = metrics.EVENTS_REFUSED.labels("message.received")._value
    refused = counter.get()
    process.broker.trouble = lambda message: FULL if label(message) == "message.received bad" else None
    await process.handle(a_report(session, "A1", message="bad"), a_report(session, "A2", message="good"))
    for message in await all_of(database, MessageRow):
        await is_told(database, message)
    assert process.broker.tried.count("message.received bad") == relay.EVENT_TRIES == 3
    assert process.broker.tried.count("message.received good") == 1
    assert process.broker.jobs() == ["bad", "good"]
    assert counter.get() - refused == 1
    assert relayed() == before


async def test_a_refused_event_is_told_once_there_is_room(database: Database, process: Process) -> None:
    """The next try finds room: it is confirmed, and not counted as refused."""
    session, errors = await a_session(database), [FULL, FULL]
    counter = metrics.EVENTS_REFUSED.labels("message.received")._value
    refused = counter.get()
    process.broker.trouble = lambda message: errors.pop() if errors and message.name == "message.received" else None
    await process.handle(a_report(session))
    await until(lambda: "message.received hi" in process.broker.out)
    [message] = await all_of(database, MessageRow)
    await is_told(database, message)
    assert counter.get() == refused


async def test_a_time_out_between_refusals_is_not_a_refusal(database: Database, process: Process) -> None:
    """Refused, then not confirmed in time: it is told from its row, as everything that is not confirmed."""
    session, errors = await a_session(database), [AWAY] * 5 + [FULL]
    process.broker.trouble = lambda message: errors.pop() if errors and message.name == "message.received" else None
    await process.handle(a_report(session))
    [message] = await all_of(database, MessageRow)
    await change(database, message, changed_at=LONG_AGO)
    await until(lambda: "message.received hi" in process.broker.out)
    await is_told(database, message)
    assert errors == []


async def test_refused_events_do_not_hide_the_rows_behind_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a page of what was left untold is refused: those behind are told before these are tried again."""
    monkeypatch.setattr(relay, "PAGE", 2)
    monkeypatch.setattr(relay, "_TRY_AGAIN_SECONDS", (3600.0, 3600.0))
    session, before, process = await a_session(database), World(database), Process(database)
    for n in range(7):
        await before.handle(a_report(session, f"A{n}", message="bad" if n < 6 else "good"))
    process.broker.trouble = lambda message: FULL if label(message) == "message.received bad" else None
    async with running(process, 0):
        await until(lambda: "message.received good" in process.broker.out)
        await process.is_direct()
        assert process.broker.tried.count("message.received bad") == 6


async def test_refused_events_take_a_bounded_memory(
    database: Database, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More are refused than can wait for another try: those count as told at once, after one."""
    monkeypatch.setattr(relay, "_MOST_DIRECT", 1)
    monkeypatch.setattr(relay, "_TRY_AGAIN_SECONDS", (3600.0, 3600.0))
    session, other = await a_session(database), World(database)
    process.broker.trouble = lambda message: FULL if message.name == "message.received" else None
    for n in range(3):
        await other.handle(a_report(session, f"A{n}", message=f"{n}"))
    process.owns(0, since=2.0)

    async def untold() -> list[MessageRow]:
        return [row for row in await all_of(database, MessageRow) if row.told_version < row.version]

    async with asyncio.timeout(60):
        while len(await untold()) > 1:
            await asyncio.sleep(0.02)
    await process.is_direct()
    assert len(await untold()) == 1
    assert len([one for one in process.broker.tried if one.startswith("message.received")]) == 3


# Whose rows they are


async def test_each_row_is_told_by_one_kind_of_consumer(database: Database) -> None:
    """Sessions, messages in both directions, commands: the three kinds tell all of it, and nothing twice."""
    session, before = await a_session(database), World(database)
    await change(database, session, correlation_id="c")
    await enqueue(database, session)
    message = await sent(database, session)
    await before.handle(a_receipt(session, message.whatsapp_message_id, "read"))
    await before.handle(a_report(session), a_command(session), CancelMessage(chatbot_id=uuid4(), message_id=uuid4()))
    rejected = await before.handle(CancelMessage(chatbot_id=session.chatbot_id, message_id=uuid4()), message_id="r")
    [row] = await all_of(database, CommandRow, command_id="r")
    renamed = update(CommandRow).where(col(CommandRow.command_id) == "r")
    outcome = (row.outcome or {}) | {"command_id": "c"}
    await database.transact(lambda tx: tx.execute(renamed.values(name="session.disconnect", outcome=outcome)))
    await database.transact(lambda tx: tx.execute(update(MessageRow).values(correlation_id="c")))
    await database.transact(lambda tx: tx.execute(update(ConversationRow).values(correlation_id="c")))
    assert len(rejected) == 1
    expected = {
        "sessions": (OF_SESSIONS, ["command.rejected", "session.connected"]),
        "sending": (OF_SENDING, ["message.read"]),
        "conversations": (
            OF_CONVERSATIONS,
            [
                *("command.rejected", "conversation.started", f"{JOBS} hi", "message.received hi"),
                *["whatsapp-qr-send hello"] * 2,
            ],
        ),
    }
    for kind, (sources, outputs) in expected.items():
        process = Process(database, sources)
        async with running(process, 0):
            await until(lambda process=process, outputs=outputs: len(process.broker.out) == len(outputs))
            await process.is_direct()
        assert sorted(process.broker.out) == outputs, kind
    [session] = await all_of(database, SessionRow)
    assert session.told_version == session.version
    assert await all_of(database, CommandRow, told_version=0) == []
    assert all(told(one) for one in await all_of(database, MessageRow))


async def test_a_session_is_not_told_while_its_messages_are_handled(database: Database) -> None:
    """The command that is being handled tells it at its end; other sessions are told meanwhile."""
    busy, idle = await a_session(database), await a_session(database)
    for session in (busy, idle):
        await change(database, session, correlation_id="c", moved_at=LONG_AGO)
    process = Process(database, OF_SESSIONS)
    async with running(process):
        process.owns(0, busy=frozenset({chatbot_key(busy.chatbot_id)}))
        await until(lambda: process.broker.out)
        await process.is_direct()
        assert process.broker.out == ["session.connected"]
        assert (await all_of(database, SessionRow, id=busy.id))[0].told_version == 0
        process.owns(0)
        await until(lambda: len(process.broker.out) == 2)
    rows = await all_of(database, SessionRow)
    assert [row.told_version for row in rows] == [row.version for row in rows]
    assert len(set(process.broker.ids)) == 2


# The end


async def test_closing_publishes_what_waits_and_what_is_on_its_way(database: Database) -> None:
    """A process that ends in order leaves nothing to the next one, and writes down what was confirmed."""
    process = Process(database)
    session = await a_session(database)
    async with running(process, 0):
        await process.is_direct()
        process.broker.slow = lambda message: label(message) == f"{JOBS} 1"
        await process.handle(a_report(session, "A1", message="1"), a_report(session, "A2", message="2"))
        await until(lambda: f"{JOBS} 1" in process.broker.tried)
        stopping = asyncio.create_task(process.stop())
        await until(lambda: len(process.broker.out) == 3)
        assert not stopping.done()
        process.broker.go_on.set()
        await stopping
        assert process.broker.jobs() == ["1", "2"]
        assert all(told(message) for message in await all_of(database, MessageRow))


async def test_closing_leaves_to_the_next_one_what_takes_too_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end does not hang on a broker that is silent: the next process begins with what the rows say."""
    monkeypatch.setattr(announcing, "_SETTLE_SECONDS", 0.05)
    first, second = Process(database), Process(database)
    session = await a_session(database)
    async with running(first, 0):
        await first.is_direct()
        first.broker.slow = lambda message: message.name == JOBS
        await first.handle(a_report(session, "A1", message="1"), a_report(session, "A2", message="2"))
        await until(lambda: len(first.broker.out) == 3)
        await first.stop()
        assert first.broker.jobs() == []
    async with running(second, 0):
        await until(lambda: len(second.broker.jobs()) == 2)
        assert second.broker.out == [f"{JOBS} 1", f"{JOBS} 2"]

"""The outbound consumer on both databases: order, patience, and what is left for whoever comes next."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast
from uuid import uuid4

import pytest

from service.consumers import outbound
from service.consumers.outbound import OutboundConsumer
from service.domain import sending
from service.domain.identities import output_id
from service.domain.sending import SendPolicy
from service.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    GatewayError,
    GatewayOutcomeUnknown,
    GatewayRefused,
    GatewayUnreachable,
    Undeliverable,
)
from service.gateway import GatewaySession
from service.messaging.envelope import Envelope
from service.messaging.holding import Hold, Stopping
from service.persistence import conversations, lanes
from service.persistence.database import Database, Work
from service.persistence.lanes import Idle, Next, Wait
from service.persistence.tables import MessageRow, SessionRow
from tests.amqp import SECONDS, until
from tests.component.rows import a_session, all_of, change, claimed, enqueue, reread, sent
from tests.component.standins import Answer, Recorder, announcer
from whatsapp_qr_contracts.jobs import SendJob
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import Message, SessionStatus

QUICK = SendPolicy(backoff=0.01, rate=1000, burst=1000)
CONNECTED = GatewaySession("", SessionStatus.CONNECTED)


@dataclass
class Gateway:
    """Takes every message, after the results that a test scripts; remembers all attempts."""

    results: list[GatewayError | str] = field(default_factory=list)
    answer: Answer = CONNECTED
    attempts: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0
    meanwhile: Callable[[str], Awaitable[None]] | None = None
    """Happens while it sends a text."""

    async def send(self, _session_id: str, _to: str, message: str, message_id: str) -> str:
        self.attempts.append((message, message_id))
        if self.meanwhile is not None:
            await self.meanwhile(message)
        result = self.results.pop(0) if self.results else message_id
        if isinstance(result, GatewayError):
            raise result
        return result

    async def status(self, _session_id: str) -> GatewaySession | None:
        self.asked += 1
        if isinstance(self.answer, GatewayError):
            raise self.answer
        return self.answer

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.attempts]


class World:
    """One process with an outbound consumer, its gateway and its broker."""

    def __init__(self, database: Database, policy: SendPolicy = QUICK) -> None:
        self.database = database
        self.broker = Recorder()
        self.gateway = Gateway()
        self.hold = Hold()
        announcing = announcer(database, self.broker)
        self.consumer = OutboundConsumer(database, self.gateway, announcing, self.hold, policy)  # type: ignore[arg-type]

    async def ring(self, message: MessageRow, *, redelivered: bool = False) -> None:
        """Handle the job of a message."""
        job = SendJob(
            session_id=message.session_id,
            to=message.external_user_id,
            message=message.content,
            message_id=message.id,
            conversation_id=message.conversation_id,
        )
        async with asyncio.timeout(SECONDS):
            await self.consumer.send(job, Envelope("job", None, redelivered=redelivered))

    async def end(self) -> None:
        """End in order, as the process does."""
        self.consumer.stop()
        self.hold.stop()
        async with asyncio.timeout(SECONDS):
            await self.consumer.stopped()

    def hang_at(self, text: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Let the call for this text hang; return what says that it has begun, and what lets it end."""
        begun, release = asyncio.Event(), asyncio.Event()

        async def hang(sending: str) -> None:
            if sending == text:
                begun.set()
                await release.wait()

        self.gateway.meanwhile = hang
        return begun, release

    async def drain_at(self, session: SessionRow) -> datetime | None:
        [row] = await all_of(self.database, SessionRow, id=session.id)
        return cast("SessionRow", row).drain_at


@pytest.fixture
async def world(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(sending, "backoff", lambda *_, **__: 0.01)
    for name in ("_DRAIN_SECONDS", "_RING_SECONDS"):
        monkeypatch.setattr(outbound, name, SECONDS)
    world = World(database)
    yield world
    await world.end()


async def lane(database: Database, session: SessionRow, *texts: str) -> list[MessageRow]:
    return [await enqueue(database, session, message=text) for text in texts]


async def statuses(database: Database, messages: list[MessageRow]) -> list[tuple[D, str | None]]:
    rows = [await reread(database, message) for message in messages]
    return [(row.delivery_status, row.error_code) for row in rows]


# Order


async def test_one_ring_sends_the_lane_in_order(database: Database, world: World) -> None:
    """Whatever message the job names: first come, first sent, one event each; then nothing of the drain is left."""
    messages = await lane(database, await a_session(database), *"12345")
    await world.ring(messages[3])
    assert world.gateway.texts == list("12345")
    assert await statuses(database, messages) == [(D.SENT, None)] * 5
    assert [one.message_id for one, _, _ in world.broker.out] == [message.id for message in messages]
    assert set(world.broker.names) == {"message.sent"}
    assert (world.consumer._drains, world.consumer._timers) == ({}, {})
    await world.ring(messages[4])
    assert len(world.gateway.attempts) == 5


async def test_sessions_go_side_by_side(database: Database, world: World) -> None:
    """A session whose gateway call hangs holds up its own lane only; a ring for it returns at once."""
    begun, release = world.hang_at("slow")
    slow = await lane(database, await a_session(database), "slow", "behind")
    quick = await lane(database, await a_session(database), "quick")
    task = asyncio.create_task(world.ring(slow[0]))
    await begun.wait()
    await world.ring(quick[0])
    await world.ring(slow[1])
    assert world.gateway.texts == ["slow", "quick"]
    release.set()
    await task
    assert world.gateway.texts == ["slow", "quick", "behind"]


async def test_a_cancelled_handler_leaves_its_drain(database: Database, world: World) -> None:
    """Where the broker's connection is lost in mid-call the call is ended and recorded: it is not made twice."""
    begun, release = world.hang_at("1")
    messages = await lane(database, await a_session(database), "1")
    task = asyncio.create_task(world.ring(messages[0]))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.ring(messages[0], redelivered=True)
    release.set()
    await until(lambda: world.broker.names == ["message.sent"])
    assert world.gateway.texts == ["1"]


async def test_a_ring_while_the_drain_finds_nothing_is_not_lost(database: Database, world: World) -> None:
    """A message that is stored and rung for while the drain learns that its lane is empty is sent all the same."""
    session = await a_session(database)
    [first] = await lane(database, session, "1")
    late: list[MessageRow] = []
    transact = database.transact

    async def transact_slowly(work: Work[Any]) -> Any:
        step = await transact(work)
        if isinstance(step, Idle) and not late:
            world.consumer.database.transact = transact  # type: ignore[method-assign]
            late.extend(await lane(database, session, "2"))
            await world.ring(late[0])  # returns at once: the drain is told
        return step

    database.transact = transact_slowly  # type: ignore[method-assign]
    await world.ring(first)
    assert world.gateway.texts == ["1", "2"]
    assert await statuses(database, late) == [(D.SENT, None)]


# Patience


async def test_an_unreachable_gateway_costs_no_attempt(database: Database, world: World) -> None:
    """However often the call was not taken: the message stays first, is tried again under its id, and is sent."""
    world.gateway.results = [GatewayUnreachable("away")] * 5
    messages = await lane(database, await a_session(database), "1", "2")
    await world.ring(messages[0])
    assert world.gateway.texts == ["1"] * 6 + ["2"]
    assert len(set(world.gateway.attempts)) == 2
    assert (await reread(database, messages[0])).attempts == 0
    assert world.broker.names == ["message.sent"] * 2
    assert world.consumer._paces[messages[0].session_id].deferrals == 0


async def test_three_unknown_outcomes_fail_a_message(database: Database, world: World) -> None:
    """Three attempts under one id, no matter what lies between; then it failed, and the next one's turn has come."""
    unknown = GatewayOutcomeUnknown("no answer")
    world.gateway.results = [unknown, GatewayUnreachable("away"), unknown, GatewayUnreachable("away"), unknown]
    messages = await lane(database, await a_session(database), "1", "2")
    await world.ring(messages[0])
    assert world.gateway.texts == ["1"] * 5 + ["2"]
    assert len(set(world.gateway.attempts)) == 2
    assert await statuses(database, messages) == [(D.FAILED, "outcome_unknown"), (D.SENT, None)]
    assert (await reread(database, messages[0])).attempts == 3
    [(event, _, _), _] = world.broker.out
    assert (event.name, event.error_code, event.error_message) == ("message.failed", "outcome_unknown", "no answer")


@pytest.mark.parametrize("code", [None, "invalid_number"])
async def test_a_refusal_fails_the_message_where_the_session_is_connected(
    database: Database, world: World, code: str | None
) -> None:
    """The gateway's code says what is wrong; without one it is asked about the session. The lane goes on."""
    world.gateway.results = [GatewayRefused("no such number", code=code)]
    messages = await lane(database, await a_session(database), "1", "2")
    await world.ring(messages[0])
    assert (world.gateway.texts, world.gateway.asked) == (["1", "2"], 0 if code else 1)
    assert await statuses(database, messages) == [(D.FAILED, code or "refused"), (D.SENT, None)]


@pytest.mark.parametrize(
    "answer",
    [None, GatewaySession("", SessionStatus.CONNECTING), GatewaySession("", None), GatewayUnreachable("away")],
)
async def test_a_refusal_without_a_code_passes_where_the_session_is_not_connected(
    database: Database, world: World, answer: Answer
) -> None:
    """Not connected, or nobody can say: it is the session's trouble, and the message is tried again."""
    world.gateway.results, world.gateway.answer = [GatewayRefused("no")] * 2, answer
    messages = await lane(database, await a_session(database), "1")
    await world.ring(messages[0])
    assert (world.gateway.texts, world.gateway.asked) == (["1"] * 3, 2)
    assert await statuses(database, messages) == [(D.SENT, None)]
    assert (await reread(database, messages[0])).attempts == 0


@pytest.mark.parametrize("code", ["not_connected", "unknown_session"])
async def test_a_session_that_is_not_connected_there_backs_off(database: Database, world: World, code: str) -> None:
    """A code that says so needs no question: the message waits without losing an attempt."""
    world.gateway.results = [GatewayRefused("no", code=code)] * 4
    messages = await lane(database, await a_session(database), "1")
    await world.ring(messages[0])
    assert (world.gateway.texts, world.gateway.asked) == (["1"] * 5, 0)
    assert (await reread(database, messages[0])).attempts == 0


async def test_a_claim_of_another_process_is_waited_for(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is given back, the row says when to look again, and once the claim has ended a timer goes on."""
    monkeypatch.setattr(outbound, "_LONGEST_PAUSE", 0.0)
    claim_next = lanes.claim_next

    async def soon(*given: Any, **more: Any) -> Next:
        step = await claim_next(*given, **more)
        return Wait(0.1) if isinstance(step, Wait) else step

    monkeypatch.setattr(lanes, "claim_next", soon)  # the claim lasts for longer than a busy machine needs
    session = await a_session(database)
    messages = await lane(database, session, "1", "2")
    theirs = await claimed(database, session, replace(QUICK, call_timeout=600.0))
    await world.ring(messages[0])
    assert world.gateway.attempts == []
    assert await world.drain_at(session) is not None
    await change(database, theirs, claimed_until=datetime(2020, 1, 1, tzinfo=UTC))
    await until(lambda: world.gateway.texts == ["1", "2"])
    await until(lambda: not world.consumer._tasks)
    assert await world.drain_at(session) is None


async def test_a_ring_does_not_wait_for_the_timer(database: Database, world: World) -> None:
    """A lane that waits is looked at again when somebody rings; then no timer and no mark is left."""
    session = await a_session(database)
    messages = await lane(database, session, "1")
    theirs = await claimed(database, session)
    await world.ring(messages[0])
    [timer] = world.consumer._timers.values()
    await change(database, theirs, claimed_until=None)
    await world.ring(messages[0])
    assert world.gateway.texts == ["1"]
    assert timer.cancelled()
    assert (world.consumer._timers, await world.drain_at(session)) == ({}, None)


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waited_too_long_is_not_sent(database: Database, world: World, status: SessionStatus) -> None:
    """It has failed as expired, its caller is told, connected or not; the next one goes or stays parked."""
    session = await a_session(database, status=status)
    old = await enqueue(database, session, expiry=timedelta(seconds=-1), message="old")
    new = await enqueue(database, session, message="new")
    await world.ring(old)
    connected = status is SessionStatus.CONNECTED
    assert world.gateway.texts == (["new"] if connected else [])
    assert await statuses(database, [old, new]) == [(D.FAILED, "expired"), (D.SENT if connected else D.PENDING, None)]
    assert world.broker.out[0][0].error_code == "expired"


@pytest.mark.parametrize("own_id", [None, "OWN"])
async def test_a_failed_receipt_that_overtakes_the_answer_stands(
    database: Database, world: World, own_id: str | None
) -> None:
    """WhatsApp's verdict is newer than the answer of /send that is recorded after it, whoever chose the id."""
    session = await a_session(database)
    [message] = await lane(database, session, "1")

    async def fail(_text: str) -> None:
        whatsapp_id = own_id or message.whatsapp_message_id
        failed = partial(conversations.apply_receipt, session_id=session.session_id, whatsapp_id=whatsapp_id)
        at = datetime.now(UTC)
        await database.transact(lambda tx: failed(tx, status=D.FAILED, at=at, error="blocked"))

    world.gateway.meanwhile = fail
    world.gateway.results = [own_id] if own_id else []
    await world.ring(message)
    row = await reread(database, message)
    assert (row.delivery_status, row.error_code, row.error_message) == (D.FAILED, "failed_by_whatsapp", "blocked")
    assert [(one.name, one.error_code) for one, _, _ in world.broker.out] == [("message.failed", "failed_by_whatsapp")]


# What is left for whoever comes next


async def test_a_lane_that_waits_is_rung_for_at_the_end(database: Database, world: World) -> None:
    """Its job is acknowledged and its timer dies with the process: so a new job goes to whoever is active next."""
    session = await a_session(database)
    messages = await lane(database, session, "1", "2")
    await claimed(database, session)
    await world.ring(messages[1])
    assert world.broker.names == []
    await world.end()
    [(job, ring_id, _)] = world.broker.out
    assert (job.name, job.message_id) == ("whatsapp-qr-send", messages[0].id)
    assert ring_id != output_id(messages[0].id, "job")
    assert all(timer.cancelled() for timer in world.consumer._timers.values())


async def test_an_attempt_is_ended_at_the_end(database: Database, world: World) -> None:
    """A process that stops in mid-call records how it ended, sends nothing more, and rings for what waits."""
    begun, release = world.hang_at("1")
    world.gateway.results = [GatewayOutcomeUnknown("late")]
    messages = await lane(database, await a_session(database), "1", "2")
    task = asyncio.create_task(world.ring(messages[0]))
    await begun.wait()
    end = asyncio.create_task(world.end())
    release.set()
    await asyncio.gather(task, end)
    assert world.gateway.texts == ["1"]
    assert (await reread(database, messages[0])).attempts == 1
    assert [(one.name, one.message_id) for one, _, _ in world.broker.out] == [("whatsapp-qr-send", messages[0].id)]


async def test_a_drain_ends_when_what_is_held_is_left(database: Database, world: World) -> None:
    """A process that gives up its partitions ends its drains after the present message and rings for what waits."""
    begun, release = world.hang_at("1")
    messages = await lane(database, await a_session(database), "1", "2")
    task = asyncio.create_task(world.ring(messages[0]))
    await begun.wait()
    world.hold.leave()
    release.set()
    await asyncio.wait_for(task, SECONDS)
    assert world.gateway.texts == ["1"]
    assert world.broker.out[-1][0].name == "whatsapp-qr-send"
    world.hold.resume()
    await world.ring(messages[1])
    assert world.gateway.texts == ["1", "2"]


async def test_a_held_drain_is_left(database: Database, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that is held when the partitions are given up ends with its job unacknowledged, and claims nothing."""
    messages = await lane(database, await a_session(database), "1")
    asked = asyncio.Event()

    async def away(*_args: object, **_more: object) -> Next:
        asked.set()
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(lanes, "claim_next", away)
    task = asyncio.create_task(world.ring(messages[0]))
    await asked.wait()
    world.hold.leave()
    with pytest.raises(Stopping):
        await asyncio.wait_for(task, SECONDS)
    assert world.gateway.texts == []
    assert world.hold.held == 0


async def test_a_timer_that_fires_at_the_end_starts_nothing(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one lane is rung for no other one's timer may fire: every lane is rung for, and no drain is left."""
    sessions = [await a_session(database) for _ in range(2)]
    for session in sessions:
        [message] = await lane(database, session, "1")
        await claimed(database, session)
        await world.ring(message)
    publish = world.broker.publish

    async def publish_while_timers_fire(message: Message, **properties: Any) -> None:
        for session_id, timer in list(world.consumer._timers.items()):
            if not timer.cancelled():
                world.consumer._drain(session_id)
                await asyncio.sleep(0)
        await publish(message, **properties)

    monkeypatch.setattr(world.broker, "publish", publish_while_timers_fire)
    await world.end()
    assert sorted(job.session_id for job, _, _ in world.broker.out) == sorted(one.session_id for one in sessions)
    assert not world.consumer._tasks


async def test_without_the_broker_the_row_remembers(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that cannot be rung for at the end keeps its mark, and the process ends all the same."""
    session = await a_session(database)
    messages = await lane(database, session, "1")
    await claimed(database, session)
    await world.ring(messages[0])

    async def away(_message: Message, **_: Any) -> None:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(world.broker, "publish", away)
    await world.end()
    assert await world.drain_at(session) is not None


@pytest.mark.parametrize("parked", [False, True])
async def test_the_mark_goes_where_nothing_is_to_be_done(database: Database, world: World, *, parked: bool) -> None:
    """A lane that is empty or parked is not to be looked at again: whoever finds it so takes the mark away."""
    session = await a_session(database)
    messages = await lane(database, session, "1")
    if parked:
        await change(database, session, status=SessionStatus.DISCONNECTED)
    else:
        await sent(database, messages[0])
    await database.transact(lambda tx: lanes.postpone(database, tx, session_id=session.session_id, seconds=60))
    await world.ring(messages[0])
    assert await world.drain_at(session) is None
    assert world.gateway.attempts == []


@pytest.mark.parametrize("redelivered", [False, True])
async def test_a_redelivered_job_announces_what_a_crash_left(
    database: Database, world: World, *, redelivered: bool
) -> None:
    """Sent and recorded, not announced: the job that comes again tells it, in order, under ids that stay the same."""
    session = await a_session(database)
    messages = [await sent(database, message) for message in await lane(database, session, "1", "2")]
    await world.ring(messages[0], redelivered=redelivered)
    next_process = World(database)
    await next_process.ring(messages[0], redelivered=redelivered)
    assert [one.message_id for one, _, _ in world.broker.out] == [one.id for one in messages] * redelivered
    assert next_process.broker.ids == world.broker.ids
    assert world.gateway.attempts == []


async def test_a_job_without_a_message_is_undeliverable(database: Database, world: World) -> None:
    """Nobody knows what it rings for: it is for the dead letters."""
    [message] = await lane(database, await a_session(database), "1")
    message.id = uuid4()
    with pytest.raises(Undeliverable) as raised:
        await world.ring(message)
    assert raised.value.code == "unknown_message"
    assert world.gateway.attempts == []

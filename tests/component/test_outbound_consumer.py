"""The outbound consumer on both databases: order, patience, and what is left for whoever comes next."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zlib import crc32

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.consumers import outbound, row_outputs
from service.consumers.outbound import OutboundConsumer, Sender
from service.domain import sending
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.domain.sending import SendPolicy
from service.errors import (
    DatabaseUnavailable,
    GatewayError,
    GatewayOutcomeUnknown,
    GatewayRefused,
    GatewayUnreachable,
)
from service.messaging.handling import NotDone
from service.messaging.retrying import RetryWhileUnavailable
from service.persistence import lanes
from service.persistence.database import Database, Work
from service.persistence.tables import MessageRow, SessionRow
from service.persistence.unpublished import Part
from tests.amqp import SECONDS, until
from tests.component.conversing import a_receipt
from tests.component.racing import change_lane, lane_of
from tests.component.rows import Outputs, a_session, claimed, enqueue, handle, received, reread
from tests.system import eventually
from whatsapp_qr_contracts.message import DeliveryStatus as D
from whatsapp_qr_contracts.message import SessionStatus

QUICK = SendPolicy(backoff=0.01, rate=1000, burst=1000)
LONG_CLAIMS = replace(QUICK, call_timeout=600.0)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
EVERYTHING = Part(1, {0: 0.0})


@dataclass
class Gateway:
    """Takes every message, after the results that a test scripts; remembers all attempts."""

    results: list[GatewayError | str] = field(default_factory=list)
    answer: Reported = field(default_factory=Connected)
    attempts: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0
    sending: set[str] = field(default_factory=set)
    meanwhile: Callable[[str], Awaitable[None]] | None = None
    """Happens while it sends a text."""

    async def send(self, session_id: str, _to: str, message: str, message_id: str) -> str:
        self.attempts.append((message, message_id))
        assert session_id not in self.sending, "two messages of one session are on their way at once"
        self.sending.add(session_id)
        try:
            if self.meanwhile is not None:
                await self.meanwhile(message)
        finally:
            self.sending.discard(session_id)
        result = self.results.pop(0) if self.results else message_id
        if isinstance(result, GatewayError):
            raise result
        return result

    async def status(self, _session_id: str) -> Reported:
        self.asked += 1
        return self.answer

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.attempts]

    def hang_at(self, text: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Let the call for this text hang; return what says that it has begun, and what lets it end."""
        begun, release = asyncio.Event(), asyncio.Event()

        async def hang(sending: str) -> None:
            if sending == text:
                begun.set()
                await release.wait()

        self.meanwhile = hang
        return begun, release


class World:
    """One process with an outbound consumer and its gateway; it owns everything, unless a test says less."""

    def __init__(self, database: Database, policy: SendPolicy = QUICK, gateway: Gateway | None = None) -> None:
        self.database, self.outputs, self.gateway = database, Outputs(), gateway or Gateway()
        self.part = EVERYTHING
        self.sender = Sender(database, self.gateway, RetryWhileUnavailable(), self.outputs, policy, lambda: self.part)  # type: ignore[arg-type]
        self.consumer = OutboundConsumer(self.sender)

    async def ring(self, *messages: MessageRow) -> NotDone:
        """Handle the jobs of messages, in one batch."""
        return await self.consumer.handle([received(row_outputs.send_job(message)) for message in messages])

    async def send(self, *messages: MessageRow) -> None:
        """Handle the jobs of messages; wait until nothing is left of their lanes."""
        await self.ring(*messages)
        await self.idle(*messages)

    async def idle(self, *messages: MessageRow) -> None:
        """Wait until no lane of these messages is awake, and nothing is on its way."""
        sessions = {message.session_id: SessionRow(session_id=message.session_id) for message in messages}  # type: ignore[call-arg]

        async def awake() -> list[Any]:
            rows = [await lane_of(self.database, session) for session in sessions.values()]
            return [row.wake_at for row in rows if row.wake_at] + self.sender._answers + list(self.sender._calls)

        await eventually(awake, lambda found: not found)

    async def end(self) -> None:
        """End in order, as the process does."""
        async with asyncio.timeout(SECONDS):
            await self.sender.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets troubles pass at once; lanes are looked for at the start, and then when one of them says so."""
    monkeypatch.setattr(sending, "backoff", lambda *_, **__: 0.01)
    monkeypatch.setattr(outbound, "_PAUSE_AFTER_TROUBLE", 0.01)
    monkeypatch.setattr(outbound, "_LOOK_EVERY_SECONDS", 10 * SECONDS)


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    world = World(database)
    world.sender.start()
    yield world
    await world.end()


async def lane(database: Database, session: SessionRow, *texts: str) -> list[MessageRow]:
    return [await enqueue(database, session, message=text) for text in texts]


async def statuses(database: Database, messages: list[MessageRow]) -> list[tuple[D, str | None]]:
    rows = [await reread(database, message) for message in messages]
    return [(row.delivery_status, row.error_code) for row in rows]


async def due(database: Database) -> list[str]:
    return await database.read(lambda tx: lanes.due(tx, EVERYTHING))


# Order


async def test_one_job_sends_the_lane_in_order(database: Database, world: World) -> None:
    """Whatever message the job names: first come, first sent, one event each; another job finds nothing."""
    messages = await lane(database, await a_session(database), *"12345")
    await world.send(messages[3])
    assert world.gateway.texts == list("12345")
    assert await statuses(database, messages) == [(D.SENT, None)] * 5
    assert [output.message.message_id for output in world.outputs.outputs] == [row.id for row in messages]  # type: ignore[attr-defined]
    assert set(world.outputs.names) == {"message.sent"}
    await world.send(messages[4])
    assert len(world.gateway.attempts) == 5


async def test_sessions_go_side_by_side(database: Database, world: World) -> None:
    """A session whose gateway call hangs holds up its own lane only, and its jobs are acknowledged meanwhile."""
    begun, release = world.gateway.hang_at("slow")
    slow = await lane(database, await a_session(database), "slow", "behind")
    quick = await lane(database, await a_session(database), "quick")
    await world.ring(slow[0])
    await begun.wait()
    assert await world.ring(slow[1], quick[0]) == []
    await until(lambda: world.outputs.names == ["message.sent"])
    assert world.gateway.texts == ["slow", "quick"]
    release.set()
    await world.idle(*slow)
    assert world.gateway.texts == ["slow", "quick", "behind"]


async def test_two_processes_send_from_one_lane_in_turn(
    database: Database, other_process: Database, world: World
) -> None:
    """Both are told of every message, as while a partition changes hands: each goes out once, in order, alone."""
    other = World(other_process, gateway=world.gateway)
    other.sender.start()
    sessions = [await a_session(database) for _ in range(3)]
    for text in map(str, range(6)):
        messages = [await enqueue(database, session, message=text) for session in sessions]
        await asyncio.gather(world.ring(*messages), other.ring(*messages))
    await world.idle(*messages)
    await other.idle(*messages)
    await other.end()
    assert len(set(world.gateway.attempts)) == len(world.gateway.attempts) == 18
    assert sorted(world.gateway.texts) == sorted(str(number) for number in range(6) for _ in sessions)


async def test_a_call_that_outlives_its_claim_is_waited_for(database: Database, world: World) -> None:
    """The process stood still for longer than a claim lasts: it begins no second call beside the one that hangs."""
    begun, release = world.gateway.hang_at("1")
    session = await a_session(database)
    messages = await lane(database, session, "1", "2")
    await world.ring(messages[0])
    await begun.wait()
    await change_lane(database, session, claimed_until=PAST)
    await world.ring(messages[1])
    other = await lane(database, await a_session(database), "other")
    await world.ring(*other)
    await until(lambda: world.outputs.names == ["message.sent"])  # a round has been since
    assert world.gateway.texts == ["1", "other"]
    release.set()
    await world.idle(*messages)
    assert world.gateway.texts == ["1", "other", "2"]


async def test_lanes_take_turns_where_connections_are_few(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane with much to send goes behind those that wait for a connection after each of its messages."""
    monkeypatch.setattr(outbound, "MAX_CONNECTIONS", 1)
    begun, release = world.gateway.hang_at("1")
    much = await lane(database, await a_session(database), "1", "2", "3")
    little = [(await lane(database, await a_session(database), text))[0] for text in "ab"]
    await world.ring(much[0])
    await begun.wait()
    for message in little:
        await world.ring(message)
    await until(lambda: len(world.sender._due) == 2)
    release.set()
    await world.idle(*much, *little)
    assert world.gateway.texts == ["1", "a", "b", "2", "3"]


# In the middle of a round


def in_a_round(database: Database, happens: Callable[[], Awaitable[object]]) -> None:
    """Let something happen once after the next round is committed, before the process goes on."""
    transact = database.transact

    async def and_then(work: Work[Any], **options: Any) -> Any:
        done = await transact(work, **options)
        if isinstance(done, lanes.Round):
            database.transact = transact  # type: ignore[method-assign]
            await happens()
        return done

    database.transact = and_then  # type: ignore[method-assign]


async def test_a_job_that_comes_while_a_round_finds_nothing_is_not_lost(database: Database, world: World) -> None:
    """A message that is stored and told of while the process learns that its lane is empty is sent all the same."""
    session = await a_session(database)
    [first] = await lane(database, session, "1")
    late: list[MessageRow] = []
    rung: list[asyncio.Task[NotDone]] = []

    async def store() -> None:
        late.extend(await lane(database, session, "2"))
        rung.append(asyncio.create_task(world.ring(*late)))

    async def before_the_last_round(_text: str) -> None:
        in_a_round(database, store)  # the round that records this call's answer finds nothing behind it

    world.gateway.meanwhile = before_the_last_round
    await world.ring(first)
    await until(lambda: world.gateway.attempts)
    world.gateway.meanwhile = None
    await until(lambda: late)
    await until(lambda: world.gateway.texts == ["1", "2"])
    await world.idle(first)
    assert await rung[0] == []
    assert await statuses(database, [first, *late]) == [(D.SENT, None)] * 2


async def test_an_answer_that_comes_while_a_round_runs_is_not_lost(database: Database) -> None:
    """It is recorded in the next round: the call is not made again once its claim has ended."""
    world = World(database, LONG_CLAIMS)
    world.sender.start()
    _, release = world.gateway.hang_at("slow")
    slow = await lane(database, await a_session(database), "slow")
    quick_one = await lane(database, await a_session(database), "quick")
    await world.ring(*slow)
    await until(lambda: world.gateway.attempts)

    async def answer() -> None:
        release.set()
        await until(lambda: world.sender._answers and not world.sender._calls)

    async def before_its_round(_text: str) -> None:
        in_a_round(database, answer)

    hang = world.gateway.meanwhile
    assert hang is not None
    world.gateway.meanwhile = before_its_round
    await world.ring(*quick_one)
    await world.idle(*slow, *quick_one)
    assert await statuses(database, [*slow, *quick_one]) == [(D.SENT, None)] * 2
    assert world.gateway.texts == ["slow", "quick"]
    await world.end()


@pytest.mark.parametrize("fails", ["before it claims", "before it records"])
async def test_a_round_that_fails_is_done_again(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The database was away: what was to be looked at is, what was answered is recorded, and nothing is sent twice."""
    messages = await lane(database, await a_session(database), "1", "2")
    transact, failures = database.transact, [DatabaseUnavailable("away"), ValueError("a bug")]

    async def fail_first(work: Work[Any], **options: Any) -> Any:
        is_round = getattr(work, "func", None) is lanes.send_round
        if is_round and failures and (fails == "before it claims" or world.sender._answers):
            raise failures.pop()
        return await transact(work, **options)

    monkeypatch.setattr(database, "transact", fail_first)
    await world.send(messages[0])
    assert (world.gateway.texts, failures) == (["1", "2"], [])
    assert await statuses(database, messages) == [(D.SENT, None)] * 2
    assert world.sender.alive


# Patience


async def test_an_unreachable_gateway_costs_no_attempt(database: Database, world: World) -> None:
    """However often the call was not taken: the message stays first, is tried again under its id, and is sent."""
    world.gateway.results = [GatewayUnreachable("away")] * 5
    session = await a_session(database)
    messages = await lane(database, session, "1", "2")
    await world.send(messages[0])
    assert world.gateway.texts == ["1"] * 6 + ["2"]
    assert len(set(world.gateway.attempts)) == 2
    assert (await reread(database, messages[0])).attempts == 0
    assert world.outputs.names == ["message.sent"] * 2
    assert (await lane_of(database, session)).deferrals == 0


async def test_deferrals_in_a_row_lengthen_the_pause(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted in the lane's row, so also over processes, and from the start after an answer that counts."""
    seen: list[int] = []

    def backoff(failures: int) -> float:
        seen.append(failures)
        return 0.01

    monkeypatch.setattr(sending, "backoff", backoff)
    away, unknown = GatewayUnreachable("away"), GatewayOutcomeUnknown("no answer")
    world.gateway.results = [away, away, away, unknown, away]
    await world.send(*await lane(database, await a_session(database), "1"))
    assert seen == [1, 2, 3, 1]


async def test_three_unknown_outcomes_fail_a_message(database: Database, world: World) -> None:
    """Three attempts under one id, no matter what lies between; then it failed, and the next one's turn has come."""
    unknown = GatewayOutcomeUnknown("no answer")
    world.gateway.results = [unknown, GatewayUnreachable("away"), unknown, GatewayUnreachable("away"), unknown]
    messages = await lane(database, await a_session(database), "1", "2")
    await world.send(messages[0])
    assert world.gateway.texts == ["1"] * 5 + ["2"]
    assert len(set(world.gateway.attempts)) == 2
    assert await statuses(database, messages) == [(D.FAILED, "outcome_unknown"), (D.SENT, None)]
    assert (await reread(database, messages[0])).attempts == 3
    event: Any = world.outputs.outputs[0].message
    assert (event.name, event.error_code, event.error_message) == ("message.failed", "outcome_unknown", "no answer")


async def test_whatever_a_call_raises_is_an_unknown_outcome(database: Database, world: World) -> None:
    """A mistake of ours stops neither its lane nor the process: it may have gone out, and counts as an attempt."""
    mistakes = iter([KeyError("a bug")])

    async def fail(_text: str) -> None:
        for mistake in mistakes:
            raise mistake

    world.gateway.meanwhile = fail
    [message] = await lane(database, await a_session(database), "1")
    await world.send(message)
    row = await reread(database, message)
    assert (row.delivery_status, row.attempts, world.gateway.texts) == (D.SENT, 1, ["1", "1"])


@pytest.mark.parametrize("code", [None, "invalid_number"])
async def test_a_refusal_fails_the_message_where_the_session_is_connected(
    database: Database, world: World, code: str | None
) -> None:
    """The gateway's code says what is wrong; without one it is asked about the session. The lane goes on."""
    world.gateway.results = [GatewayRefused("no such number", code=code)]
    messages = await lane(database, await a_session(database), "1", "2")
    await world.send(messages[0])
    assert (world.gateway.texts, world.gateway.asked) == (["1", "2"], 0 if code else 1)
    assert await statuses(database, messages) == [(D.FAILED, code or "refused"), (D.SENT, None)]


@pytest.mark.parametrize(
    "answer",
    [UnknownSession(), OtherState(SessionStatus.CONNECTING), UnknownWord(), NoAnswer(GatewayUnreachable("away"))],
    ids=lambda answer: type(answer).__name__,
)
async def test_a_refusal_without_a_code_passes_where_the_session_is_not_connected(
    database: Database, world: World, answer: Reported
) -> None:
    """Not connected, or nobody can say: it is the session's trouble, and the message is tried again."""
    world.gateway.results, world.gateway.answer = [GatewayRefused("no")] * 2, answer
    messages = await lane(database, await a_session(database), "1")
    await world.send(messages[0])
    assert (world.gateway.texts, world.gateway.asked) == (["1"] * 3, 2)
    assert await statuses(database, messages) == [(D.SENT, None)]
    assert (await reread(database, messages[0])).attempts == 0


@pytest.mark.parametrize("code", ["not_connected", "unknown_session"])
async def test_a_session_that_is_not_connected_there_backs_off(database: Database, world: World, code: str) -> None:
    """A code that says so needs no question: the message waits without losing an attempt."""
    world.gateway.results = [GatewayRefused("no", code=code)] * 4
    messages = await lane(database, await a_session(database), "1")
    await world.send(messages[0])
    assert (world.gateway.texts, world.gateway.asked) == (["1"] * 5, 0)
    assert (await reread(database, messages[0])).attempts == 0


@pytest.mark.parametrize("why", ["pace", "back-off"])
async def test_a_lane_that_waits_holds_nothing(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    """Its job is acknowledged, its row says when it goes on, and nothing of it is left in the process."""
    monkeypatch.setattr(sending, "backoff", lambda *_, **__: 3600.0)
    world = World(database, replace(QUICK, burst=1, rate=1 / 3600))
    world.sender.start()
    world.gateway.results = [GatewayUnreachable("away")] if why == "back-off" else []
    session = await a_session(database)
    messages = await lane(database, session, "1", "2", "3")
    assert await world.ring(*messages) == []
    soon = datetime.now(UTC) + timedelta(seconds=1800)
    await eventually(lambda: lane_of(database, session), lambda row: row.wake_at > soon)
    assert (world.sender._calls, world.sender._answers, world.sender._due) == ({}, [], {})
    assert world.gateway.texts == ["1"]
    await world.send(*await lane(database, await a_session(database), "of another"))
    assert world.gateway.texts == ["1", "of another"]
    await world.end()


async def test_jobs_of_a_lane_that_waits_cost_no_round(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of a paced chatbot: its lane is looked at when its pace allows, not for each job."""
    rounds: list[set[str]] = []
    real = lanes.send_round

    async def counted(tx: AsyncSession, **given: Any) -> Any:
        rounds.append(set(given["due"]))
        return await real(tx, **given)

    monkeypatch.setattr(lanes, "send_round", counted)
    world, session = World(database, replace(QUICK, burst=1, rate=1 / 3600)), await a_session(database)
    world.sender.start()
    messages = await lane(database, session, *map(str, range(5)))
    assert await world.ring(messages[0]) == []
    soon = datetime.now(UTC) + timedelta(seconds=1800)
    await eventually(lambda: lane_of(database, session), lambda row: row.wake_at > soon)
    for message in messages:
        assert await world.ring(message) == []
    await world.send(*await lane(database, await a_session(database), "of another"))
    # With its own first job or by its row, whichever is first; then after the answer; and for no further job.
    assert sum(session.session_id in due for due in rounds) <= 2
    await world.end()


async def test_a_lane_goes_on_when_its_row_says(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process was killed with a claim: once that ends by itself the lane goes on, without any further job."""
    monkeypatch.setattr(outbound, "_LOOK_EVERY_SECONDS", 0.1)
    session, world = await a_session(database), World(database)
    messages = await lane(database, session, "1", "2")
    await claimed(database, session, replace(QUICK, call_timeout=-3.0))  # a claim of 2 s
    world.sender.start()
    await world.ring(messages[0])
    await world.idle(messages[0])
    assert world.gateway.texts == ["1", "2"]
    await world.end()


async def test_a_claim_of_another_process_is_left_alone(database: Database) -> None:
    """However often jobs come: nothing is sent, and the row says when the claim ends."""
    session, world = await a_session(database), World(database)
    messages = await lane(database, session, "1", "2")
    theirs = await claimed(database, session, LONG_CLAIMS)
    world.sender.start()
    for _ in range(3):
        await world.ring(*messages)
        await eventually(lambda: lane_of(database, session), lambda row: row.wake_at == row.claimed_until)
    assert (world.gateway.attempts, (await lane_of(database, session)).claim) == ([], theirs.claim)
    await world.end()


@pytest.mark.parametrize("status", [SessionStatus.CONNECTED, SessionStatus.DISCONNECTED])
async def test_what_waited_too_long_is_not_sent(database: Database, world: World, status: SessionStatus) -> None:
    """It has failed as expired, its caller is told, connected or not; the next one goes or stays parked."""
    session = await a_session(database, status=status)
    old = await enqueue(database, session, expiry=timedelta(seconds=-1), message="old")
    new = await enqueue(database, session, message="new")
    await world.send(old)
    connected = status is SessionStatus.CONNECTED
    assert world.gateway.texts == (["new"] if connected else [])
    assert await statuses(database, [old, new]) == [(D.FAILED, "expired"), (D.SENT if connected else D.PENDING, None)]
    event: Any = world.outputs.outputs[0].message
    assert (event.message_id, event.error_code) == (old.id, "expired")


@pytest.mark.parametrize("own_id", [None, "OWN"])
async def test_a_failed_receipt_that_overtakes_the_answer_stands(
    database: Database, world: World, own_id: str | None
) -> None:
    """WhatsApp's verdict is newer than the answer of /send that is recorded after it, whoever chose the id."""
    session = await a_session(database)
    [message] = await lane(database, session, "1")

    async def fail(_text: str) -> None:
        await handle(database, a_receipt(session, own_id or message.whatsapp_message_id, "failed", error="blocked"))

    world.gateway.meanwhile = fail
    world.gateway.results = [own_id] if own_id else []
    await world.send(message)
    row = await reread(database, message)
    assert (row.delivery_status, row.error_code, row.error_message) == (D.FAILED, "failed_by_whatsapp", "blocked")
    told = [getattr(output.message, "error_code", None) for output in world.outputs.outputs]
    assert told == (["failed_by_whatsapp"] if own_id else [])  # the receipt's handler has told the other


# What is left for whoever comes next


async def test_the_next_process_goes_on_at_once(database: Database) -> None:
    """A process that stops in mid-call records how it ended and sends nothing more; its lanes are due at once."""
    world = World(database, LONG_CLAIMS)
    world.sender.start()
    begun, release = world.gateway.hang_at("1")
    world.gateway.results = [GatewayOutcomeUnknown("late")]
    session, other = await a_session(database), await a_session(database)
    messages = await lane(database, session, "1", "2")
    await world.ring(messages[0])
    await begun.wait()
    end = asyncio.create_task(world.end())
    await until(lambda: world.sender._stopping)
    behind = await lane(database, other, "behind")
    assert await world.ring(*behind) == []  # a job that is handled while it ends
    release.set()
    await end
    assert world.gateway.texts == ["1"]
    assert (await reread(database, messages[0])).attempts == 1
    assert set(await due(database)) == {session.session_id, other.session_id}
    next_process = World(database)
    next_process.sender.start()
    await next_process.idle(*messages, *behind)
    assert sorted(next_process.gateway.texts) == ["1", "2", "behind"]
    await next_process.end()


async def test_what_was_claimed_while_the_process_began_to_end_is_sent(database: Database, world: World) -> None:
    """A round was under way: its messages are sent and recorded, or they would wait for the end of their claims."""
    messages = await lane(database, await a_session(database), "1", "2")
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        ending.append(asyncio.create_task(world.end()))
        await until(lambda: world.sender._stopping)

    in_a_round(database, end)
    await world.ring(messages[0])
    await until(lambda: ending)
    await ending[0]
    assert world.gateway.texts == ["1"]
    assert await statuses(database, messages) == [(D.SENT, None), (D.PENDING, None)]
    assert await due(database) == [messages[0].session_id]


@pytest.mark.parametrize("lasts", [1, 1000])
async def test_an_answer_at_the_end_outlives_a_short_trouble(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    lasts: int,
) -> None:
    """A deadlock at that moment does not lose it; a database that stays away does not keep the process from ending."""
    world = World(database)
    world.sender.start()
    begun, release = world.gateway.hang_at("1")
    messages = await lane(database, await a_session(database), "1")
    await world.ring(messages[0])
    await begun.wait()
    transact, failures = database.transact, iter(range(lasts))

    async def fail_first(work: Work[Any], **options: Any) -> Any:
        for _ in failures:
            raise DatabaseUnavailable("away")
        return await transact(work, **options)

    monkeypatch.setattr(database, "transact", fail_first)
    end = asyncio.create_task(world.end())
    await until(lambda: world.sender._stopping)
    release.set()
    await end
    assert await statuses(database, messages) == [(D.SENT if lasts == 1 else D.PENDING, None)]


async def test_whoever_takes_over_finds_what_is_due(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the rows of the partitions that it owns now, however many lanes that are, and in no others."""
    monkeypatch.setattr(outbound, "_LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(lanes, "BATCH", 2)
    world = World(database)
    world.part = Part(2, {})
    world.sender.start()
    messages = [(await lane(database, await a_session(database), str(number)))[0] for number in range(10)]
    mine = [row for row in messages if crc32(str(row.chatbot_id).encode()) % 2 == 0]
    others = [row for row in messages if row not in mine]
    looked = asyncio.Event()
    find = lanes.due

    async def find_and_tell(*given: Any, **more: Any) -> list[str]:
        found = await find(*given, **more)
        looked.set()
        return found

    monkeypatch.setattr(lanes, "due", find_and_tell)
    world.part = Part(2, {0: 0.0})
    await world.idle(*mine)
    looked.clear()
    await looked.wait()
    assert sorted(world.gateway.texts) == sorted(row.content for row in mine)
    world.part = Part(2, {0: 0.0, 1: 1.0})
    await world.idle(*others)
    assert sorted(world.gateway.texts) == sorted(row.content for row in messages)
    await world.end()


async def test_more_than_a_page_of_due_lanes_is_found_at_once(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a take-over the second page does not wait for the next look; nor do lanes whose calls hang fill a page."""
    monkeypatch.setattr(lanes, "BATCH", 2)
    hanging = [(await lane(database, await a_session(database), "hangs"))[0] for _ in range(3)]
    world = World(database)
    _, release = world.gateway.hang_at("hangs")
    world.sender.start()
    await until(lambda: world.gateway.texts == ["hangs"] * 3)
    await world.ring(*hanging)  # they are due again, the longest
    monkeypatch.setattr(outbound, "_LOOK_EVERY_SECONDS", 0.01)
    world.sender._next_look = 0.0
    more = [(await lane(database, await a_session(database), "more"))[0] for _ in range(5)]
    world.sender._wake.set()
    await until(lambda: world.gateway.texts.count("more") == 5)
    release.set()
    await world.idle(*hanging, *more)
    await world.end()


async def test_a_job_without_a_message_is_undeliverable(database: Database, world: World) -> None:
    """Nobody knows what it wakes: it is for the dead letters, and the other jobs of its batch are done."""
    known, unknown = await lane(database, await a_session(database), "1", "2")
    unknown.id = uuid4()
    [(failed, error)] = await world.ring(unknown, known)
    assert (failed.body.message_id, error.code) == (unknown.id, "unknown_message")  # type: ignore[attr-defined]
    await world.idle(known)
    assert world.gateway.texts == ["1", "2"]

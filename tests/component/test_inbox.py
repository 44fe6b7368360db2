"""What waits for its turn, and the life of what was taken, with deliveries that only remember how they ended."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.dead_letters import DeadLetter
from service.errors import DatabaseUnavailable, Undeliverable
from service.messaging import handling, retrying, topology
from service.messaging.consuming import Consumer
from service.messaging.inbox import Delivery, Gate, Inbox
from service.messaging.retrying import RetryWhileUnavailable
from service.messaging.subscriptions import Subscriptions
from tests.amqp import Handler, a_chatbot, a_message
from tests.system import eventually
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import JOBS, MAX_BODY_BYTES

PARTITIONS = 2


class Raw(SimpleNamespace):
    """A message of the client library; `acks` is shared and remembers how each ended."""

    def __init__(self, text: str = "", *, deaths: int = 0, **fields: Any) -> None:
        nothing = dict.fromkeys(
            ("type", "timestamp", "correlation_id", "content_type", "content_encoding", "reply_to", "expiration",
             "priority", "app_id", "user_id"),
        )  # fmt: skip
        defaults: dict[str, Any] = {
            "body": b"",
            "message_id": text,
            "headers": {"x-delivery-count": deaths},
            "exchange": "e",
            "routing_key": "message.send.0",
            "redelivered": False,
            "channel": SimpleNamespace(is_closed=False),
            "acks": [],
        }
        super().__init__(**(nothing | defaults | fields))

    async def ack(self, *, multiple: bool) -> None:
        self.acks.append((self.message_id, multiple))


# Waiting


def arrive(inbox: Inbox, number: int, *names: str, gate: Gate | None = None, **fields: Any) -> Gate:
    """Let messages arrive on a queue."""
    gate = gate or Gate()
    for name in names:
        inbox.add(Delivery(Raw(name, **fields), number, gate))
    return gate


def names(taken: Sequence[Delivery]) -> list[str]:
    return [delivery.raw.message_id for delivery in taken]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 20), st.data())
async def test_what_waits_is_taken_in_order_and_fairly(queues: list[int], most: int, data: st.DataObject) -> None:
    """Per queue as it came; no more at once than asked for; nobody's second before everybody's first."""
    inbox, waiting, gate = Inbox(), defaultdict[int, list[str]](list), Gate()
    arrivals = [(number, str(place)) for place, number in enumerate(queues)]
    while arrivals or any(waiting.values()):
        come, arrivals = arrivals[: (now := data.draw(st.integers(1, 10)))], arrivals[now:]
        for number, name in come:
            waiting[number].append(name)
            arrive(inbox, number, name, gate=gate)
        taken = await inbox.take(most)
        assert len(taken) == min(most, sum(map(len, waiting.values())))
        shares = defaultdict[int, list[str]](list)
        for delivery in taken:
            shares[delivery.number] += names([delivery])
        for number, share in shares.items():
            assert share == waiting[number][: len(share)]
            waiting[number] = waiting[number][len(share) :]
        left = [len(shares[number]) for number in waiting if waiting[number]]
        assert max(map(len, shares.values())) <= min(left, default=most) + 1
    assert gate.running == len(queues)


async def test_it_waits_until_something_comes() -> None:
    """Also where all that waited was void."""
    inbox = Inbox()
    taking = asyncio.ensure_future(inbox.take(9))
    released = arrive(inbox, 0, "of a partition that is given up")
    released.closed = True
    arrive(inbox, 0, "of a channel that is closed", channel=SimpleNamespace(is_closed=True))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not taking.done()
    here = arrive(inbox, 0, "here")
    assert names(await taking) == ["here"]
    assert (released.running, here.running) == (0, 1)


async def test_what_is_suspicious_is_taken_alone() -> None:
    """In its place: neither with what came before it on its queue, nor with what came behind."""
    inbox = Inbox()
    arrive(inbox, 0, "1", "2")
    arrive(inbox, 0, "bad 1", "bad 2", deaths=2)
    arrive(inbox, 0, "3", deaths=1)
    arrive(inbox, 0, "4")
    taken: list[list[str]] = []
    while sum(map(len, taken)) < 6:
        taken.append(names(await inbox.take(9)))
    assert taken == [["1", "2"], ["bad 1"], ["bad 2"], ["3", "4"]]


async def test_what_is_suspicious_has_its_turn() -> None:
    """However much comes on the other queues meanwhile."""
    inbox = Inbox()
    for number in range(3):
        arrive(inbox, number, "other")
    arrive(inbox, 3, "bad", deaths=2)
    for _ in range(4):
        taken = names(await inbox.take(9))
        for number in range(3):
            arrive(inbox, number, "other")
        if taken == ["bad"]:
            return
        assert "bad" not in taken
    pytest.fail("it waits for ever")


async def test_a_gate_closes_behind_what_has_begun() -> None:
    """At once where nothing has; and no later than it may."""
    gate = Gate()
    await gate.close(3600)
    gate = Gate()
    first, second = (Delivery(Raw(), 0, gate) for _ in range(2))
    gate.enter(first)
    gate.enter(second)
    closing = asyncio.ensure_future(gate.close(3600))
    for delivery, left in ((first, 1), (second, 0)):
        await asyncio.sleep(0)
        assert not closing.done()
        gate.leave(delivery)
        assert gate.closed
        assert gate.running == left
    await closing
    gate.enter(first)
    await gate.close(0)


# Living


class World:
    """A consumer without a broker: deliveries come from the test."""

    def __init__(self, handler: Handler, retry: RetryWhileUnavailable) -> None:
        self.acks: list[tuple[str, bool]] = []
        self.dead: list[DeadLetter] = []
        self.table_away = False
        self.gates = [Gate() for _ in range(PARTITIONS)]
        self.channels = [SimpleNamespace(is_closed=False) for _ in range(PARTITIONS)]
        self.handler, self.retry = handler, retry
        publisher: Any = SimpleNamespace(partitions=PARTITIONS)
        queue = topology.CONVERSATIONS
        parts: dict[str, Any] = {
            "keep_dead_letter": self._dead_letter,
            "publisher": publisher,
            "retry": retry,
            "prefetch": 9,
        }
        self.consumer = Consumer("amqp://nowhere/", queue, handler, **parts)

    async def _dead_letter(self, letter: DeadLetter) -> None:
        if self.table_away:
            raise DatabaseUnavailable("away")
        self.dead.append(letter)

    def comes(self, number: int, *texts: str, key: Any = None, **fields: Any) -> None:
        """Let messages come on a partition, all of one key that belongs there."""
        key = key or a_chatbot(number, PARTITIONS)
        for text in texts:
            given = {"body": a_message(key, text).wire(), "type": SendMessage.name} | fields
            raw = Raw(text, acks=self.acks, channel=self.channels[number], **given)
            self.consumer._receive(Delivery(raw, number, self.gates[number]))

    async def until(self, condition: Callable[[], Any]) -> None:
        async def look() -> Any:
            return condition()

        await eventually(look)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (handling, retrying):
        monkeypatch.setattr(module, "backoff", lambda _failures: 0.001)
    monkeypatch.setattr(Subscriptions, "start", lambda *_, **__: None)


@asynccontextmanager
async def running(work: Callable[[SendMessage], Awaitable[None]], *, side_by_side: bool) -> AsyncIterator[World]:
    world = World(Handler(work, side_by_side=side_by_side), RetryWhileUnavailable())
    world.consumer.start()
    yield world
    await world.consumer.stop(0)


class Work:
    """What a handler does: waits for each text that is held back, and fails for `bad` ones."""

    def __init__(self) -> None:
        self.back: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.waits: set[str] = set()
        self.away: set[str] = set()

    async def __call__(self, message: SendMessage) -> None:
        if message.message in self.waits:
            await self.back[message.message].wait()
        if message.message in self.away:
            raise DatabaseUnavailable("away")
        if message.message.startswith("bad"):
            raise LookupError(message.message)
        if message.message.startswith("never"):
            raise Undeliverable("no", code="unknown_session")

    def release(self, text: str) -> None:
        self.waits.discard(text)
        self.back[text].set()


BOTH_WAYS = pytest.mark.parametrize("side_by_side", [True, False], ids=["side by side", "in batches"])


async def test_a_batch_that_fails_is_split_until_the_culprit_is_alone() -> None:
    """It alone is tried three times and becomes a dead letter; all are acknowledged together."""
    async with running(Work(), side_by_side=False) as world:
        world.comes(0, "0", "1", "2", "bad", "4", "5", "6", "7")
        await world.until(lambda: world.acks)
        assert world.handler.batches == [8, 4, 2, 2, 1, 1, 1, 1, 4]
        assert [(letter.original.text("messageId"), letter.reason) for letter in world.dead] == [
            ("bad", "handler_failed")
        ]
        assert "LookupError: bad" in world.dead[0].detail
        assert world.acks == [("7", True)]


async def test_a_batch_is_acknowledged_once_it_is_done() -> None:
    """By the last of each channel: with everything before it."""
    work = Work()
    work.waits = {"last"}
    async with running(work, side_by_side=False) as world:
        world.comes(0, "1", "2", "last")
        world.comes(1, "3")
        await world.until(lambda: "last" in world.handler.begun)
        world.comes(0, "next")
        assert world.acks == []
        work.release("last")
        await world.until(lambda: world.handler.done[-1:] == ["next"])
        assert sorted(world.acks[:2]) == [("3", True), ("last", True)]
        await world.until(lambda: world.acks[2:] == [("next", True)])


async def test_keys_run_beside_each_other_and_each_in_order() -> None:
    """One message of a key at a time; keys at work are known.

    Each is acknowledged when it is done; alone, where one that came before it is not.
    """
    work, one, other = Work(), a_chatbot(0, PARTITIONS), a_chatbot(0, PARTITIONS)
    work.waits = {"one 1", "other 1"}
    async with running(work, side_by_side=True) as world:
        world.comes(0, "one 1", "one 2", key=one)
        world.comes(0, "other 1", key=other)
        await world.until(lambda: world.handler.begun == ["one 1", "other 1"])
        assert world.consumer.busy == {str(one), str(other)}
        work.release("other 1")
        await world.until(lambda: world.acks == [("other 1", False)])
        assert world.handler.begun == ["one 1", "other 1"]
        work.release("one 1")
        await world.until(lambda: world.acks[1:] == [("one 1", True), ("one 2", True)])
        await world.until(lambda: not world.consumer.busy)


@BOTH_WAYS
async def test_what_is_left_closes_the_gate(*, side_by_side: bool) -> None:
    """Nothing of its partition overtakes it, whatever its key; another partition goes on."""
    work = Work()
    work.away = {"left"}
    async with running(work, side_by_side=side_by_side) as world:
        key = a_chatbot(0, PARTITIONS)
        world.comes(0, "left", key=key)
        await world.until(lambda: world.retry.waiting)
        world.comes(0, "behind", key=key)
        world.retry.leave()
        await world.until(lambda: world.gates[0].closed)
        world.retry.resume()
        world.comes(0, "later")
        world.comes(1, "elsewhere")
        await world.until(lambda: world.acks == [("elsewhere", True)])
        await world.until(lambda: not any(gate.running for gate in world.gates))
        assert set(world.handler.begun) == {"left", "elsewhere"}
        assert not world.gates[1].closed


async def test_what_waits_for_its_key_is_void_once_its_channel_is_closed() -> None:
    """It is delivered again, elsewhere perhaps; the gate counts it no more."""
    work, key = Work(), a_chatbot(0, PARTITIONS)
    work.waits = {"first"}
    async with running(work, side_by_side=True) as world:
        world.comes(0, "first", "second", key=key)
        await world.until(lambda: world.handler.begun == ["first"])
        assert world.gates[0].running == 2
        world.channels[0].is_closed = True
        work.release("first")
        await world.until(lambda: not world.gates[0].running)
        assert world.handler.begun == ["first"]


@BOTH_WAYS
async def test_a_dead_letter_is_kept_before_it_is_acknowledged(*, side_by_side: bool) -> None:
    """While the table is away it is held; what was handled with it is not done again."""
    key = a_chatbot(0, PARTITIONS)
    async with running(Work(), side_by_side=side_by_side) as world:
        world.table_away = True
        world.comes(0, "never", "after", key=key)
        await world.until(lambda: world.retry.waiting)
        assert world.acks == []
        world.table_away = False
        await world.until(lambda: world.acks[-1:] == [("after", True)])
        assert [(letter.reason, letter.source) for letter in world.dead] == [
            ("unknown_session", topology.CONVERSATIONS.name)
        ]
        assert world.handler.done == ["after"]


@BOTH_WAYS
async def test_what_cannot_be_read_is_a_dead_letter(*, side_by_side: bool) -> None:
    """A body that is too large is kept cut; a probe asks nothing, and elsewhere it is somebody's message."""
    async with running(Work(), side_by_side=side_by_side) as world:
        world.comes(0, "probe", type=topology.PROBE, exchange=JOBS)
        world.comes(0, "no probe", type=topology.PROBE)
        world.comes(0, "large", body=b"{" * (MAX_BODY_BYTES + 1))
        world.comes(0, "no json", body=b"no json")
        world.comes(0, "text")
        await world.until(lambda: len(world.dead) == 3 and world.handler.done)
        assert [letter.reason for letter in world.dead] == ["unknown_type", "too_large", "invalid_json"]
        assert [len(letter.original.body) for letter in world.dead[1:]] == [MAX_BODY_BYTES, len(b"no json")]
        assert world.handler.done == ["text"]
        await world.until(lambda: len(world.acks) == (2 if side_by_side else 1))

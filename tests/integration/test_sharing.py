"""Processes of a kind share the partitions: evenly, whoever starts or ends, with every message once and in order."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from service.consumers.sharing import Sharing
from service.domain.dead_letters import DeadLetter
from service.domain.sharing import Peer
from service.ending import Ending
from service.errors import DatabaseUnavailable
from service.messaging.consuming import Consumer
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable
from service.messaging.subscriptions import Subscriptions
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS, PROBE, SENDS, PartitionedQueue
from tests.amqp import SECONDS, Amqp, Handler, a_chatbot, publishing, send, until
from tests.proxy import Proxy
from tests.system import System, eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import COMMANDS
from whatsapp_qr_contracts.partitions import partition_of

QUEUE = CONVERSATIONS.name
ALL = [0, 1, 2, 3, 4]
"""Four partitions, and the entry."""
KINDS = {"conversation-consumer": "whatsapp-qr.conversations", "outbound-consumer": "whatsapp-qr-send"}


class Rows:
    """Heartbeat rows that live as long as their processes, or are away."""

    def __init__(self) -> None:
        self.of: dict[str, frozenset[int]] = {}
        self.away = False
        self.beats = 0

    def process(self, process_id: str) -> "Row":
        return Row(self, process_id)


class Row:
    """One process's view of the rows."""

    def __init__(self, rows: Rows, process_id: str) -> None:
        self.rows = rows
        self.id = process_id

    async def beat(self, active: list[int]) -> list[Peer]:
        self.rows.beats += 1
        if self.rows.away:
            raise DatabaseUnavailable("away")
        self.rows.of[self.id] = frozenset(active)
        return [Peer(name, held) for name, held in self.rows.of.items() if name != self.id]

    async def remove(self) -> None:
        if self.rows.away:
            raise DatabaseUnavailable("away")
        self.rows.of.pop(self.id, None)

    stand_by = remove


@asynccontextmanager
async def sharer(  # a test's builder
    url: str,
    rows: Rows,
    name: str,
    publisher: Publisher,
    handler: Handler | None = None,
    *,
    queue: PartitionedQueue = CONVERSATIONS,
    dead: list[DeadLetter] | None = None,
    waits: bool = True,
) -> AsyncIterator[Consumer]:
    """Consume and share a queue in one process; without a list for them there may be no dead letters.

    With `waits` it is ready from the beginning.
    """

    async def keep_dead_letter(letter: DeadLetter) -> None:
        assert dead is not None, letter
        dead.append(letter)

    handler = handler or Handler()
    consumer = Consumer(
        url,
        queue,
        handler,
        keep_dead_letter=keep_dead_letter,
        publisher=publisher,
        retry=RetryWhileUnavailable(),
        prefetch=64,
    )
    sharing = Sharing(consumer.subscriptions, rows.process(name), Ending(), process_id=name, queue=QUEUE, period=0.3)  # type: ignore[arg-type]
    consumer.start(sharing.first_share, sharing.check)
    sharing.start()
    try:
        await until(lambda: consumer.ready or not waits)
        yield consumer
    finally:
        await asyncio.gather(sharing.stop(), consumer.stop(SECONDS))


def owned(*consumers: Consumer) -> list[list[int]]:
    """Return what each is active on."""
    return [sorted(consumer.subscriptions.active) for consumer in consumers]


def even(*consumers: Consumer) -> Callable[[], bool]:
    """Tell whether every partition has one who knows that he is active, and nobody two more than another."""

    def look() -> bool:
        shares = owned(*consumers)
        counts = [len(share) for share in shares]
        return sorted(chain.from_iterable(shares)) == ALL and max(counts) - min(counts) <= 1

    return look


async def test_idle_processes_know_what_they_are_active_on(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any message each learns what the broker gave it; the probes leave nothing behind and cease."""
    rows, probes = Rows(), [0]
    probe = Subscriptions.probe

    async def counting(subscriptions: Subscriptions, number: int) -> None:
        probes[0] += 1
        await probe(subscriptions, number)

    monkeypatch.setattr(Subscriptions, "probe", counting)

    async def no_more_probes(*consumers: Consumer) -> None:
        """Wait until all is shared, the rows say so, and six beats have brought no probe."""

        def told() -> bool:
            return set(rows.of.values()) == {frozenset(one.subscriptions.active) for one in consumers}

        balanced, seen = even(*consumers), (-1, 0)
        while seen[0] != probes[0] or rows.beats - seen[1] <= 6:
            await until(lambda: balanced() and told())
            seen = seen if seen[0] == probes[0] else (probes[0], rows.beats)
            await asyncio.sleep(0.01)

    async with publishing(clean_broker, 4) as publisher, Amqp(clean_broker) as amqp:
        heard = await amqp.bound(COMMANDS, "#")
        async with sharer(clean_broker, rows, "a", publisher) as first:
            async with sharer(clean_broker, rows, "b", publisher) as second:
                async with asyncio.timeout(SECONDS):
                    await no_more_probes(first, second)
                assert first.ready
                assert second.ready
            async with asyncio.timeout(SECONDS):
                await no_more_probes(first)
        assert rows.of == {}
        for name in (*map(CONVERSATIONS.queue_name, range(4)), f"{QUEUE}.entry", DEAD_LETTERS, heard):
            assert await amqp.waiting(name) == 0


async def test_stand_bys_are_ready_and_own_nothing(clean_broker: str) -> None:
    """With more processes than partitions some are active on none; they are ready all the same, and nobody moves."""
    rows = Rows()
    async with (
        publishing(clean_broker) as publisher,
        sharer(clean_broker, rows, "a", publisher, queue=SENDS) as first,
        sharer(clean_broker, rows, "b", publisher, queue=SENDS) as second,
    ):
        await until(lambda: owned(first, second) == [[0], []])
        beats = rows.beats
        await until(lambda: rows.beats > beats + 6)
        assert owned(first, second) == [[0], []]
        assert second.ready


async def test_order_while_processes_come_and_go(clean_broker: str) -> None:
    """While messages flow a second and a third process join and leave: all is done once, in order per key."""
    rows = Rows()
    done: list[str] = []
    keys = [a_chatbot(number % 4, 4) for number in range(8)]
    texts = {key: [f"{number} {key}" for number in range(120)] for key in keys}

    async def work(message: SendMessage) -> None:
        await asyncio.sleep(0.002)
        done.append(message.message)

    async def flow(publisher: Publisher, key: UUID) -> None:
        for text in texts[key]:
            await send(publisher, key, text)

    async with (
        publishing(clean_broker, 4) as publisher,
        Amqp(clean_broker) as amqp,
        sharer(clean_broker, rows, "a", publisher, Handler(work)) as first,
    ):
        await until(lambda: len(first.subscriptions.active) == 5)
        flowing = asyncio.gather(*(flow(publisher, key) for key in keys))
        async with sharer(clean_broker, rows, "b", publisher, Handler(work)) as second:
            await until(even(first, second))
            async with sharer(clean_broker, rows, "c", publisher, Handler(work)) as third:
                await until(even(first, second, third))
            await until(even(first, second))
            await flowing
            await until(lambda: len(done) >= 8 * 120)
        await until(even(first))
        for number in range(4):
            await amqp.until_waiting(CONVERSATIONS.queue_name(number), 0)
    for key in keys:
        assert [text for text in done if text.endswith(str(key))] == texts[key]


async def test_trouble_with_the_rows_stops_no_consuming(clean_broker: str) -> None:
    """While the rows are away everyone keeps what he has and consumes; who starts then waits for them."""
    rows = Rows()
    first_handler, second_handler = Handler(), Handler()
    async with (
        publishing(clean_broker, 4) as publisher,
        sharer(clean_broker, rows, "a", publisher, first_handler) as first,
    ):
        await until(lambda: len(first.subscriptions.active) == 5)
        rows.away = True
        async with sharer(clean_broker, rows, "b", publisher, second_handler, waits=False) as second:
            beats = rows.beats
            await until(lambda: rows.beats > beats + 4)
            await asyncio.gather(*(send(publisher, a_chatbot(number, 4), str(number)) for number in range(4)))
            await until(lambda: sorted(first_handler.done) == ["0", "1", "2", "3"])
            assert owned(first, second) == [ALL, []]
            assert not second.subscriptions.consuming
            rows.away = False
            await until(even(first, second))


async def test_who_is_cut_off_knows_that_he_is_not_active(clean_broker: str) -> None:
    """A process that lost its connections owns nothing, and after its return only what the broker gives it."""
    rows = Rows()
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker, 4) as publisher,
        sharer(proxy.url, rows, "a", publisher) as first,
        sharer(clean_broker, rows, "b", publisher) as second,
    ):
        await until(even(first, second))
        proxy.refuse()
        await until(lambda: owned(first, second) == [[], ALL])
        proxy.heal()
        await until(even(first, second))


async def test_false_belief_is_found_out(clean_broker: str) -> None:
    """A process that wrongly believes to be active on a partition stops believing when a probe does not reach it."""
    rows = Rows()
    async with (
        publishing(clean_broker, 4) as publisher,
        sharer(clean_broker, rows, "a", publisher) as first,
        sharer(clean_broker, rows, "b", publisher) as second,
    ):
        await until(even(first, second))
        number = first.subscriptions.active[0]
        wrong, right = second.subscriptions.partitions[number], first.subscriptions.partitions[number]
        wrong._delivered_on = second.subscriptions.partitions[second.subscriptions.active[0]]._delivered_on
        wrong.delivered_at = 0
        assert wrong.active
        await until(lambda: not wrong.active)
        assert right.active
        await until(even(first, second))


async def test_a_foreign_probe_is_a_dead_letter(clean_broker: str) -> None:
    """What only calls itself a probe, on a public exchange, does not vanish."""
    dead = list[DeadLetter]()
    async with (
        publishing(clean_broker, 4) as publisher,
        Amqp(clean_broker) as amqp,
        sharer(clean_broker, Rows(), "a", publisher, dead=dead),
    ):
        await amqp.publish(b"{}", type=PROBE, message_id="mine")
        await until(lambda: dead)
    assert [(letter.original.text("messageId"), letter.reason) for letter in dead] == [("mine", "unknown_type")]


# Real processes

FAST = {"SEND_RATE": "1000", "SEND_BURST": "1000", "GATEWAY_TIMEOUT": "4", "HEARTBEAT_PERIOD": "1.5"}


class Traffic:
    """Messages both ways through every partition until it is told to stop, and what must have become of them."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.links: list[tuple[UUID, str]] = []
        self.texts: list[str] = []
        self._flowing: asyncio.Task[None] | None = None
        self._stop = False

    async def start(self) -> None:
        await self.system.jobs()
        while {partition_of(str(chatbot_id), 4) for chatbot_id, _ in self.links} != set(range(4)):
            chatbot_id = uuid4()
            if partition_of(str(chatbot_id), 4) == len(self.links):
                self.links.append(await self.system.connect(chatbot_id))
        self._flowing = asyncio.create_task(self._flow())

    async def _flow(self) -> None:
        while not self._stop:
            await self.batch()
            await asyncio.sleep(0.5)  # a steady flow, not a flood

    async def batch(self) -> str:
        """Send one text each way through each partition."""
        text = str(len(self.texts))
        self.texts.append(text)
        await asyncio.gather(*(self._one(chatbot_id, session_id, text) for chatbot_id, session_id in self.links))
        return text

    async def _one(self, chatbot_id: UUID, session_id: str, text: str) -> None:
        report = {"sessionId": session_id, "from": "5491144445555", "timestamp": int(time.time()), "message": text}
        answer = await self.system.post("/incoming", **report, messageId=uuid4().hex)
        assert answer.status_code == 200
        await send_by_amqp(
            self.system, SendMessage(chatbot_id=chatbot_id, to="5491144445555", message=text), uuid4().hex
        )

    async def end(self) -> None:
        """Stop, and check that each message arrived once, in order per session."""
        self._stop = True
        assert self._flowing is not None
        await self._flowing
        await self.all_arrived()

    async def all_arrived(self) -> None:
        for _, session_id in self.links:
            sent = await eventually(
                lambda session_id=session_id: self.system.sent(session_id), lambda found: len(found) >= len(self.texts)
            )
            assert [message["message"] for message in sent] == self.texts
            jobs = await eventually(
                lambda session_id=session_id: self._jobs(session_id), lambda found: len(found) >= len(self.texts)
            )
            assert list(jobs.values()) == self.texts

    async def _jobs(self, session_id: str) -> dict[str | None, str]:
        """Return the contents of a session's jobs by id, in the order in which each came first."""
        heard = [(job.message_id, json.loads(job.body)) for job in (await self.system.jobs()).messages]
        return {job_id: body["content"] for job_id, body in heard if body["chatbotId"] in session_id}


async def shares(system: System) -> dict[str, list[int]]:
    """Return how many partitions each live process of each kind is active on."""
    return {
        kind: sorted(
            [
                int(await process.metric(system.http, "whatsapp_qr_partitions_owned", queue=queue))
                for process in system.named(kind)
                if process.alive
            ]
        )
        for kind, queue in KINDS.items()
    }


async def settled(system: System, processes: int) -> float:
    """Wait until so many live processes of each kind have its partitions, evenly; return how long it took.

    Who has the entry too, which is not counted, may have a partition less.
    """
    started = time.monotonic()
    beside = {"conversation-consumer": 1, "outbound-consumer": 0}

    def even(found: dict[str, list[int]]) -> bool:
        return all(
            len(share) == processes
            and sum(share) == 4
            and share[-1] - share[0] <= bool((4 + beside[kind]) % processes) + beside[kind]
            for kind, share in found.items()
        )

    await eventually(lambda: shares(system), even)
    return time.monotonic() - started


@pytest.mark.one_database("postgres")
async def test_shares_settle_after_each_start_and_end(clean_broker: str, database_url: str, tmp_path: Path) -> None:
    """Processes start, stop and are killed while messages flow: shares are even soon, each message arrives once."""
    async with running(clean_broker, database_url, tmp_path, **FAST) as system:
        traffic = Traffic(system)
        await traffic.start()
        took = {}
        second = await system.start(*KINDS)
        took["second start"] = await settled(system, 2)
        third = await system.start(*KINDS)
        took["third start"] = await settled(system, 3)
        await asyncio.gather(*(process.stop() for process in second))
        took["SIGTERM"] = await settled(system, 2)
        await asyncio.gather(*(process.kill() for process in third))
        took["kill"] = await settled(system, 1)
        await traffic.end()
        print(took, len(traffic.texts))  # noqa: T201  # for the one who measures: pytest -s


async def test_idle_shares_settle_after_a_kill(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Without any message the others learn that they have taken over from a dead process."""
    async with running(clean_broker, sqlite_database, tmp_path, extra=tuple(KINDS), **FAST) as system:
        await settled(system, 2)
        await asyncio.gather(*(system.named(kind)[0].kill() for kind in KINDS))
        await settled(system, 1)


@pytest.mark.one_database("postgres")
async def test_a_hanging_process_is_replaced(clean_broker: str, postgres_database: str, tmp_path: Path) -> None:
    """Others take over within 30 s when processes hang in the middle of their work; when they go on they do no harm.

    With SQLite whoever hangs with the write lock of the file keeps it: nobody writes until it goes on or is ended.
    """
    async with running(clean_broker, postgres_database, tmp_path, extra=tuple(KINDS), **FAST) as system:
        traffic = Traffic(system)
        await traffic.start()
        await settled(system, 2)
        hanging = [system.named(kind)[0] for kind in KINDS]
        for process in hanging:
            process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            await traffic.end()
            took = time.monotonic() - stopped
            assert took < 30
        finally:
            for process in hanging:
                process.send_signal(signal.SIGCONT)
        for process in hanging:
            await eventually(lambda process=process: process.ready(system.http))
        await traffic.batch()
        await settled(system, 2)
        await traffic.batch()
        await traffic.all_arrived()
        print(f"taken over after {took:.1f} s")  # noqa: T201  # for the one who measures: pytest -s

"""Order per key on a real broker: within a process, over hand-overs, over partitions, and when a process stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from faststream.rabbit import RabbitMessage

from service.errors import DatabaseUnavailable
from service.messaging.envelope import Envelope
from service.messaging.partitions import Partition, Process
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from tests.amqp import SECONDS, Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from tests.proxy import Proxy
from whatsapp_qr_contracts.commands import SendMessage

QUEUE = CONVERSATIONS.name


@asynccontextmanager
async def subscribed(url: str, process: Process, *, prefetch: int = 64) -> AsyncIterator[Partition]:
    """Subscribe to the first partition until the test is over."""
    partition = Partition(url, CONVERSATIONS.queue(0), process, prefetch=prefetch)
    await partition.start()
    try:
        yield partition
    finally:
        await partition.give_up(SECONDS)


async def test_order_over_two_hand_overs(clean_broker: str) -> None:
    """With prefetch 64 two processes give the partition to each other twice: 0 inversions, 0 missing, 0 repeated."""
    keys = [a_chatbot() for _ in range(5)]
    done: list[tuple[str, str]] = []

    async def process(name: str, delivery: RabbitMessage) -> bool:
        await asyncio.sleep(0.002)
        done.append((name, delivery.raw_message.message_id or ""))
        return True

    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await asyncio.gather(*(send(publisher, key, *(f"{n} {key}" for n in range(100))) for key in keys))
        async with (
            subscribed(clean_broker, partial(process, "A")) as first,
            subscribed(clean_broker, partial(process, "B")) as second,
        ):
            await until(lambda: len(done) >= 100)
            await first.give_up(SECONDS)
            await first.start()
            await until(lambda: sum(name == "B" for name, _ in done) >= 100)
            await second.give_up(SECONDS)
            await second.start()
            await until(lambda: len(done) >= 500)
        assert await amqp.waiting(QUEUE) == 0
    assert {name for name, _ in done[:100]} == {"A"}
    assert {name for name, _ in done} == {"A", "B"}
    for key in keys:
        mine = [text for _, text in done if text.endswith(str(key))]
        assert mine == [f"{n} {key}" for n in range(100)]


async def test_keys_run_side_by_side(clean_broker: str) -> None:
    """One message of a key at a time, in order; a key that waits delays no other."""
    slow, quick = a_chatbot(), a_chatbot()
    release = asyncio.Event()

    async def work(message: SendMessage) -> None:
        if message.chatbot_id == slow:
            await release.wait()

    handler = Handler(work)
    async with publishing(clean_broker) as publisher, consuming(clean_broker, handler.routes, publisher):
        await send(publisher, slow, "slow 1", "slow 2")
        await send(publisher, quick, "quick 1", "quick 2")
        await until(lambda: handler.done == ["quick 1", "quick 2"])
        assert "slow 2" not in handler.begun
        release.set()
        await until(lambda: handler.done[2:] == ["slow 1", "slow 2"])


async def test_unordered_key_runs_side_by_side(clean_broker: str) -> None:
    """With ordered=False messages of one key run at once: the sends' lane is kept elsewhere, in the rows."""
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    handler = Handler(work)
    async with publishing(clean_broker) as publisher, consuming(clean_broker, handler.routes, publisher, ordered=False):
        await send(publisher, a_chatbot(), "1", "2", "3")
        await until(lambda: sorted(handler.begun) == ["1", "2", "3"])
        release.set()
        await until(lambda: len(handler.done) == 3)


async def test_body_decides_the_lane(clean_broker: str) -> None:
    """Messages of one chatbot keep their order whatever their partition-key header says."""
    chatbot_id = a_chatbot()

    async def work(message: SendMessage) -> None:
        if message.message == "0":
            await asyncio.sleep(0.05)

    handler = Handler(work)
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        for number in range(5):
            body = a_message(chatbot_id, str(number)).wire()
            await amqp.publish(body, type="message.send", message_id="m", headers={"partition-key": str(number)})
        async with consuming(clean_broker, handler.routes, publisher):
            await until(lambda: len(handler.done) == 5)
    assert handler.done == ["0", "1", "2", "3", "4"]


async def test_message_is_passed_on_to_its_partition(clean_broker: str) -> None:
    """Published without a partition or to a wrong one, messages reach the right one once, in order, with their id."""
    chatbot_id = a_chatbot(1, 2)
    ids = [f"id {number}" for number in range(20)]
    handler = Handler()
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler.routes, publisher, partitions=2),
    ):
        for number, message_id in enumerate(ids):
            key = "message.send" if number % 2 else "message.send.0"
            body = a_message(chatbot_id, str(number)).wire()
            await amqp.publish(body, key, type="message.send", message_id=message_id, headers={"traceparent": "t"})
        await until(lambda: len(handler.done) == 20)
        assert handler.done == [str(number) for number in range(20)]
        assert [envelope.message_id for envelope in handler.envelopes] == ids
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_passed_on_where_it_belongs(clean_broker: str) -> None:
    """What is passed on lies in its partition's queue with its id, correlation id, type, headers and bytes."""
    chatbot_id = a_chatbot(1, 2)
    body = b" " + a_message(chatbot_id).wire()
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, Handler().routes, publisher, partitions=2) as consumer,
    ):
        await consumer.subscriptions.partitions[1].give_up(1)
        await amqp.publish(body, "message.send", message_id="m", correlation_id="c", headers={"traceparent": "t"})
        (passed,) = await amqp.take(f"{QUEUE}.1")
    assert (passed.message_id, passed.correlation_id, passed.type) == ("m", "c", "message.send")
    assert (passed.body, passed.headers, passed.delivery_mode) == (body, {"traceparent": "t"}, 2)


async def test_passing_on_gives_no_id(clean_broker: str) -> None:
    """A command without an id is a dead letter wherever it was published: passing it on does not make up an id."""

    async def handle(_message: SendMessage, envelope: Envelope) -> None:
        envelope.id_or_dead_letter()

    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, {SendMessage: handle}, publisher, partitions=2),
    ):
        body = a_message(a_chatbot(1, 2)).wire()
        await amqp.publish(body, "message.send", type="message.send")
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert dead.headers["reason"] == "missing_id"


async def test_stop_finishes_what_has_begun(clean_broker: str) -> None:
    """On stop what has begun is finished and acknowledged; what was only prefetched goes on elsewhere, in order."""
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    stopped, next_one = Handler(work), Handler()
    chatbot_id = a_chatbot()
    texts = [str(number) for number in range(20)]
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await send(publisher, chatbot_id, *texts)
        async with consuming(clean_broker, stopped.routes, publisher) as consumer:
            await until(lambda: stopped.begun == ["0"])
            await amqp.until_waiting(QUEUE, 0)
            async with consuming(clean_broker, next_one.routes, publisher):
                stopping = asyncio.create_task(consumer.stop(SECONDS))
                await until(lambda: not consumer.ready)
                release.set()
                await stopping
                assert stopped.begun == stopped.done == ["0"]
                await until(lambda: next_one.done == texts[1:])
        assert await amqp.waiting(QUEUE) == 0
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_stop_leaves_what_is_held(clean_broker: str) -> None:
    """A message that is held when the process stops is left unacknowledged; another consumer gets it, in order."""

    async def work(_message: SendMessage) -> None:
        raise DatabaseUnavailable("away")

    stopped, next_one = Handler(work), Handler()
    chatbot_id = a_chatbot()
    async with publishing(clean_broker) as publisher:
        await send(publisher, chatbot_id, "1", "2", "3")
        async with consuming(clean_broker, stopped.routes, publisher) as consumer:
            await until(lambda: not consumer.ready)
            await asyncio.wait_for(consumer.stop(600), SECONDS)
        async with consuming(clean_broker, next_one.routes, publisher):
            await until(lambda: next_one.done == ["1", "2", "3"])
    assert set(stopped.begun) == {"1"}
    assert next_one.envelopes[0].redelivered


async def test_what_is_left_is_not_overtaken(clean_broker: str) -> None:
    """Once a message was left unacknowledged, no later one begins, though nobody has closed the gate yet."""
    begun: list[str] = []

    async def process(delivery: RabbitMessage) -> bool:
        begun.append(delivery.raw_message.message_id or "")
        return False

    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await send(publisher, a_chatbot(), "1", "2")
        async with subscribed(clean_broker, process):
            await until(lambda: begun)
            await amqp.waiting(QUEUE)
            await send(publisher, a_chatbot(), "other key")
            await amqp.until_waiting(QUEUE, 0)
        assert begun == ["1"]
        await amqp.until_waiting(QUEUE, 3)


async def test_stop_waits_no_longer_than_it_may(clean_broker: str) -> None:
    """A handler that outlives the grace is cancelled, and its message goes to the next consumer."""

    async def work(_message: SendMessage) -> None:
        await asyncio.Event().wait()

    stuck, next_one = Handler(work), Handler()
    async with publishing(clean_broker) as publisher:
        await send(publisher, a_chatbot(), "1")
        async with consuming(clean_broker, stuck.routes, publisher) as consumer:
            await until(lambda: stuck.begun == ["1"])
            await asyncio.wait_for(consumer.stop(0.1), SECONDS)
            assert stuck.cancelled == ["1"]
        async with consuming(clean_broker, next_one.routes, publisher):
            await until(lambda: next_one.done == ["1"])


async def test_give_up_on_a_dead_link_leaves_nothing(clean_broker: str) -> None:
    """Giving up a partition over a dead link ends, and nobody consumes behind our back when the link heals."""
    handler = Handler()
    async with Proxy(clean_broker) as proxy, publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        async with consuming(f"{proxy.url}?heartbeat=1", handler.routes, publisher) as consumer:
            await send(publisher, a_chatbot(), "1")
            await until(lambda: handler.done == ["1"])
            accepted = proxy.accepted
            proxy.lose()
            await asyncio.wait_for(consumer.stop(1), SECONDS)
            proxy.heal()
            await until(lambda: proxy.open == 0)
            assert proxy.accepted == accepted  # none came back
        await send(publisher, a_chatbot(), "2")
        assert await amqp.waiting(QUEUE) == 1


async def test_next_begins_after_the_cancelled_has_ended(clean_broker: str) -> None:
    """After a lost connection a message begins again only when its cancelled run, and its clean-up, is over."""
    chatbot_id = a_chatbot()
    wait, cleaned_up = asyncio.Event(), asyncio.Event()
    running = 0
    most = 0

    async def work(_message: SendMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await wait.wait()
        except asyncio.CancelledError:
            await cleaned_up.wait()
            raise
        finally:
            running -= 1

    handler = Handler(work)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(proxy.url, handler.routes, publisher),
    ):
        await send(publisher, chatbot_id, "1", "2", "3")
        await until(lambda: handler.begun == ["1"])
        await amqp.until_waiting(QUEUE, 0)
        connections = proxy.accepted
        proxy.cut()
        await until(lambda: proxy.accepted > connections)
        await amqp.until_waiting(QUEUE, 0)
        wait.set()
        await send(publisher, a_chatbot(), "other")
        await until(lambda: handler.done == ["other"])
        assert handler.begun == ["1", "other"]
        cleaned_up.set()
        await until(lambda: handler.done == ["other", "1", "2", "3"])
    assert most == 2  # "1" of the one chatbot beside "other" of the other

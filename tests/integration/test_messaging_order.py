"""Order per key on a real broker: within a process, over hand-overs, over partitions, and when a process stops."""

import asyncio
from functools import partial
from typing import Any

import pytest

from service.errors import DatabaseUnavailable
from service.messaging import topology
from service.messaging.partitions import Partition
from service.messaging.rerouting import DECIDED_BY
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from tests.amqp import SECONDS, Amqp, Handler, a_chatbot, a_message, consuming, publishing, send, until
from tests.proxy import Proxy
from whatsapp_qr_contracts.commands import SendMessage

QUEUE = CONVERSATIONS.name
BOTH_WAYS = pytest.mark.parametrize("side_by_side", [True, False], ids=["side by side", "in batches"])


def once(texts: list[str]) -> list[str]:
    """Return what was done in the order in which it was done first: doing it again has no effect."""
    return list(dict.fromkeys(texts))


@BOTH_WAYS
async def test_order_over_two_hand_overs(clean_broker: str, *, side_by_side: bool) -> None:
    """With prefetch 64 two processes give the partition to each other twice: 0 inversions, 0 missing.

    A busy broker may lose the last acknowledgements together with the channel: what was done is done once more then.
    """
    keys = [a_chatbot() for _ in range(5)]
    done: list[tuple[str, str]] = []
    both_are_there = asyncio.Event()

    async def work(name: str, message: SendMessage) -> None:
        await both_are_there.wait()
        await asyncio.sleep(0.002)
        done.append((name, message.message))

    def a_process(name: str) -> Handler:
        return Handler(partial(work, name), side_by_side=side_by_side)

    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await asyncio.gather(*(send(publisher, key, *(f"{n} {key}" for n in range(100))) for key in keys))
        async with (
            consuming(clean_broker, a_process("A"), publisher) as one,
            consuming(clean_broker, a_process("B"), publisher, stands_by=True) as other,
        ):
            first, second = one.subscriptions.partitions[0], other.subscriptions.partitions[0]
            both_are_there.set()
            await until(lambda: len(done) >= 100)
            await first.release(SECONDS)
            await first.start()
            await until(lambda: sum(name == "B" for name, _ in done) >= 100)
            await second.release(SECONDS)
            await second.start()
            await until(lambda: len({text for _, text in done}) == 500)
            await amqp.until_waiting(QUEUE, 0)
        assert await amqp.waiting(QUEUE) == 0
    assert {name for name, _ in done[:100]} == {"A"}
    assert {name for name, _ in done} == {"A", "B"}
    assert len({name for name, _ in done[-1:]} | {"A"}) == 1  # it has come back
    for key in keys:
        mine = once([text for _, text in done if text.endswith(str(key))])
        assert mine == [f"{n} {key}" for n in range(100)]


@pytest.mark.parametrize("partitions", [1, 2])
async def test_keys_run_side_by_side(clean_broker: str, partitions: int) -> None:
    """One message of a key at a time, in order; a key that waits delays no other; what is behind it is not redone.

    What has ended is acknowledged by itself, and what came before it, and has not, is not.
    """
    slow, quick = a_chatbot(0, partitions), a_chatbot(partitions - 1, partitions)
    release = asyncio.Event()

    async def work(message: SendMessage) -> None:
        if message.chatbot_id == slow:
            await release.wait()

    handler = Handler(work)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker, partitions) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(proxy.url, handler, publisher) as consumer,
    ):
        await send(publisher, slow, "slow 1", "slow 2")
        await send(publisher, quick, "quick 1", "quick 2")
        await until(lambda: handler.done == ["quick 1", "quick 2"])
        assert "slow 2" not in handler.begun
        await until(lambda: sum(one._gate.running for one in consumer.subscriptions.partitions) == 2)
        channel = consumer.subscriptions.partitions[0]._delivered_on
        await channel.basic_qos(prefetch_count=64)  # answered: the acknowledgements have come to the broker
        proxy.cut()
        await until(lambda: consumer.subscriptions.partitions[0]._delivered_on is not channel)
        await amqp.until_waiting(QUEUE, 0)
        release.set()
        await until(lambda: once(handler.done[2:]) == ["slow 1", "slow 2"])
        await until(lambda: not any(one._gate.running for one in consumer.subscriptions.partitions))
    assert handler.done.count("quick 1") == handler.done.count("quick 2") == 1
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(QUEUE) == 0


async def test_a_batch_is_acknowledged_as_a_whole(clean_broker: str) -> None:
    """One acknowledgement for each partition, once all of the batch is done: what came later is not covered by it."""
    partitions, go_on = 2, asyncio.Semaphore(0)

    async def work(_message: SendMessage) -> None:
        await go_on.acquire()

    handler = Handler(work, side_by_side=False)
    keys = [a_chatbot(number, partitions) for number in range(partitions)]
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker, partitions) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(proxy.url, handler, publisher) as consumer,
    ):

        def waiting() -> int:
            return sum(map(len, consumer._inbox._waiting.values()))

        await send(publisher, keys[0], "first")
        await until(lambda: handler.begun)
        for key in keys:
            await send(publisher, key, *(f"{key} {number}" for number in range(5)))
        for number in range(partitions):
            await amqp.until_waiting(CONVERSATIONS.queue_name(number), 0)
        await until(lambda: waiting() == 5 * partitions)
        go_on.release()
        await until(lambda: len(handler.batches) == 2)
        for key in keys:
            await send(publisher, key, f"{key} later")
        await until(lambda: waiting() == partitions)
        for _ in range(5 * partitions):
            go_on.release()
        await until(lambda: len(handler.batches) == 3)
        assert handler.batches == [1, 5 * partitions, partitions]
        proxy.refuse()
        for number, key in enumerate(keys):
            [left] = await amqp.take(CONVERSATIONS.queue_name(number))
            assert left.message_id == f"{key} later"
            assert left.redelivered
        for _ in range(partitions):
            go_on.release()
    assert handler.done[0] == "first"
    assert sorted(handler.done[1:11]) == sorted(f"{key} {number}" for key in keys for number in range(5))


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
        async with consuming(clean_broker, handler, publisher):
            await until(lambda: len(handler.done) == 5)
    assert handler.done == ["0", "1", "2", "3", "4"]


@BOTH_WAYS
async def test_messages_are_rerouted_to_their_partitions(clean_broker: str, *, side_by_side: bool) -> None:
    """Without a partition or to a wrong one, each reaches its own once, with its id, in order within each way."""
    keys = [a_chatbot(1, 3), a_chatbot(2, 3), a_chatbot(2, 3)]
    ways = {"bare": "message.send", "wrong": "message.send.0"}
    handler = Handler(side_by_side=side_by_side)
    async with publishing(clean_broker, 3) as publisher, Amqp(clean_broker) as amqp:
        for number in range(20):
            for key in keys:
                for way, routing_key in ways.items():
                    text = f"{number} {key} {way}"
                    body = a_message(key, text).wire()
                    await amqp.publish(body, routing_key, type="message.send", message_id=text)
        async with consuming(clean_broker, handler, publisher):
            await until(lambda: len(handler.done) == 120)
        assert await amqp.waiting(DEAD_LETTERS) == 0
    assert sorted(envelope.message_id for envelope in handler.envelopes) == sorted(handler.done)
    for key in keys:
        for way in ways:
            assert [text for text in handler.done if text.endswith(f"{key} {way}")] == [
                f"{number} {key} {way}" for number in range(20)
            ]


CARRIED = {"traceparent": "t", "tracestate": "s", "partition-key": "k", "schema-version": 1}


async def test_rerouted_where_it_belongs(clean_broker: str) -> None:
    """It lies in its partition's queue with its id, correlation id, type, bytes and the contract's headers, no other.

    It does not pass through any partition's consumer: there is none. And no id is made up for one that has none.
    """
    body = b" " + a_message(a_chatbot(1, 2)).wire()
    foreign: dict[str, Any] = {"CC": ["message.send.0"], "x-delivery-count": 7, "theirs": 1}
    ids = {"message_id": "m", "correlation_id": "c"}
    async with (
        publishing(clean_broker, 2) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, Handler(), publisher) as consumer,
    ):
        for partition in consumer.subscriptions.partitions[:2]:
            await partition.release(1)
        await amqp.publish(body, "message.send", headers=CARRIED | foreign, **ids)
        (rerouted,) = await amqp.take(CONVERSATIONS.queue_name(1))
        await amqp.take(CONVERSATIONS.queue_name(0))  # the broker's own copy
        await amqp.publish(body, "message.send", headers={"tracestate": "x" * 130_000})
        (without,) = await amqp.take(CONVERSATIONS.queue_name(1))
    assert (rerouted.message_id, rerouted.correlation_id, rerouted.type) == ("m", "c", "message.send")
    assert (rerouted.body, rerouted.headers, rerouted.delivery_mode) == (body, CARRIED | {DECIDED_BY: 2}, 2)
    assert (without.message_id or "").strip() == ""


async def test_the_entry_delays_no_partition(clean_broker: str) -> None:
    """What waits at the entry, or is stuck there, delays nobody who names the partition, and the other way round."""
    stuck = asyncio.Event()

    async def work(message: SendMessage) -> None:
        if message.message == "stuck":
            await stuck.wait()

    handler = Handler(work, side_by_side=False)
    chatbot_id = a_chatbot(1, 2)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(proxy.url, 2) as publisher,
        publishing(clean_broker, 2) as sender,
        Amqp(clean_broker) as amqp,
        consuming(clean_broker, handler, publisher) as consumer,
    ):
        proxy.refuse()
        await amqp.publish(a_message(chatbot_id, "bare").wire(), "message.send", type="message.send", message_id="m")
        await until(lambda: not consumer.ready)
        await send(sender, chatbot_id, "named")
        await until(lambda: handler.done == ["named"])
        await send(sender, a_chatbot(0, 2), "stuck")
        await until(lambda: "stuck" in handler.begun)
        proxy.heal()
        await amqp.until_waiting(CONVERSATIONS.entry or "", 0)
        await until(lambda: consumer.ready)
        assert handler.done == ["named"]
        stuck.set()
        await until(lambda: handler.done == ["named", "stuck", "bare"])


@BOTH_WAYS
async def test_stop_finishes_what_has_begun(clean_broker: str, *, side_by_side: bool) -> None:
    """On stop what has begun is finished and acknowledged; what was only prefetched goes on elsewhere, in order."""
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    stopped, next_one = Handler(work, side_by_side=side_by_side), Handler(side_by_side=side_by_side)
    chatbot_id = a_chatbot()
    texts = [str(number) for number in range(20)]
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        async with consuming(clean_broker, stopped, publisher) as consumer:
            await send(publisher, chatbot_id, texts[0])
            await until(lambda: stopped.begun == ["0"])
            await send(publisher, chatbot_id, *texts[1:])
            await amqp.until_waiting(QUEUE, 0)
            async with consuming(clean_broker, next_one, publisher, stands_by=True):
                stopping = asyncio.create_task(consumer.stop(SECONDS))
                await until(lambda: not consumer.ready)
                release.set()
                await stopping
                assert stopped.begun == stopped.done == ["0"]
                await until(lambda: next_one.done == texts[1:])
        assert await amqp.waiting(QUEUE) == 0
        assert await amqp.waiting(DEAD_LETTERS) == 0


@BOTH_WAYS
async def test_what_follows_is_told_before_another_process_goes_on(clean_broker: str, *, side_by_side: bool) -> None:
    """The next process finds nothing untold; until then the partition's rows are told by the one that gives it up."""
    happened: list[str] = []
    release, go_on = asyncio.Event(), asyncio.Event()

    async def work(message: SendMessage) -> None:
        await release.wait()
        happened.append(message.message)

    async def settle() -> None:
        await go_on.wait()
        happened.append("told")

    first, other = (Handler(work, side_by_side=side_by_side) for _ in range(2))
    chatbot_id = a_chatbot()
    async with (
        publishing(clean_broker) as publisher,
        consuming(clean_broker, first, publisher, settle=settle) as consumer,
        consuming(clean_broker, other, publisher, stands_by=True),
    ):
        await send(publisher, chatbot_id, "0")
        await until(lambda: first.begun == ["0"])
        await send(publisher, chatbot_id, "1", "2")
        consumer.subscriptions.hand_over(0)
        await until(lambda: not consumer.subscriptions.partitions[0].started)
        release.set()
        await until(lambda: happened == ["0"])
        seen = consumer.subscriptions.active, list(consumer.subscriptions.owned)
        go_on.set()
        assert seen == ([1], [0])  # 1 is the entry
        await until(lambda: len(happened) >= 4)
        assert happened == ["0", "told", "1", "2"]
        assert other.done == ["1", "2"]
        assert consumer.subscriptions.owned == {}


@BOTH_WAYS
async def test_an_error_beside_the_handler_fails_liveness(
    clean_broker: str, monkeypatch: pytest.MonkeyPatch, *, side_by_side: bool
) -> None:
    """What it holds is never acknowledged: only another process gets it again."""

    def fail(batch: Any, _seconds: float) -> None:
        if batch.readable:  # it is no probe
            raise LookupError("a bug")

    handler = Handler(side_by_side=side_by_side)
    async with publishing(clean_broker) as publisher, consuming(clean_broker, handler, publisher) as consumer:
        assert consumer.alive
        monkeypatch.setattr(consumer._processor, "_count_ended", fail)
        await send(publisher, a_chatbot(), "0")
        await until(lambda: not consumer.alive)
        assert handler.done == ["0"]


@BOTH_WAYS
async def test_stop_leaves_what_is_held(clean_broker: str, *, side_by_side: bool) -> None:
    """A message that is held when the process stops is left unacknowledged; another consumer gets it, in order."""

    async def work(_message: SendMessage) -> None:
        raise DatabaseUnavailable("away")

    stopped, next_one = Handler(work, side_by_side=side_by_side), Handler(side_by_side=side_by_side)
    chatbot_id = a_chatbot()
    async with publishing(clean_broker) as publisher:
        await send(publisher, chatbot_id, "1", "2", "3")
        async with consuming(clean_broker, stopped, publisher) as consumer:
            await until(lambda: not consumer.ready)
            await asyncio.wait_for(consumer.stop(600), SECONDS)
        async with consuming(clean_broker, next_one, publisher):
            await until(lambda: next_one.done == ["1", "2", "3"])
    assert set(stopped.begun) == {"1"}
    assert next_one.envelopes[0].redelivered


@BOTH_WAYS
async def test_what_is_left_is_not_overtaken(clean_broker: str, *, side_by_side: bool) -> None:
    """Once a message was left unacknowledged, none of its partition begins, though nobody has given that up yet."""
    left, behind, elsewhere = a_chatbot(0, 2), a_chatbot(0, 2), a_chatbot(1, 2)

    async def work(message: SendMessage) -> None:
        if message.chatbot_id == left:
            raise DatabaseUnavailable("away")

    handler = Handler(work, side_by_side=side_by_side)
    async with publishing(clean_broker, 2) as publisher, Amqp(clean_broker) as amqp:
        async with consuming(clean_broker, handler, publisher) as consumer:
            consumer._retry.leave()
            await send(publisher, left, "1")
            await until(lambda: consumer.subscriptions.partitions[0]._gate.closed)
            await send(publisher, left, "2")
            await send(publisher, behind, "3")
            await amqp.until_waiting(QUEUE, 0)
            await send(publisher, elsewhere, "other partition")
            await until(lambda: handler.done == ["other partition"])
            assert set(handler.begun) == {"1", "other partition"}
        await amqp.until_waiting(QUEUE, 3)


@BOTH_WAYS
async def test_stop_waits_no_longer_than_it_may(clean_broker: str, *, side_by_side: bool) -> None:
    """A handler that outlives the grace is cancelled, and its message goes to the next consumer."""

    async def work(_message: SendMessage) -> None:
        await asyncio.Event().wait()

    stuck, next_one = Handler(work, side_by_side=side_by_side), Handler()
    async with publishing(clean_broker) as publisher:
        await send(publisher, a_chatbot(), "1")
        async with consuming(clean_broker, stuck, publisher) as consumer:
            await until(lambda: stuck.begun == ["1"])
            await asyncio.wait_for(consumer.stop(0.1), SECONDS)
            assert stuck.cancelled == ["1"]
        async with consuming(clean_broker, next_one, publisher):
            await until(lambda: next_one.done == ["1"])


async def test_give_up_on_a_dead_link_leaves_nothing(clean_broker: str) -> None:
    """Giving up a partition over a dead link ends, and nobody consumes behind our back when the link heals."""
    handler = Handler()
    async with Proxy(clean_broker) as proxy, publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        async with consuming(f"{proxy.url}?heartbeat=1", handler, publisher) as consumer:
            await send(publisher, a_chatbot(), "1")
            await until(lambda: handler.done == ["1"])
            accepted = proxy.accepted
            proxy.lose()
            await asyncio.wait_for(consumer.stop(1), SECONDS)
            proxy.heal()
            await until(lambda: proxy.open == 0)
            assert proxy.accepted == accepted  # none came back
        await send(publisher, a_chatbot(), "2")
        assert await amqp.waiting(QUEUE) >= 1  # "1" comes again where the link has lost its acknowledgement


@BOTH_WAYS
@pytest.mark.parametrize("loss", ["cut", "cut_clients"])
async def test_a_lost_connection_neither_loses_nor_disorders(
    clean_broker: str, loss: str, *, side_by_side: bool
) -> None:
    """In the middle of the work, which goes on; what comes again begins only when that is over, and is in order."""
    chatbot_id, release = a_chatbot(), asyncio.Event()
    running = most = 0

    async def work(message: SendMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if message.message == "3":
            await release.wait()
        running -= 1

    handler = Handler(work, side_by_side=side_by_side)
    texts = [str(number) for number in range(10)]
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(f"{proxy.url}?heartbeat=1", handler, publisher, prefetch=8) as consumer,
    ):
        await send(publisher, chatbot_id, *texts)
        await until(lambda: "3" in handler.begun)
        channel = consumer.subscriptions.partitions[0]._delivered_on
        getattr(proxy, loss)()
        await until(lambda: consumer.subscriptions.partitions[0]._delivered_on is not channel)
        await send(publisher, chatbot_id, "last")
        release.set()
        await until(lambda: handler.done[-1:] == ["last"])
        await amqp.until_waiting(QUEUE, 0)
        await until(lambda: consumer.ready)
    assert handler.cancelled == []
    assert most == 1
    assert once(handler.done) == [*texts, "last"]
    again = handler.done[handler.done.index("3") + 1 :]
    assert again[again.index("3") :] == [*texts[3:], "last"]  # not lost, though its first run has done it
    async with Amqp(clean_broker) as amqp:
        assert await amqp.waiting(QUEUE) == 0


@BOTH_WAYS
async def test_another_takes_over_in_order(clean_broker: str, *, side_by_side: bool) -> None:
    """Where an active process loses its connection, the next one begins with what it has not acknowledged, in order."""
    chatbot_id, release = a_chatbot(), asyncio.Event()

    async def work(message: SendMessage) -> None:
        if message.message == "3":
            await release.wait()

    first, second = Handler(work, side_by_side=side_by_side), Handler(side_by_side=side_by_side)
    texts = [str(number) for number in range(30)]
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        Amqp(clean_broker) as amqp,
        consuming(proxy.url, first, publisher, prefetch=8) as one,
        consuming(clean_broker, second, publisher, prefetch=8, stands_by=True) as other,
    ):
        await send(publisher, chatbot_id, *texts[:4])
        await until(lambda: "3" in first.begun)
        await send(publisher, chatbot_id, *texts[4:])
        assert second.begun == []
        proxy.refuse()
        await until(lambda: second.done[-1:] == texts[-1:])
        assert second.done == texts[int(second.done[0]) :]
        assert int(second.done[0]) <= 3
        assert other.subscriptions.partitions[0].active
        assert not one.subscriptions.partitions[0].active
        release.set()
        await until(lambda: first.done[-1:] == ["3"])
        await amqp.until_waiting(QUEUE, 0)
    assert first.done == texts[:4]
    assert not set(first.begun) & set(texts[4:])


async def test_a_quiet_partition_tells_its_owner(clean_broker: str) -> None:
    """Who subscribes knows at once, by a probe and without any message, where the broker made it the active one."""
    heard: list[str] = []
    async with publishing(clean_broker) as publisher, consuming(clean_broker, Handler(), publisher) as first:
        await until(lambda: first.subscriptions.active and len(first.subscriptions.active) == 2)
        assert first.subscriptions.owned.keys() == {0}  # the entry is none of the partitions whose rows it tells
        hear, changed = (lambda delivery: heard.append(str(delivery))), asyncio.Event()
        extra = Partition(clean_broker, topology.declared_queue(QUEUE), hear, changed, prefetch=1)
        await extra.start()
        try:
            await first.subscriptions.probe(0)
            await until(lambda: not any(map(len, first._inbox._waiting.values())))
            assert (extra.active, heard) == (False, [])
        finally:
            await extra.release(1)

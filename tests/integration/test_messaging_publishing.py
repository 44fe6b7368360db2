"""Publishing on a real broker: what returns was kept, and what was not confirmed says so in time."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from service.errors import BrokerUnavailable, PublishRefused
from service.messaging import publishing as publishing_module
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS, SENDS
from tests.amqp import SECONDS, Amqp, a_chatbot, a_message, properties, publishing, send, until
from tests.proxy import Proxy
from whatsapp_qr_contracts.events import ChatbotRegistered
from whatsapp_qr_contracts.jobs import SendJob
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, JOBS, MAX_BODY_BYTES

QUEUE = CONVERSATIONS.name


def a_job() -> SendJob:
    return SendJob(session_id="s", to="5491112345678", message="Hola", message_id=uuid4(), conversation_id=uuid4())


async def publish_job(publisher: Publisher, message_id: str = "job") -> None:
    await publisher.publish(a_job(), message_id=message_id, correlation_id="c")


async def test_what_is_published_at_once_leaves_together(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is confirmed by itself; a write for each would cost more than all the rest."""
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await publish_job(publisher, "first")
        [pipeline] = [link._pipeline for link in publisher._links.values() if link._pipeline]
        queue, writes = pipeline.channel.write_queue, list[int]()
        put = queue.put

        async def counted(frame: Any) -> None:
            writes.append(len(frame.payload))
            await put(frame)

        monkeypatch.setattr(queue, "put", counted)
        await asyncio.gather(*(publish_job(publisher, f"job {number}") for number in range(50)))
        assert len(writes) == 1
        assert await amqp.waiting(SendJob.name) == 51


async def test_unroutable_publish_raises(clean_broker: str) -> None:
    """A job whose queue is missing does not vanish behind a success, and the publisher goes on."""
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await amqp.channel.queue_delete(SendJob.name)
        with pytest.raises(BrokerUnavailable, match="no queue"):
            await publish_job(publisher)
        await send(publisher, a_chatbot(), "next")
        assert await amqp.waiting(QUEUE) == 1


async def test_full_queue_raises(clean_broker: str) -> None:
    """A queue that rejects what is too much makes the publish raise, and says so: it is still its sender's."""
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        await amqp.channel.queue_delete(SendJob.name)
        small = await amqp.channel.declare_queue(
            SendJob.name,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"},
        )
        await small.bind(JOBS, SendJob.name)
        with pytest.raises(PublishRefused):
            await _publish_until_full(publisher)
        await send(publisher, a_chatbot(), "next")
        assert await amqp.waiting(QUEUE) == 1


async def _publish_until_full(publisher: Publisher) -> None:
    for number in range(50):  # a quorum queue notices a little late
        await publish_job(publisher, str(number))


async def test_missing_exchange_raises_and_is_forgotten(clean_broker: str) -> None:
    """A publish before the topology is declared raises; the same publisher succeeds once it is there."""
    early = Publisher(clean_broker, 1)
    with pytest.raises(BrokerUnavailable):
        await send(early, a_chatbot(), "early")
    async with publishing(clean_broker), Amqp(clean_broker) as amqp:
        await send(early, a_chatbot(), "early")
        assert await amqp.waiting(QUEUE) == 1
    await early.close()


async def test_envelope(clean_broker: str) -> None:
    """Every publish is persistent and carries the envelope of the contract in AMQP properties and headers."""
    chatbot_id = a_chatbot(1, 4)
    async with publishing(clean_broker, 4) as publisher, Amqp(clean_broker) as amqp:
        events = await amqp.bound(EVENTS, "#")
        await publisher.publish(a_message(chatbot_id), message_id="m", correlation_id="c", headers={"traceparent": "t"})
        await publisher.publish(ChatbotRegistered(chatbot_id=chatbot_id), message_id="e", correlation_id="c")
        await publisher.publish_raw(b"?", exchange=DEAD_LETTERS, routing_key="why", properties=properties("d"))
        (command,) = await amqp.take(f"{QUEUE}.1")
        (event,) = await amqp.take(events)
        (dead,) = await amqp.take(DEAD_LETTERS)
    assert [message.delivery_mode for message in (command, event, dead)] == [2, 2, 2]
    assert (command.message_id, command.correlation_id, command.type) == ("m", "c", "message.send")
    assert (command.app_id, command.content_type) == ("whatsapp-qr", "application/json")
    assert command.timestamp is not None
    assert command.routing_key == "message.send.1"
    assert command.headers == {"partition-key": str(chatbot_id), "schema-version": 1, "traceparent": "t"}
    assert (event.routing_key, event.message_id) == ("chatbot.registered", "e")


async def test_events_need_no_listener(clean_broker: str) -> None:
    """An event that nobody listens to is published without an error."""
    async with publishing(clean_broker) as publisher:
        event = ChatbotRegistered(chatbot_id=uuid4())
        await publisher.publish(event, message_id="e", correlation_id="c")


async def test_what_no_reader_takes_is_not_published(clean_broker: str) -> None:
    """The service's own limit is checked before every publish; a body of exactly that size goes out."""
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        to: dict[str, Any] = {"exchange": COMMANDS, "routing_key": "message.send.0", "properties": properties()}
        with pytest.raises(ValueError, match=f"at most {MAX_BODY_BYTES} bytes"):
            await publisher.publish_raw(b"x" * (MAX_BODY_BYTES + 1), **to)
        await publisher.publish_raw(b"x" * MAX_BODY_BYTES, **to)
        [message] = await amqp.take(QUEUE)
        assert len(message.body) == MAX_BODY_BYTES


async def test_black_hole_raises_in_time_and_heals(clean_broker: str) -> None:
    """On a dead link a publish raises within its limit; the same id then succeeds over a new, single connection."""
    chatbot_id = a_chatbot()
    async with Proxy(clean_broker) as proxy, publishing(clean_broker), Amqp(clean_broker) as amqp:
        publisher = Publisher(f"{proxy.url}?heartbeat=4", 1)  # near the real one: closing on a dead link takes longer
        await send(publisher, chatbot_id, "before")
        proxy.lose()
        with pytest.raises(BrokerUnavailable, match=r"did not confirm within 0\.5 s") as late:
            await publisher.publish(a_message(chatbot_id), message_id="m", correlation_id="c", seconds=0.5)
        assert not isinstance(late.value, PublishRefused)
        assert publisher._links[COMMANDS]._closing, "it has waited until the dead connection was closed"
        proxy.heal()
        await send(publisher, chatbot_id, "m")
        assert [message.message_id for message in await amqp.take(QUEUE, 2)] == ["before", "m"]
        await publisher.close()
        await until(lambda: proxy.open == 0)
        assert proxy.accepted == 2


async def closed_after(url: str, silence: float) -> int:
    """Close a publisher so many seconds after its link died; return how many of its connections are open then."""
    async with Proxy(url) as proxy:
        publisher = Publisher(proxy.url, 1)
        await send(publisher, a_chatbot(), "before")
        proxy.lose()
        await asyncio.sleep(silence)
        await publisher.close()
        proxy.heal()
        with suppress(AssertionError):
            await until(lambda: proxy.open == 0)
        return proxy.open


async def test_closing_ends_whenever_the_link_died(clean_broker: str) -> None:
    """Closing ends, and no connection stays, also in the seconds in which the client gives its silent link up."""
    async with publishing(clean_broker):
        closed = await asyncio.gather(*(closed_after(clean_broker, 14 + number * 0.75) for number in range(7)))
    assert closed == [0] * 7


async def test_closing_on_a_dead_link_leaves_nothing(clean_broker: str) -> None:
    """Closing the publisher on a dead link ends, and no connection comes back when the link heals."""
    async with Proxy(clean_broker) as proxy, publishing(clean_broker):
        publisher = Publisher(f"{proxy.url}?heartbeat=1", 1)
        await send(publisher, a_chatbot(), "before")
        accepted = proxy.accepted
        proxy.lose()
        await asyncio.wait_for(publisher.close(), SECONDS)
        proxy.heal()
        await until(lambda: proxy.open == 0)
        assert proxy.accepted == accepted


async def test_limit_covers_connecting(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish raises within its limit also where the broker never says a word, and nothing goes on connecting."""
    before = asyncio.all_tasks()
    async with Proxy(clean_broker) as proxy, publishing(clean_broker):
        publisher = Publisher(proxy.url, 1)
        proxy.lose()
        monkeypatch.setattr(publishing_module, "_CONNECT_SECONDS", 3)
        with pytest.raises(BrokerUnavailable, match=r"within 0\.3 s"):
            await publisher.publish(a_message(), message_id="m", correlation_id="c", seconds=0.3)
        await until(lambda: proxy.accepted == 1)
        await until(lambda: proxy.open == 0)
        monkeypatch.setattr(publishing_module, "_CONNECT_SECONDS", SECONDS)
        proxy.heal()
        await until(lambda: not any("connection_factory" in repr(task) for task in asyncio.all_tasks() - before))
        await send(publisher, a_chatbot(), "m")
        await publisher.close()
        await until(lambda: proxy.open == 0)
        assert proxy.accepted == 2


async def test_refused_and_cut_connections(clean_broker: str) -> None:
    """A broker that cannot be reached and a connection lost in mid-publish raise; the publisher recovers by itself."""
    chatbot_id = a_chatbot()
    async with Proxy(clean_broker) as proxy, publishing(clean_broker), Amqp(clean_broker) as amqp:
        publisher = Publisher(proxy.url, 1)
        proxy.refuse()
        with pytest.raises(BrokerUnavailable):
            await send(publisher, chatbot_id, "refused")
        assert not await publisher.ping()
        proxy.heal()
        assert await publisher.ping()
        await send(publisher, chatbot_id, "before")

        proxy.hold_answers()
        lost = asyncio.create_task(send(publisher, chatbot_id, "lost"))
        await amqp.until_waiting(QUEUE, 2)
        proxy.cut()
        proxy.heal()
        with pytest.raises(BrokerUnavailable):
            await lost
        await RetryWhileUnavailable()(partial(send, publisher, chatbot_id, "lost"))
        assert [message.message_id for message in await amqp.take(QUEUE, 3)] == ["before", "lost", "lost"]
        await publisher.close()


@pytest.mark.parametrize("end", ["cancelled", "late"])
async def test_one_publish_given_up_does_not_cancel_another(clean_broker: str, end: str) -> None:
    """Where one publish is cancelled or late, another on the same connection raises BrokerUnavailable or succeeds."""
    async with Proxy(clean_broker) as proxy, publishing(clean_broker), Amqp(clean_broker) as amqp:
        publisher = Publisher(f"{proxy.url}?heartbeat=1", 1)
        await send(publisher, a_chatbot(), "before")
        proxy.hold_answers()
        seconds = 1 if end == "late" else 4
        first = asyncio.create_task(publisher.publish(a_message(), message_id="1", correlation_id="c", seconds=seconds))
        second = asyncio.create_task(publisher.publish(a_message(), message_id="2", correlation_id="c"))
        await amqp.until_waiting(QUEUE, 3)
        if end == "cancelled":
            first.cancel()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError if end == "cancelled" else BrokerUnavailable)
        assert results[1] is None or isinstance(results[1], BrokerUnavailable)
        proxy.heal()
        await send(publisher, a_chatbot(), "after")
        await publisher.close()


async def test_stuck_connection_cancels_nobody(clean_broker: str) -> None:
    """Where aiormq gives up a stuck connection, which it reports as a cancellation, the publish is unavailable."""
    async with Proxy(clean_broker) as proxy, publishing(clean_broker), Amqp(clean_broker) as amqp:
        publisher = Publisher(proxy.url, 1)
        await send(publisher, a_chatbot(), "before")
        proxy.hold_answers()
        stuck = asyncio.create_task(send(publisher, a_chatbot(), "stuck"))
        await amqp.until_waiting(QUEUE, 2)
        broker = publisher._links[COMMANDS]._broker
        assert broker is not None
        connection: Any = broker._connection
        connection.transport.connection._reader_task.cancel()  # as its heartbeat does after three silent ones
        with pytest.raises(BrokerUnavailable):
            await stuck
        proxy.heal()
        await publisher.close()


async def test_cancelled_publish_is_not_confused_with_the_next(clean_broker: str) -> None:
    """After a cancelled publish, the return of that one is never taken for the fate of the next with the same id."""
    async with Proxy(clean_broker) as proxy, publishing(clean_broker, 2), Amqp(clean_broker) as amqp:
        await amqp.channel.queue_delete(SendJob.name)
        publisher = Publisher(proxy.url, 2)
        publish = partial(publisher.publish_raw, b"{}", exchange=JOBS, properties=properties("job"))
        await publish(routing_key=SENDS.queue_name(1))
        proxy.hold_answers()
        cancelled = asyncio.create_task(publish(routing_key=SENDS.queue_name(0)))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        again = asyncio.create_task(publish(routing_key=SENDS.queue_name(1)))
        proxy.heal()
        await again
        assert await amqp.waiting(SENDS.queue_name(1)) == 2
        await publisher.close()


async def test_one_destination_disturbs_no_other(clean_broker: str) -> None:
    """Replacing the connection of commands fails no job, event or dead letter that waits for its confirm."""
    event = ChatbotRegistered(chatbot_id=uuid4())
    async with Proxy(clean_broker) as proxy, publishing(clean_broker), Amqp(clean_broker) as amqp:
        publisher = Publisher(proxy.url, 1)
        dead = partial(publisher.publish_raw, b"?", exchange=DEAD_LETTERS, routing_key="why")

        def all_but_commands(name: str) -> list[Coroutine[Any, Any, None]]:
            return [
                publish_job(publisher, name),
                publisher.publish(event, message_id=name, correlation_id="c"),
                dead(properties=properties(name)),
            ]

        heard = await amqp.bound(EVENTS, "#")
        await send(publisher, a_chatbot(), "before")
        await asyncio.gather(*all_but_commands("before"))
        connections = proxy.accepted
        proxy.hold_answers()
        command = asyncio.create_task(publisher.publish(a_message(), message_id="m", correlation_id="c", seconds=1))
        rest = asyncio.gather(*all_but_commands("m"))
        for queue in (QUEUE, SendJob.name, heard, DEAD_LETTERS):
            await amqp.until_waiting(queue, 2)
        with pytest.raises(BrokerUnavailable):
            await command
        assert publisher._links[COMMANDS]._broker is None
        assert not rest.done()
        proxy.heal()
        await rest
        assert proxy.accepted == connections
        await send(publisher, a_chatbot(), "after")
        assert proxy.accepted == connections + 1
        assert len(publisher._links) == 4
        await publisher.close()


async def test_the_end_of_a_connections_frames_is_broker_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends while it is being made may end in StopAsyncIteration: it is held, never a dead letter."""

    async def ending(_link: publishing_module._Link) -> None:
        raise StopAsyncIteration

    monkeypatch.setattr(publishing_module._Link, "_connect", ending)
    with pytest.raises(BrokerUnavailable):
        await Publisher("amqp://127.0.0.1:1/", 1).publish(a_message(), message_id="m", correlation_id="c")

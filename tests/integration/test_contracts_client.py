"""The client of the contracts on a real broker, with what the service itself publishes and reads."""

import asyncio
from typing import Any

import pytest

from service.messaging.publishing import Publisher
from service.messaging.topology import CONVERSATIONS
from tests.amqp import SECONDS, Amqp, Handler, a_chatbot, a_message, consuming, publishing, until
from tests.proxy import Proxy
from tests.system import eventually
from whatsapp_qr_contracts.client import connect
from whatsapp_qr_contracts.events import MessageDelivered, MessageFailed, MessageRead
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import Message

QUEUE = "shop.billing"


async def publish(publisher: Publisher, message: type[Message], message_id: str, **headers: Any) -> None:
    """Publish an example as the service does."""
    body = message.model_validate(message.example())
    await publisher.publish(body, message_id=message_id, correlation_id="cause", headers=headers)


@pytest.mark.parametrize("partitions", [None, 3])
async def test_commands_arrive_in_order_at_their_partition(clean_broker: str, partitions: int | None) -> None:
    """Whether the client knows PARTITIONS or not; the service reads id and body as they were given."""
    handler, texts = Handler(), [f"text {number}" for number in range(20)]
    chatbot = a_chatbot(partition=2, partitions=3)
    async with (
        publishing(clean_broker, 3) as publisher,
        consuming(clean_broker, handler, publisher),
        connect(clean_broker, partitions=partitions) as client,
    ):
        for text in texts:
            await client.send(a_message(chatbot, text), text)
        await until(lambda: len(handler.done) == len(texts))
    assert handler.done == texts
    assert [envelope.message_id for envelope in handler.envelopes] == texts


async def test_a_confirmed_command_lies_on_its_queue(clean_broker: str) -> None:
    """Before anybody reads it."""
    async with publishing(clean_broker), Amqp(clean_broker) as amqp, connect(clean_broker) as client:
        await client.send(a_message(), "one")
        assert await amqp.waiting(str(CONVERSATIONS.entry)) == 1


async def test_events_wait_on_ones_own_queue(clean_broker: str) -> None:
    """What was not finished comes again, first and under its id; what others follow does not come."""
    async with publishing(clean_broker) as publisher:
        async with connect(clean_broker) as client:
            await client.bind(QUEUE, MessageDelivered, MessageFailed)
            events = client.events(QUEUE, MessageDelivered, MessageFailed)
            first = asyncio.ensure_future(anext(events))
            for kind, message_id in ((MessageDelivered, "1"), (MessageRead, "2"), (MessageFailed, "3")):
                await publish(publisher, kind, message_id)
            assert (await asyncio.wait_for(first, SECONDS)).id == "1"
        async with connect(clean_broker) as client:
            events = client.events(QUEUE, MessageDelivered, MessageFailed)
            again = [await asyncio.wait_for(anext(events), SECONDS) for _ in range(2)]
            assert [(event.id, event.caused_by) for event in again] == [("1", "cause"), ("3", "cause")]
            await events.aclose()


async def test_what_happens_between_binding_and_following_is_kept(clean_broker: str) -> None:
    """So that a command can be sent before its events are read."""
    async with publishing(clean_broker) as publisher, connect(clean_broker) as client:
        await client.bind(QUEUE, MessageDelivered)
        await publish(publisher, MessageDelivered, "1")
        async for event in client.events(QUEUE, MessageDelivered):
            assert event.id == "1"
            break


async def test_jobs_come_with_their_headers(clean_broker: str) -> None:
    """One at a time."""
    async with publishing(clean_broker) as publisher, connect(clean_broker) as client:
        await publish(publisher, IncomingJob, "job", **{"conversation-sequence": 1})
        jobs = client.jobs()
        job = await asyncio.wait_for(anext(jobs), SECONDS)
        assert (job.id, job.body.content) == ("job", "Hello")
        assert IncomingJob.headers.model_validate(dict(job.headers)).model_dump()["conversation_sequence"] == 1
        await jobs.aclose()


async def test_a_lost_connection_ends_what_follows(clean_broker: str) -> None:
    """It never goes silent."""
    async with publishing(clean_broker), Proxy(clean_broker) as proxy, Amqp(clean_broker) as amqp:
        with pytest.raises((ConnectionError, OSError)):
            await follow(proxy, amqp)


async def follow(proxy: Proxy, amqp: Amqp) -> None:
    async with connect(proxy.url) as client:
        await client.bind(QUEUE, MessageDelivered)

        async def consumers() -> int | None:
            queue = await amqp.channel.declare_queue(QUEUE, passive=True)
            return queue.declaration_result.consumer_count

        events = client.events(QUEUE, MessageDelivered)
        waiting = asyncio.ensure_future(anext(events))
        await eventually(consumers)
        proxy.cut()
        await asyncio.wait_for(waiting, SECONDS)

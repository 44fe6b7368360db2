"""The client of the contracts: what it puts on the wire and what it does with what comes, without a broker."""

import ast
import json
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import aio_pika
import pytest
from aio_pika.exceptions import DeliveryError

from tests.unit.test_contracts_alone import CONTRACTS
from whatsapp_qr_contracts import client as module
from whatsapp_qr_contracts.client import Client, Received, UnreadableError, connect
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.events import Event, MessageDelivered, MessageFailed
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, Message
from whatsapp_qr_contracts.partitions import partition_of

COMMAND = SendMessage.model_validate(SendMessage.example())


class Broker:
    """Stands for a connection: keeps what was published, and delivers what is told."""

    def __init__(self, deliveries: list[MagicMock] | None = None) -> None:
        self.exchange = AsyncMock()
        self.queue = AsyncMock()
        self.queue.iterator = MagicMock(side_effect=lambda: self._deliver(deliveries or []))
        self.commands = AsyncMock()
        self.commands.get_exchange.return_value = self.exchange
        self.channel = AsyncMock()
        self.channel.declare_queue.return_value = self.channel.get_queue.return_value = self.queue
        self.closed = 0

    @staticmethod
    async def _deliver(deliveries: list[MagicMock]) -> AsyncIterator[MagicMock]:
        for delivery in deliveries:
            yield delivery

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncMock]:
        try:
            yield self.channel
        finally:
            self.closed += 1

    def client(self, partitions: int | None = None) -> Client:
        connection: Any = SimpleNamespace(channel=self.open)
        return Client(connection, self.commands, app_id="shop", partitions=partitions)


def a_delivery(message: type[Message], message_id: str = "id", **properties: Any) -> MagicMock:
    body = message.model_validate(message.example()).wire()
    fields = {"type": message.name, "headers": {"schema-version": 1}, "correlation_id": "order-1234-shipped"}
    return MagicMock(body=body, message_id=message_id, ack=AsyncMock(), **(fields | properties))


async def published(partitions: int | None) -> tuple[aio_pika.Message, str, Any]:
    broker = Broker()
    await broker.client(partitions).send(COMMAND, "order-1234-shipped")
    broker.commands.get_exchange.assert_awaited_once_with(COMMANDS, ensure=False)
    [call] = broker.exchange.publish.await_args_list
    return call.args[0], call.args[1], call.kwargs


async def test_a_command_carries_all_that_the_service_asks_for() -> None:
    """Persistent and mandatory, with its id, its name, and the headers of the contract."""
    message, key, options = await published(None)
    assert key == "message.send"
    assert message.body == COMMAND.wire()
    assert (message.message_id, message.correlation_id) == ("order-1234-shipped", "order-1234-shipped")
    assert (message.type, message.app_id, message.content_type) == ("message.send", "shop", "application/json")
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.headers == {"partition-key": str(COMMAND.chatbot_id), "schema-version": 1}
    assert options["mandatory"] is True


async def test_an_answer_belongs_to_the_trace_of_what_it_answers() -> None:
    """The trace's headers go on, and no others: the rest is the command's own."""
    broker, trace = Broker(), {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    headers = trace | {"partition-key": "the job's", "conversation-sequence": 1}
    job = Received(IncomingJob.model_validate(IncomingJob.example()), "job", None, headers)
    await broker.client().send(COMMAND, "answer", answers=job)
    [call] = broker.exchange.publish.await_args_list
    assert call.args[0].headers == trace | {"partition-key": str(COMMAND.chatbot_id), "schema-version": 1}


@pytest.mark.parametrize("partitions", [1, 4, 7])
async def test_who_knows_the_partitions_publishes_to_the_right_one(partitions: int) -> None:
    """As the service itself would."""
    _, key, _ = await published(partitions)
    assert key == f"message.send.{partition_of(str(COMMAND.chatbot_id), partitions)}"


async def test_a_command_that_is_not_confirmed_is_the_callers_again() -> None:
    """Under the same id it has one effect."""
    broker = Broker()
    broker.exchange.publish.side_effect = [DeliveryError(None, None), None]
    with pytest.raises(DeliveryError):
        await broker.client().send(COMMAND, "order")
    await broker.client().send(COMMAND, "order")
    assert [call.args[0].message_id for call in broker.exchange.publish.await_args_list] == ["order", "order"]


async def followed(broker: Broker, *kinds: type[Event]) -> list[Received[Event]]:
    """Follow until the connection is lost."""
    found: list[Received[Event]] = []
    try:
        async for event in broker.client().events("shop.billing", *kinds):
            found.append(event)  # noqa: PERF401  # the end is an error
    except ConnectionError:
        return found
    pytest.fail("events never end by themselves")


async def test_events_come_through_a_queue_of_ones_own() -> None:
    """Durable, bound for these kinds alone; each event with its envelope, acknowledged once the next is wanted."""
    deliveries = [a_delivery(MessageDelivered, "one"), a_delivery(MessageFailed, "two")]
    broker = Broker(deliveries)
    events = await followed(broker, MessageDelivered, MessageFailed)
    assert [(event.id, event.caused_by, type(event.body)) for event in events] == [
        ("one", "order-1234-shipped", MessageDelivered),
        ("two", "order-1234-shipped", MessageFailed),
    ]
    assert all(delivery.ack.await_count == 1 for delivery in deliveries)
    assert broker.channel.declare_queue.await_args.args == ("shop.billing",)
    assert broker.channel.declare_queue.await_args.kwargs["durable"] is True
    assert broker.channel.declare_queue.await_args.kwargs["arguments"]["x-queue-type"] == "quorum"
    assert [call.args for call in broker.queue.bind.await_args_list] == [
        (EVENTS, "message.delivered"),
        (EVENTS, "message.failed"),
    ]
    assert broker.closed == 1


async def test_what_was_not_finished_is_not_acknowledged() -> None:
    """An error of the caller's leaves the event on the queue, and those behind it."""
    deliveries = [a_delivery(MessageDelivered), a_delivery(MessageDelivered)]
    events = Broker(deliveries).client().events("shop.billing", MessageDelivered)
    await anext(events)
    await events.aclose()
    assert [delivery.ack.await_count for delivery in deliveries] == [0, 0]


@pytest.mark.parametrize(
    "properties",
    [
        {"type": "message.read"},
        {"type": None},
        {"headers": {"schema-version": 2}},
        {"body": b"{}"},
        {"body": b"?"},
        {"body": json.dumps(MessageDelivered.example() | {"chatbot_id": "x"}).encode()},
    ],
    ids=["another kind", "no kind", "newer version", "other body", "no JSON", "other spelling"],
)
async def test_what_cannot_be_read_stays_on_the_queue(properties: dict[str, Any]) -> None:
    """A newer service is told by an error, and loses nothing."""
    delivery = a_delivery(MessageDelivered)
    for name, value in properties.items():
        setattr(delivery, name, value)
    with pytest.raises(UnreadableError):
        await anext(Broker([delivery]).client().events("shop.billing", MessageDelivered))
    assert delivery.ack.await_count == 0


async def test_a_job_is_taken_alone() -> None:
    """One at a time keeps the order of a conversation; the queue is the service's, so it is not declared."""
    broker = Broker([a_delivery(IncomingJob, "job", headers={"schema-version": 1, "conversation-sequence": 1})])
    jobs = broker.client().jobs()
    job = await anext(jobs)
    assert (job.id, job.body.content, job.headers["conversation-sequence"]) == ("job", "Hello", 1)
    broker.channel.set_qos.assert_awaited_once_with(prefetch_count=1)
    broker.channel.get_queue.assert_awaited_once_with("incoming-messages")
    broker.channel.declare_queue.assert_not_awaited()


async def test_connect_makes_a_channel_that_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without confirmations a publish would say nothing; returns count as failures."""
    connection = AsyncMock()
    made = MagicMock()
    made.__aenter__ = AsyncMock(return_value=connection)
    made.__aexit__ = AsyncMock(return_value=None)
    monkeypatch.setattr(aio_pika, "connect", AsyncMock(return_value=made))
    async with connect("amqp://nowhere", partitions=4) as client:
        assert isinstance(client, Client)
    connection.channel.assert_awaited_once_with(publisher_confirms=True, on_return_raises=True)
    made.__aexit__.assert_awaited_once()


@pytest.mark.parametrize("text", [(CONTRACTS / "README.md").read_text(), module.__doc__], ids=["README", "docstring"])
def test_the_documented_use_is_ten_lines_of_python(text: str) -> None:
    """It parses, and it is as short as promised."""
    blocks = [block for block in text.split("\n\n") if "async with connect(" in block]
    assert blocks
    for block in blocks:
        code = textwrap.dedent(block)
        ast.parse(code)
        assert len(code.strip().splitlines()) <= 10

"""What `declare` makes on a real broker, and what the service's connections agree on with it."""

import json
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import ChannelPreconditionFailed

from service.messaging import topology
from service.messaging.connections import with_heartbeat
from service.messaging.listening import Listener
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS, INGRESS_PREFIX, SENDS, SESSIONS
from tests.amqp import Amqp, Handler, a_chatbot, consuming, publishing, send
from tests.servers import Broker
from whatsapp_qr_contracts.commands import RegisterChatbot
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, GATEWAY, JOBS

WORK = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 1000,
    "x-max-length": 1_000_000,
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": DEAD_LETTERS,
    "x-dead-letter-routing-key": "delivery_limit",
    "x-dead-letter-strategy": "at-least-once",
}
PARTITION = WORK | {"x-single-active-consumer": True}


async def listed(broker: Broker, what: str, *columns: str) -> list[dict[str, Any]]:
    """Ask the broker itself what there is in the virtual host."""
    vhost = broker.url.rpartition("/")[2]
    rows: list[dict[str, Any]] = json.loads(await broker.ctl("-q", what, "-p", vhost, *columns, "--formatter=json"))
    return rows


def arguments(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's arguments, whatever form this version of rabbitmqctl gives them."""
    found = row["arguments"]
    return found if isinstance(found, dict) else {name: value for name, _, value in found}


async def test_queues(clean_broker: str, shared_broker: Broker) -> None:
    """Every queue has the arguments that keep messages, and there is no queue but these."""
    await topology.declare(clean_broker, 2)
    queues = {row["name"]: row for row in await listed(shared_broker, "list_queues", "name", "durable", "arguments")}
    partitioned = {queue.queue_name(number) for queue in (SESSIONS, CONVERSATIONS, SENDS) for number in range(2)}
    partitioned |= {"whatsapp-qr.sessions.entry", "whatsapp-qr.conversations.entry"}
    assert {name: arguments(row) for name, row in queues.items()} == {
        **dict.fromkeys(partitioned, PARTITION),
        "incoming-messages": WORK,
        DEAD_LETTERS: {
            "x-queue-type": "quorum",
            "x-delivery-limit": 1_000_000,
            "x-max-length": 1_000_000,
            "x-overflow": "reject-publish",
        },
    }
    assert all(row["durable"] for row in queues.values())


async def test_exchanges(clean_broker: str, shared_broker: Broker) -> None:
    """Every exchange is durable and of its kind; what comes in under an unknown key goes to the dead letters."""
    await topology.declare(clean_broker, 1)
    rows = await listed(shared_broker, "list_exchanges", "name", "type", "durable", "arguments")
    ours = {row["name"]: row for row in rows if row["name"] and not row["name"].startswith("amq.")}
    assert {name: row["type"] for name, row in ours.items()} == {
        COMMANDS: "topic",
        GATEWAY: "topic",
        EVENTS: "topic",
        JOBS: "direct",
        DEAD_LETTERS: "topic",
    }
    assert all(row["durable"] for row in ours.values())
    alternate = {"alternate-exchange": DEAD_LETTERS}
    assert {name: arguments(row) for name, row in ours.items() if arguments(row)} == dict.fromkeys(
        (COMMANDS, GATEWAY), alternate
    )


async def test_declaring_again_changes_nothing(clean_broker: str) -> None:
    """Every process declares at its start: messages, and more partitions, survive that."""
    async with publishing(clean_broker) as publisher:
        await send(publisher, a_chatbot(), "kept")
        await topology.declare(clean_broker, 1)
        await topology.declare(clean_broker, 2)
    connection = await aio_pika.connect(clean_broker)
    async with connection:
        queue = await (await connection.channel()).declare_queue(CONVERSATIONS.name, passive=True)
        assert queue.declaration_result.message_count == 1


async def test_the_first_partition_is_no_entry_any_more(clean_broker: str) -> None:
    """What is bound as before this version is unbound: a message without a partition comes to the entry alone."""
    async with publishing(clean_broker) as publisher, Amqp(clean_broker) as amqp:
        first = await amqp.channel.get_queue(SESSIONS.name, ensure=False)
        for message in SESSIONS.carries:
            await first.bind(message.exchange, message.name)
        await send(publisher, a_chatbot(), "kept")
        await amqp.publish(b"{}", RegisterChatbot.name)
        assert [await amqp.waiting(name) for name in (SESSIONS.name, f"{SESSIONS.name}.entry")] == [1, 1]
        await topology.declare(clean_broker, 1)
        for message in SESSIONS.carries:
            await amqp.publish(b"{}", message.name, message.exchange)
        await amqp.until_waiting(f"{SESSIONS.name}.entry", 1 + len(SESSIONS.carries))
        assert await amqp.waiting(SESSIONS.name) == await amqp.waiting(CONVERSATIONS.name) == 1
        assert await amqp.waiting(DEAD_LETTERS) == 0


async def test_queue_with_other_arguments_is_refused(clean_broker: str) -> None:
    """A queue that somebody declared otherwise is an error at start, not a queue that loses messages."""
    connection = await aio_pika.connect(clean_broker)
    async with connection:
        await (await connection.channel()).declare_queue(CONVERSATIONS.name, durable=True)
        with pytest.raises(ChannelPreconditionFailed):
            await topology.declare(clean_broker, 1)


async def test_connections(clean_broker: str, shared_broker: Broker) -> None:
    """Each destination, partition and listener has a connection of its own with a heartbeat of 5 s."""
    listener = Listener(clean_broker, 2, lambda *_: None)
    listener.start()
    async with publishing(clean_broker, 2) as publisher:
        await send(publisher, a_chatbot(), "1")
        async with consuming(clean_broker, Handler(), publisher, prefetch=7):
            assert listener._starting is not None
            await listener._starting
            vhost = clean_broker.rpartition("/")[2]
            rows = json.loads(await shared_broker.ctl("-q", "list_connections", "vhost", "timeout", "--formatter=json"))
            beats = [row["timeout"] for row in rows if row["vhost"] == vhost]
            consumers = await listed(shared_broker, "list_consumers", "queue_name", "prefetch_count", "ack_required")
            queues = await listed(shared_broker, "list_queues", "name", "type", "exclusive", "arguments")
    await listener.stop()
    # The listener; two partitions and the entry; the publisher's for commands, and for probes to partitions and entry.
    assert beats == [5] * (1 + 3 + 3)
    ours = [row for row in consumers if row["queue_name"].startswith(CONVERSATIONS.name)]
    assert [(row["prefetch_count"], row["ack_required"]) for row in ours] == [(7, True)] * 3
    (own,) = (row for row in queues if row["name"].startswith(INGRESS_PREFIX))
    assert own["exclusive"]
    assert "x-dead-letter-exchange" not in arguments(own)
    assert (arguments(own)["x-max-length"], arguments(own)["x-overflow"]) == (10_000, "drop-head")


def test_heartbeat_joins_any_url() -> None:
    """The heartbeat is added to a URL with or without a query, and one that is given is kept."""
    assert with_heartbeat("amqp://h/v") == "amqp://h/v?heartbeat=5"
    assert with_heartbeat("amqp://h/v?name=x") == "amqp://h/v?name=x&heartbeat=5"
    assert with_heartbeat("amqp://h/v?heartbeat=9") == "amqp://h/v?heartbeat=9"

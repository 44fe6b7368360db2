"""Exchanges and queues as AsyncAPI channels, and what the service does on each."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from schemas.objects import DEAD_LETTER
from service.messaging import topology
from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.message import EVENTS, Message

PARTITION = "{partition}"
_VERSION = {"bindingVersion": "0.3.0"}
_PARTITION_TEXT = (
    "crc32(partition key) modulo PARTITIONS, from 0. Whoever does not know PARTITIONS leaves it out, with its dot: the "
    "message is rerouted to its partition, in order among those that come so."
)
_QUEUE_PARTITION_TEXT = "From 1 to PARTITIONS - 1; the queue of partition 0 has the name without dot and number."


@dataclass(frozen=True)
class Use:
    """What the service does on a channel, and for whom."""

    operation: str
    action: Literal["send", "receive"]
    public: bool
    text: str


# A new exchange or queue must be described here: a missing one is a KeyError.
_USES = {
    "commandsExchange": Use(
        "receiveCommands",
        "receive",
        public=True,
        text="Exchange `whatsapp-qr.commands`, what you can ask for: you publish, persistent and mandatory, with a "
        "`message_id` per command.",
    ),
    "eventsExchange": Use(
        "sendEvents",
        "send",
        public=True,
        text="Exchange `whatsapp-qr.events`, what happened: bind a queue of your own, by message name or by pattern "
        "(`message.*`, `session.#`).",
    ),
    "incomingMessagesQueue": Use(
        "sendIncomingMessages",
        "send",
        public=True,
        text="Queue `incoming-messages`, one job per customer's message for the AI workers: you consume it and "
        "acknowledge when it is done.",
    ),
    "gatewayExchange": Use(
        "sendGatewayReports", "send", public=False, text="What the gateway reported to the ingress."
    ),
    "jobsExchange": Use(
        "sendJobs",
        "send",
        public=False,
        text="Work for one worker; the routing key is the queue. Also `partition.probe`, by which a process learns on "
        "which partitions it is active: an empty object that nobody else need read.",
    ),
    "deadLettersExchange": Use(
        "sendDeadLetters",
        "send",
        public=False,
        text="What reached no handler: callbacks that the ingress refused, what no queue was bound for, and what "
        "crashed its reader too often. What a consumer cannot process it writes into the table itself.",
    ),
    "sessionsQueue": Use("handleSessions", "receive", public=False, text="Read by the session consumer."),
    "conversationsQueue": Use(
        "handleConversations", "receive", public=False, text="Read by the conversation consumer."
    ),
    "sessionsEntryQueue": Use(
        "rerouteSessions", "receive", public=False, text="What came without a partition; rerouted, in order per key."
    ),
    "conversationsEntryQueue": Use(
        "rerouteConversations",
        "receive",
        public=False,
        text="What came without a partition; rerouted, in order per key.",
    ),
    "sendQueue": Use("handleSends", "receive", public=False, text="Read by the outbound consumer."),
    "deadLettersQueue": Use(
        "handleDeadLetters",
        "receive",
        public=False,
        text="Moved into a table by a session consumer; `whatsapp-qr dead-letters` looks at it and replays.",
    ),
    "ingressQueue": Use("hearOutcomes", "receive", public=False, text="What callers of one ingress process wait for."),
}


def channels() -> dict[str, Any]:
    """Return all channels."""
    return dict(sorted({**dict(_exchange_channels()), **dict(_queue_channels()), **_ingress_channel()}.items()))


def operations() -> dict[str, Any]:
    """Return what the service does, one operation per channel."""
    described = channels()
    return {
        use.operation: {
            "action": use.action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "summary": use.text,
            "messages": [
                {"$ref": f"#/channels/{channel}/messages/{name}"} for name in described[channel].get("messages", ())
            ],
            "tags": _tags(use),
            "bindings": {"amqp": _operation_binding(channel, use)},
        }
        for channel, use in sorted(_USES.items(), key=lambda item: item[1].operation)
    }


def pattern(of_partition_1: str) -> str:
    """Return the pattern of a routing key or queue, given that of partition 1; other names stay as they are."""
    return re.sub(r"\.1$", f".{PARTITION}", of_partition_1)


def _operation_binding(channel: str, use: Use) -> dict[str, Any]:
    if channel.endswith("Queue") and use.action == "receive":
        return {"ack": True, **_VERSION}
    # Nobody may be listening to an event; everything else must have reached a queue.
    mandatory = channel != _channel_id(EVENTS, "Exchange")
    return {"deliveryMode": 2, "mandatory": mandatory, "timestamp": True, **_VERSION}


def _exchange_channels() -> Iterator[tuple[str, dict[str, Any]]]:
    for exchange in topology.EXCHANGES:
        messages = [message for message in MESSAGES if message.exchange == exchange.name]
        partitioned = bool(messages) and all("{partition}" in message.routing_key for message in messages)
        binding: dict[str, Any] = {
            "name": exchange.name,
            "type": exchange.type.value,
            "durable": True,
            "autoDelete": False,
        }
        if exchange.arguments:
            binding["x-arguments"] = exchange.arguments
        channel_id = _channel_id(exchange.name, "Exchange")
        yield (
            channel_id,
            {
                "address": "{name}" + (f".{PARTITION}" if partitioned else ""),
                "parameters": _exchange_parameters(messages, partitioned=partitioned),
                **_common(channel_id, messages),
                "bindings": {"amqp": {"is": "routingKey", "exchange": binding, **_VERSION}},
            },
        )


def _exchange_parameters(messages: list[type[Message]], *, partitioned: bool) -> dict[str, Any]:
    if not messages:
        return {"name": {"description": "The reason, or the routing key for which no queue was bound"}}
    name = {"enum": [message.name for message in messages], "description": "The message's name"}
    return {"name": name} | ({"partition": {"description": _PARTITION_TEXT}} if partitioned else {})


def _queue_channels() -> Iterator[tuple[str, dict[str, Any]]]:
    first = {partitioned.queue_name(0) for partitioned in topology.PARTITIONED}
    for queue in topology.queues(2):
        if queue.name in first:
            continue  # the second one stands for all
        carried = {(exchange, topology.name_of(key)) for exchange, keys in queue.bindings.items() for key in keys}
        messages = [message for message in MESSAGES if (message.exchange, message.name) in carried]
        channel_id = _channel_id(topology.name_of(queue.name), "Queue")
        yield channel_id, _queue_channel(channel_id, queue, messages)


def _queue_channel(channel_id: str, queue: topology.Queue, messages: list[type[Message]]) -> dict[str, Any]:
    name = pattern(queue.name)
    bound = [
        {"exchange": exchange, "routingKey": pattern(key)} for exchange, keys in queue.bindings.items() for key in keys
    ]
    binding = {
        "name": name,
        "durable": True,
        "exclusive": False,
        "autoDelete": False,
        "x-arguments": dict(sorted(queue.arguments.items())),
        "x-bindings": sorted(bound, key=lambda binding: (binding["exchange"], binding["routingKey"])),
    }
    return {
        "address": name,
        **({"parameters": {"partition": {"description": _QUEUE_PARTITION_TEXT}}} if PARTITION in name else {}),
        **_common(channel_id, messages),
        "bindings": {"amqp": {"is": "queue", "queue": binding, **_VERSION}},
    }


def _ingress_channel() -> dict[str, Any]:
    queue = topology.ingress_queue("{process}")
    channel_id = _channel_id(topology.INGRESS_PREFIX.rstrip("."), "Queue")
    binding = {
        "name": queue.name,
        "durable": queue.durable,
        "exclusive": queue.exclusive,
        "autoDelete": queue.auto_delete,
        "x-arguments": dict(sorted((queue.arguments or {}).items())),
    }
    return {
        channel_id: {
            "address": queue.name,
            "parameters": {"process": {"description": "Random, of one process"}},
            "description": _USES[channel_id].text,
            "tags": _tags(_USES[channel_id]),
            "bindings": {"amqp": {"is": "queue", "queue": binding, **_VERSION}},
        }
    }


def _common(channel_id: str, messages: Iterable[type[Message]]) -> dict[str, Any]:
    names = sorted(message.__name__ for message in messages) or [DEAD_LETTER]
    return {
        "description": _USES[channel_id].text,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "tags": _tags(_USES[channel_id]),
    }


def _tags(use: Use) -> list[dict[str, str]]:
    return [{"name": "public" if use.public else "internal"}]


def _channel_id(name: str, kind: str) -> str:
    words: list[str] = re.findall(r"[a-z]+", re.sub(r"^whatsapp-qr[.-]", "", name))
    return words[0] + "".join(map(str.capitalize, words[1:])) + kind

"""Reroutes messages that arrived without a partition, or in a wrong one, to the partition of their key."""

import asyncio

from service.errors import Undeliverable
from service.messaging import topology
from service.messaging.envelope import Properties, forwarded_headers
from service.messaging.publishing import Publisher
from service.messaging.receiving import Received
from whatsapp_qr_contracts.codes import DeadLetterReason
from whatsapp_qr_contracts.partitions import partition_of

DECIDED_BY = "rerouted-by-partitions"
"""The header of rerouted messages: the number of partitions that the decision was based on."""


def check_hops(received: Received, partitions: int) -> None:
    """Check that a message was not rerouted before with the same number of partitions: it would loop for ever.

    Raises:
        Undeliverable: it was.
    """
    if (received.delivery.raw.headers or {}).get(DECIDED_BY) == partitions:
        home = partition_of(received.key, partitions)
        message = f"it was rerouted once and came to partition {received.delivery.number} again, not to {home}"
        raise Undeliverable(message, code=DeadLetterReason.MISROUTED)


async def reroute(publisher: Publisher, strays: list[Received]) -> None:
    """Publish each message to its partition; confirmed messages are removed from the list.

    All are published concurrently over one channel: a queue gets them in this order. Only a full queue that refuses
    some may get later messages of a key before those that it refused.

    Raises:
        BrokerUnavailable: some were not confirmed; calling it again publishes the rest.
    """
    sent = list(strays)
    results = await asyncio.gather(*(_publish(publisher, received) for received in sent), return_exceptions=True)
    strays[:] = [received for received, result in zip(sent, results, strict=True) if result is not None]
    for result in results:
        if result is not None:
            raise result


async def _publish(publisher: Publisher, received: Received) -> None:
    raw, model = received.delivery.raw, type(received.body)
    headers = {**forwarded_headers(raw.headers), DECIDED_BY: publisher.partitions}
    await publisher.publish_raw(
        raw.body,
        exchange=model.exchange,
        routing_key=topology.routing_key(model, partition_of(received.key, publisher.partitions)),
        properties=Properties(raw.message_id or "", raw.correlation_id or "", model.name, headers),
    )

"""Checks that need RabbitMQ's management API: bindings, policies and superfluous queues.

`comparing` checks by AMQP that exchanges and queues exist with the right properties.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from service.errors import BrokerUnavailable
from service.messaging import topology
from service.operating.comparing import APPLY, Difference
from whatsapp_qr_contracts.message import EVENTS

_SECONDS = 10.0
# Properties that no policy may set on our queues: it could lose messages, or move them elsewhere.
_OURS_TO_DECIDE = frozenset(
    {
        "dead-letter-exchange",
        "dead-letter-routing-key",
        "dead-letter-strategy",
        "delivery-limit",
        "expires",
        "max-length",
        "max-length-bytes",
        "message-ttl",
        "overflow",
    }
)
_OUR_EXCHANGES = frozenset(exchange.name for exchange in topology.EXCHANGES)
_PARTITION = re.compile(rf"({'|'.join(re.escape(queue.name) for queue in topology.PARTITIONED)})(\.([0-9]+|entry))?")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The objects of one virtual host, as the API lists them."""

    queues: Sequence[Row] = field(default=())
    bindings: Sequence[Row] = field(default=())


async def look(management_url: str, amqp_url: str) -> Found:
    """List the objects of an AMQP URL's virtual host.

    Raises:
        BrokerUnavailable: the API does not answer, or refuses.
    """
    vhost = quote(unquote(urlsplit(amqp_url).path)[1:] or "/", safe="")
    try:
        async with httpx.AsyncClient(base_url=management_url, timeout=_SECONDS) as http:
            answers = [await http.get(f"/api/{kind}/{vhost}") for kind in ("queues", "bindings")]
            rows = [answer.raise_for_status().json() for answer in answers]
    except httpx.HTTPStatusError as error:
        reason = f"it answers {error.response.status_code}; its user needs the tag monitoring"
        raise BrokerUnavailable(f"the management API (MANAGEMENT_URL) cannot be used: {reason}") from error
    except (httpx.HTTPError, ValueError) as error:
        raise BrokerUnavailable(
            f"the management API (MANAGEMENT_URL) cannot be used: {type(error).__name__}"
        ) from error
    return Found(*rows)


def differences(found: Found, partitions: int) -> list[Difference]:
    """Return the differences that `comparing` cannot find by AMQP."""
    wanted = list(topology.queues(partitions))
    return [*_in_policies(found, wanted), *_in_bindings(found, wanted), *_left_over(found, wanted)]


def _in_policies(found: Found, wanted: Sequence[topology.Queue]) -> Iterator[Difference]:
    ours = {queue.name for queue in wanted}
    for row in found.queues:
        policy = row.get("effective_policy_definition") or {}
        if row["name"] in ours and (meddling := sorted(_OURS_TO_DECIDE & dict(policy).keys())):
            names = " and ".join(filter(None, (row.get("policy"), row.get("operator_policy"))))
            remedy = f"narrow the pattern of {names}, so that it leaves our queues out"
            yield Difference(f"queue {row['name']} has a policy that sets {', '.join(meddling)}", remedy)


def _in_bindings(found: Found, wanted: Sequence[topology.Queue]) -> Iterator[Difference]:
    bound = {
        (row["source"], row["routing_key"], row["destination"], row["destination_type"])
        for row in found.bindings
        if row["source"]  # every queue is bound to the default exchange
    }
    present = {row["name"] for row in found.queues}
    ours = {
        (exchange, key, queue.name, "queue")
        for queue in wanted
        if queue.name in present
        for exchange, keys in queue.bindings.items()
        for key in keys
    }
    for exchange, key, queue_name, _ in sorted(ours - bound):
        yield Difference(f"queue {queue_name} is not bound to {exchange} under {key!r}", APPLY)
    names = {queue.name for queue in wanted}
    for source, key, destination, kind in sorted(bound - ours):
        if source in _OUR_EXCHANGES - {EVENTS} or (kind == "queue" and destination in names):
            what = f"{kind} {destination} is bound to {source} under {key!r}, and should not be"
            yield Difference(what, "it gets messages that are not meant for it: unbind it, and find out its origin")


def _left_over(found: Found, wanted: Sequence[topology.Queue]) -> Iterator[Difference]:
    names = {queue.name for queue in wanted}
    for row in found.queues:
        if row["name"] not in names and _PARTITION.fullmatch(row["name"]):
            remedy = "it may hold messages without a consumer: if PARTITIONS is right, empty it by hand and delete it"
            yield Difference(f"queue {row['name']} is beyond PARTITIONS", remedy)

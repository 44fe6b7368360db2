"""Harm 5: chatbots with much to send, paced, so many that their lanes take every place of a partition."""

import time

import pytest

from tests.neighbours.deployment import HARMED, Deployments
from tests.neighbours.measurement import Begin
from tests.neighbours.publishing import put_in

_BULK = 12
_EACH = 300
_TAKEN_IN = 120.0
_PACED = {"PREFETCH": "4", "SEND_RATE": "1", "SEND_BURST": "20"}
# So many that none of them is paced: 15 sends a second among them, and 20 at once each.
_NEIGHBOURS = (10, 5, 5, 4)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_paced_lanes_keep_nobody_waiting(deployments: Deployments, database: str, begin: Begin) -> None:
    """A single message goes out at once, in the partition of twelve bulk senders too."""
    deployment = await deployments.get(database, _NEIGHBOURS, **_PACED)
    chatbots = await deployment.link([HARMED] * _BULK)
    async with begin(deployment, "5 paced lanes") as measurement:
        puts = [deployment.puts(one, _EACH, one.routing_key) for one in chatbots]
        mixed = [put for row in zip(*puts, strict=True) for put in row]
        accepted = await put_in(deployment.system.amqp_url, mixed)
        last = [one.sent_as(own[-1].message_id) for one, own in zip(chatbots, puts, strict=True)]
        taken_in = await deployment.stored(last, seconds=_TAKEN_IN)
        rate = len(mixed) / (time.perf_counter() - accepted.began)
        await measurement.during()
        await measurement.judge(put_in=0 if taken_in else len(mixed), rate=rate)
        assert taken_in, f"{len(mixed)} messages were not taken in after {_TAKEN_IN} s"
        await measurement.healed()

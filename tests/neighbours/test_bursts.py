"""Harm 6: one chatbot publishes 3000 commands at once, with its partition in the routing key and without."""

from functools import partial

import pytest

from tests.neighbours.deployment import HARMED, Deployments
from tests.neighbours.load import Kind
from tests.neighbours.measurement import RATE, SAMPLES, Begin

_BURST = 3000
_PATIENCE = 90.0
# So many that what one of them has sent, and waits behind the burst, is not long in its lane afterwards.
_NEIGHBOURS = (12, 6, 6, 6)
_SAMPLES = 3 * SAMPLES
"""So many that the p99 of one kind in one place is not its worst."""


@pytest.mark.parametrize("key", ["message.send.0", "message.send"])
async def test_a_burst_delays_nobody_else(deployments: Deployments, database: str, begin: Begin, key: str) -> None:
    """Other partitions notice nothing; behind it in its queue others wait no longer than it takes to take it in.

    What is published without a partition comes in by one queue, whatever partition it is for; and whatever is stored in
    SQLite waits for its one writer.
    """
    deployment = await deployments.get(database, _NEIGHBOURS)
    has_one_writer = deployment.database == "sqlite"
    (chatbot,) = await deployment.link([HARMED])
    assert chatbot.routing_key == f"message.send.{HARMED}"
    mix = {Kind.INCOMING: 3, Kind.SEND: 3, Kind.KEYED: 3, Kind.BARE: 1}
    burst = partial(deployment.burst, chatbot, _BURST, key, seconds=_PATIENCE)
    shared = set(mix) if has_one_writer else {Kind.BARE} if key == "message.send" else set()
    # What neighbours give is stored after the burst by the same writer: fewer of it wait behind each other then.
    rate, samples = (RATE / 2, SAMPLES) if has_one_writer else (RATE, _SAMPLES)
    async with begin(deployment, f"6 a burst under {key}", mix, shared=shared, rate=rate) as measurement:
        rates = await measurement.while_it_lasts(burst, samples=samples)
        await measurement.judge(put_in=_BURST, rate=min(rates))
        await measurement.healed()
    await deployment.silence(chatbot)
    await deployment.settled()

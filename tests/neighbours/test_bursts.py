"""Harm 6: one chatbot publishes 3000 commands at once, with its partition in the routing key and without."""

import pytest

from tests.neighbours.arena import HARMED, Arena
from tests.neighbours.load import Kind
from tests.neighbours.trial import Begin

_BURST = 3000
_PATIENCE = 90.0


@pytest.mark.parametrize("key", ["message.send.0", "message.send"])
async def test_a_burst_delays_nobody_else(arena: Arena, begin: Begin, key: str) -> None:
    """Other partitions notice nothing; in its own a burst delays others by no more than it takes to take it in."""
    (chatbot,) = await arena.link([HARMED])
    assert chatbot.routing_key == f"message.send.{HARMED}"
    mix = {Kind.INCOMING: 1, Kind.SEND: 1, Kind.KEYED: 1, Kind.BARE: 1}
    rates: list[float] = []

    async def burst() -> None:
        puts = arena.burst(chatbot, _BURST, key)
        rates.append(await arena.burst_taken(chatbot, puts, seconds=_PATIENCE))

    async with begin(arena, f"6 a burst under {key}", mix) as trial:
        await trial.while_it_lasts(burst)
        await trial.judge(put_in=_BURST, rate=min(rates))
        await trial.healed()
    await arena.silence(chatbot)
    await arena.settled()

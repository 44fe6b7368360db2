"""Harm 4: commands of 2 to 20 MiB, as far as the broker takes them."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.neighbours.deployment import CUSTOMER, HARMED, Chatbot, Deployment
from tests.neighbours.measurement import RATE, SAMPLES, Begin
from tests.neighbours.publishing import PADDING, Put, a_send, put_in
from tests.operator import listed, operate
from tests.servers import Broker
from tests.system import eventually

_MEBIBYTE = 1 << 20
_SIZES = (2, 5, 10, 20, 2, 20)
_PAUSE = SAMPLES / RATE / len(_SIZES)
_BROKERS_OWN = 128 * _MEBIBYTE
_CUT = _MEBIBYTE
"""A dead letter shows at most so much."""


def large(deployment: Deployment, chatbot: Chatbot) -> list[Put]:
    """Return commands with texts that nobody can send, the last two of them no JSON either."""
    command = a_send(chatbot.id, CUSTOMER, "large", chatbot.routing_key)
    text = command.body.replace(b"message large", PADDING)
    bodies = [text] * (len(_SIZES) - 2) + [PADDING, b"[" + PADDING]
    return [
        Put(deployment.a_name(), body, command.routing_key, padding=size * _MEBIBYTE)
        for body, size in zip(bodies, _SIZES, strict=True)
    ]


@asynccontextmanager
async def bodies_of(most: int, broker: Broker) -> AsyncIterator[None]:
    """Let the broker take bodies of so many bytes meanwhile, on channels that are opened from now on."""
    keep = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    before = re.search(r"\d+", await broker.ctl("eval", "application:get_env(rabbit, max_message_size)."))
    await broker.ctl("eval", keep.format(most))
    try:
        yield
    finally:
        await broker.ctl("eval", keep.format(before[0] if before else _BROKERS_OWN))


async def shown(deployment: Deployment) -> dict[str, int]:
    """Return the size of each dead letter as it is shown, by the id of its message."""
    ids = [str(one["id"]) for one in await listed(deployment.system)]
    found = [await operate(deployment.system, "dead-letters", "show", one, "--json") for one in ids]
    return {answer.objects()[0]["messageId"]: len(answer.out) for answer in found}


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_large_bodies_are_dead_letters(deployment: Deployment, begin: Begin, shared_broker: Broker) -> None:
    """They become dead letters, cut; every process goes on as it was."""
    rate = await deployment.rate()
    (chatbot,) = await deployment.link([HARMED])
    puts = large(deployment, chatbot)
    pids = deployment.pids()
    accepted: list[str] = []

    async def put() -> None:
        accepted.extend((await put_in(deployment.system.amqp_url, puts, pause=_PAUSE)).ids)

    async with (
        bodies_of(max(_SIZES) * 2 * _MEBIBYTE, shared_broker),
        begin(deployment, "4 bodies of 2 to 20 MiB") as measurement,
    ):
        await measurement.during(put())
        await measurement.judge(put_in=len(puts), rate=rate)
        await measurement.healed()
    assert len(accepted) == len(puts)
    assert deployment.pids() == pids
    await eventually(lambda: listed(deployment.system), lambda found: len(found) >= len(accepted))
    assert None not in deployment.pids().values()
    sizes = await shown(deployment)
    assert set(accepted) <= sizes.keys()
    too_large = {name: size for name, size in sizes.items() if size > _CUT}
    assert not too_large, f"dead letters are not cut: {too_large}"
    await deployment.settled()

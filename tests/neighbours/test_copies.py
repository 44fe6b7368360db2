"""Harm 1: commands whose sender has the broker copy them into the other partitions, by the headers CC and BCC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aio_pika import Message
from aio_pika.abc import AbstractChannel

from tests.neighbours.arena import CUSTOMER, HARMED, PARTITIONS, Arena, Chatbot
from tests.neighbours.hearing import until
from tests.neighbours.putting import Put, a_send
from tests.neighbours.trial import RATE, SAMPLES, Begin
from whatsapp_qr_contracts.message import COMMANDS

_COMMANDS = 40
_PAUSE = SAMPLES / RATE / _COMMANDS
"""Seconds between two: they last as long as the neighbours are measured."""
_MOST_DELIVERIES = 4
_BESIDE = 100
"""Messages of neighbours that may lie in the queues at a time."""


def copied(arena: Arena, chatbot: Chatbot) -> list[Put]:
    """Return commands, every second one with CC, the others with BCC."""
    others = [f"message.send.{number}" for number in range(PARTITIONS) if number != HARMED]
    names = [arena.a_name() for _ in range(_COMMANDS)]
    return [
        a_send(chatbot.id, CUSTOMER, name, chatbot.routing_key, **{("CC", "BCC")[number % 2]: others})
        for number, name in enumerate(names)
    ]


async def publish_slowly(channel: AbstractChannel, puts: list[Put]) -> None:
    exchange = await channel.get_exchange(COMMANDS, ensure=False)
    for put in puts:
        message = Message(
            put.body, message_id=put.message_id, type="message.send", delivery_mode=2, headers=dict(put.headers)
        )
        await exchange.publish(message, put.routing_key)
        await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def deepest(arena: Arena, channel: AbstractChannel) -> AsyncIterator[list[int]]:
    """Look every half second how many messages wait; the list has the most of all looks."""
    names, seen = list(await arena.queues()), [0]

    async def look() -> None:
        while True:
            seen[0] = max(seen[0], await arena.waiting(channel, names))
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    yield seen
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking


async def stored(arena: Arena, chatbot: Chatbot) -> list[str]:
    """Return the ids of a chatbot's messages, as GET /conversations shows them."""
    (conversation,) = (await arena.system.get("/conversations", chatbotId=chatbot.id)).json()["data"]
    answer = await arena.system.get(f"/conversations/{conversation['id']}/messages", limit=200)
    return [message["id"] for message in answer.json()["data"]]


async def test_copies_do_not_multiply(arena: Arena, begin: Begin) -> None:
    """Copies that the broker made have no effect of their own, and come to an end."""
    rate = await arena.rate()
    (chatbot,) = await arena.link([HARMED])
    puts = copied(arena, chatbot)
    wanted = [chatbot.sent_as(put.message_id) for put in puts]
    async with begin(arena, "1 copies by CC and BCC") as trial, arena.channel() as channel:
        async with deepest(arena, channel) as seen:
            await trial.during(publish_slowly(channel, puts))
        await trial.judge(put_in=_COMMANDS, rate=rate)
        assert seen[0] <= PARTITIONS * _COMMANDS + _BESIDE, "the messages in the queues multiply"
        await trial.healed()
    sent = arena.ear.sent[str(chatbot.id)]
    assert not await until(lambda: set(wanted) - set(sent), 30)
    assert sent == wanted
    await arena.settled()
    assert len(await arena.system.sent(chatbot.session_id)) == _COMMANDS
    assert await stored(arena, chatbot) == wanted
    assert max(arena.ear.deliveries.values()) <= _MOST_DELIVERIES

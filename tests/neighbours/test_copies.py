"""Harm 1: commands whose sender has the broker copy them into the other partitions, by the headers CC and BCC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aio_pika import Message
from aio_pika.abc import AbstractChannel

from tests.neighbours.deployment import CUSTOMER, HARMED, PARTITIONS, Chatbot, Deployment
from tests.neighbours.measurement import RATE, SAMPLES, Begin
from tests.neighbours.publishing import Put, a_send
from tests.neighbours.receiving import until
from whatsapp_qr_contracts.message import COMMANDS

_COMMANDS = 40
_PAUSE = SAMPLES / RATE / _COMMANDS
"""Seconds between two: they last as long as the neighbours are measured."""
_MOST_DELIVERIES = 4
_BESIDE = 100
"""Messages of neighbours that may lie in the queues at a time."""


def copied(deployment: Deployment, chatbot: Chatbot) -> list[Put]:
    """Return commands, every second one with CC, the others with BCC."""
    others = [f"message.send.{number}" for number in range(PARTITIONS) if number != HARMED]
    names = [deployment.a_name() for _ in range(_COMMANDS)]
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
async def deepest(deployment: Deployment, channel: AbstractChannel) -> AsyncIterator[list[int]]:
    """Look every half second how many messages wait; the list has the most of all looks."""
    names, seen = list(await deployment.queues()), [0]

    async def look() -> None:
        while True:
            seen[0] = max(seen[0], await deployment.waiting(channel, names))
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    yield seen
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking


async def stored(deployment: Deployment, chatbot: Chatbot) -> list[str]:
    """Return the ids of a chatbot's messages, as GET /conversations shows them."""
    (conversation,) = (await deployment.system.get("/conversations", chatbotId=chatbot.id)).json()["data"]
    answer = await deployment.system.get(f"/conversations/{conversation['id']}/messages", limit=200)
    return [message["id"] for message in answer.json()["data"]]


async def test_copies_do_not_multiply(deployment: Deployment, begin: Begin) -> None:
    """Copies that the broker made have no effect of their own, and come to an end."""
    rate = await deployment.rate()
    (chatbot,) = await deployment.link([HARMED])
    puts = copied(deployment, chatbot)
    wanted = [chatbot.sent_as(put.message_id) for put in puts]
    async with begin(deployment, "1 copies by CC and BCC") as measurement, deployment.channel() as channel:
        async with deepest(deployment, channel) as seen:
            await measurement.during(publish_slowly(channel, puts))
        await measurement.judge(put_in=_COMMANDS, rate=rate)
        assert seen[0] <= PARTITIONS * _COMMANDS + _BESIDE, "the messages in the queues multiply"
        await measurement.healed()
    sent = deployment.receiver.sent[str(chatbot.id)]
    assert not await until(lambda: set(wanted) - set(sent), 30)
    assert sent == wanted
    await deployment.settled()
    assert len(await deployment.system.sent(chatbot.session_id)) == _COMMANDS
    assert await stored(deployment, chatbot) == wanted
    assert max(deployment.receiver.deliveries.values()) <= _MOST_DELIVERIES

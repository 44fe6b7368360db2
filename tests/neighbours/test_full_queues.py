"""Harm 3: the AI workers, or the outbound consumer, are away until their queue is full and refuses what comes."""

import json

from aio_pika import Message

from tests.bench.calling import Request, post_all
from tests.neighbours.arena import CUSTOMER, Arena, Chatbot, filled
from tests.neighbours.hearing import JOBS, until
from tests.neighbours.load import Kind
from tests.neighbours.putting import put_in
from tests.neighbours.trial import Begin
from tests.system import eventually

_HOLDS = 20
_BEHIND = 80
"""Messages of each harmful chatbot that come while the queue is full: two of these are more than PREFETCH."""
_LIFTED = 120.0
SENDS = "whatsapp-qr-send"


async def customers_write(arena: Arena, chatbots: list[Chatbot]) -> list[str]:
    """Let customers write so much that the workers' queue is full and much comes behind; return the WhatsApp ids."""
    names = [arena.a_name() for _ in range(_BEHIND * len(chatbots))]

    def make(number: int) -> Request:
        body = {"sessionId": chatbots[number % len(chatbots)].session_id, "from": CUSTOMER, "messageId": names[number]}
        return "/incoming", body | {"message": "Is anybody there?", "timestamp": 1_767_268_800}

    await post_all(arena.system.api, make, len(names), 32)
    return names


async def test_workers_that_are_away(arena: Arena, begin: Begin) -> None:
    """All but the hand-over goes on; when there is room again every job comes, in order per conversation."""
    chatbots, ear = await arena.bulk(), arena.ear
    mix = {Kind.RECEIVED: 2, Kind.SEND: 2, Kind.RECEIPT: 1}
    async with begin(arena, "3 incoming-messages is full", mix, partitions=False) as trial, arena.channel() as channel:
        await ear.rest()
        await arena.limit_queues(f"^{JOBS}$", _HOLDS)
        written = await customers_write(arena, chatbots)
        await eventually(lambda: arena.waiting(channel, [JOBS]), lambda found: found >= _HOLDS)
        # What it costs to take them in is another harm.
        await until(lambda: (name for name in written if name not in ear.events["message.received"]), _LIFTED)
        await trial.during()
        await trial.judge()
        assert not [name for name in written if name not in ear.events["message.received"]], "not stored while full"
        await arena.lift_limits()
        await ear.work()
        await trial.healed()
    written += [sample.key for sample in trial.samples if sample.kind is Kind.RECEIVED]
    left = await until(lambda: (name for name in written if name not in ear.handed_over), _LIFTED)
    assert not left, f"{len(left)} jobs are lost"
    assert not ear.disordered()
    await arena.settled()


async def fill_send_queues(arena: Arena) -> None:
    """Fill every queue of the outbound consumer with rings for messages that are sent already."""
    await arena.limit_queues(f"^{SENDS}", _HOLDS)
    async with arena.channel() as channel:
        for queue in [name for name in await arena.queues() if name.startswith(SENDS)]:
            number = queue.removeprefix(SENDS).removeprefix(".")
            await filled(channel, queue, a_ring(arena, int(number or 0)))


def a_ring(arena: Arena, partition: int) -> Message:
    """Return a doorbell of a message that was sent."""
    chatbot = next(one for one in arena.neighbours if one.partition == partition)
    sent = arena.ear.newest[str(chatbot.id)]
    body = {
        "sessionId": chatbot.session_id,
        "to": sent.customer,
        "message": "Ring.",
        "messageId": sent.message_id,
        "conversationId": sent.conversation_id,
    }
    return Message(json.dumps(body).encode(), message_id=arena.a_name(), type=SENDS, delivery_mode=2)


async def test_senders_that_are_away(arena: Arena, begin: Begin) -> None:
    """All but sending goes on; when there is room and a sender again everything is sent, in order."""
    chatbots, ear = await arena.bulk(), arena.ear
    mix = {Kind.INCOMING: 2, Kind.STORE: 2, Kind.RECEIPT: 1, Kind.SEND: 2}
    async with begin(arena, f"3 {SENDS} is full", mix, partitions=False) as trial:
        trial.leave_out(Kind.SEND)
        (outbound,) = [one for one in arena.system.named("outbound-consumer") if one.alive]
        assert await outbound.stop() == 0
        await fill_send_queues(arena)
        puts = {one: arena.puts(one, _BEHIND, one.routing_key) for one in chatbots}
        await put_in(arena.system.amqp_url, [put for row in zip(*puts.values(), strict=True) for put in row])
        assert await arena.stored([one.sent_as(own[-1].message_id) for one, own in puts.items()])
        await trial.during()
        await trial.judge()
        await arena.lift_limits()
        await arena.system.start("outbound-consumer")
        await trial.healed()
    wanted = {one: [one.sent_as(put.message_id) for put in puts[one]] for one in chatbots}
    left = await until(lambda: unsent(arena, wanted), _LIFTED)
    assert not left, f"not sent after {_LIFTED} s: {left}"
    for one in chatbots:
        assert ear.sent[str(one.id)][-_BEHIND:] == wanted[one]
    await arena.settled()


def unsent(arena: Arena, wanted: dict[Chatbot, list[str]]) -> dict[str, int]:
    """Return how many messages of each chatbot were not sent."""
    found = {str(one.id): len(set(ids) - set(arena.ear.sent[str(one.id)])) for one, ids in wanted.items()}
    return {name: count for name, count in found.items() if count}

"""Harm 3: the AI workers, or the outbound consumer, are away until their queue is full and refuses what comes."""

import json

from aio_pika import Message

from tests.bench.calling import Request, post_all
from tests.neighbours.deployment import CUSTOMER, Chatbot, Deployment, filled
from tests.neighbours.load import Kind
from tests.neighbours.measurement import Begin
from tests.neighbours.publishing import put_in
from tests.neighbours.receiving import JOBS, until
from tests.system import eventually

_HOLDS = 20
_BEHIND = 80
"""Messages of each harmful chatbot that come while the queue is full: two of these are more than PREFETCH."""
_LIFTED = 120.0
SENDS = "whatsapp-qr-send"


async def customers_write(deployment: Deployment, chatbots: list[Chatbot]) -> list[str]:
    """Let customers write so much that the workers' queue is full and much comes behind; return the WhatsApp ids."""
    names = [deployment.a_name() for _ in range(_BEHIND * len(chatbots))]

    def make(number: int) -> Request:
        body = {"sessionId": chatbots[number % len(chatbots)].session_id, "from": CUSTOMER, "messageId": names[number]}
        return "/incoming", body | {"message": "Is anybody there?", "timestamp": 1_767_268_800}

    await post_all(deployment.system.api, make, len(names), 32)
    return names


async def test_workers_that_are_away(deployment: Deployment, begin: Begin) -> None:
    """All but the hand-over goes on; when there is room again every job comes, in order per conversation."""
    chatbots, receiver = await deployment.bulk(), deployment.receiver
    mix = {Kind.RECEIVED: 2, Kind.SEND: 2, Kind.RECEIPT: 1}
    async with (
        begin(deployment, "3 incoming-messages is full", mix, partitions=False) as measurement,
        deployment.channel() as channel,
    ):
        await receiver.rest()
        await deployment.limit_queues(f"^{JOBS}$", _HOLDS)
        written = await customers_write(deployment, chatbots)
        await eventually(lambda: deployment.waiting(channel, [JOBS]), lambda found: found >= _HOLDS)
        # What it costs to take them in is another harm.
        await until(lambda: (name for name in written if name not in receiver.events["message.received"]), _LIFTED)
        await measurement.during()
        await measurement.judge()
        assert not [name for name in written if name not in receiver.events["message.received"]], (
            "not stored while full"
        )
        await deployment.lift_limits()
        await receiver.work()
        await measurement.healed()
    written += [sample.key for sample in measurement.samples if sample.kind is Kind.RECEIVED]
    left = await until(lambda: (name for name in written if name not in receiver.handed_over), _LIFTED)
    assert not left, f"{len(left)} jobs are lost"
    assert not receiver.disordered()
    await deployment.settled()


async def fill_send_queues(deployment: Deployment) -> None:
    """Fill every queue of the outbound consumer with rings for messages that are sent already."""
    await deployment.limit_queues(f"^{SENDS}", _HOLDS)
    async with deployment.channel() as channel:
        for queue in [name for name in await deployment.queues() if name.startswith(SENDS)]:
            number = queue.removeprefix(SENDS).removeprefix(".")
            await filled(channel, queue, a_ring(deployment, int(number or 0)))


def a_ring(deployment: Deployment, partition: int) -> Message:
    """Return a doorbell of a message that was sent."""
    chatbot = next(one for one in deployment.neighbours if one.partition == partition)
    sent = deployment.receiver.newest[str(chatbot.id)]
    body = {
        "sessionId": chatbot.session_id,
        "to": sent.customer,
        "message": "Ring.",
        "messageId": sent.message_id,
        "conversationId": sent.conversation_id,
    }
    return Message(json.dumps(body).encode(), message_id=deployment.a_name(), type=SENDS, delivery_mode=2)


async def test_senders_that_are_away(deployment: Deployment, begin: Begin) -> None:
    """All but sending goes on; when there is room and a sender again everything is sent, in order."""
    chatbots, receiver = await deployment.bulk(), deployment.receiver
    mix = {Kind.INCOMING: 2, Kind.STORE: 2, Kind.RECEIPT: 1, Kind.SEND: 2}
    async with begin(deployment, f"3 {SENDS} is full", mix, partitions=False) as measurement:
        measurement.leave_out(Kind.SEND)
        (outbound,) = [one for one in deployment.system.named("outbound-consumer") if one.alive]
        assert await outbound.stop() == 0
        await fill_send_queues(deployment)
        puts = {one: deployment.puts(one, _BEHIND, one.routing_key) for one in chatbots}
        await put_in(deployment.system.amqp_url, [put for row in zip(*puts.values(), strict=True) for put in row])
        assert await deployment.stored([one.sent_as(own[-1].message_id) for one, own in puts.items()])
        await measurement.during()
        await measurement.judge()
        await deployment.lift_limits()
        await deployment.system.start("outbound-consumer")
        await measurement.healed()
    wanted = {one: [one.sent_as(put.message_id) for put in puts[one]] for one in chatbots}
    left = await until(lambda: unsent(deployment, wanted), _LIFTED)
    assert not left, f"not sent after {_LIFTED} s: {left}"
    for one in chatbots:
        assert receiver.sent[str(one.id)][-_BEHIND:] == wanted[one]
    await deployment.settled()


def unsent(deployment: Deployment, wanted: dict[Chatbot, list[str]]) -> dict[str, int]:
    """Return how many messages of each chatbot were not sent."""
    found = {str(one.id): len(set(ids) - set(deployment.receiver.sent[str(one.id)])) for one, ids in wanted.items()}
    return {name: count for name, count in found.items() if count}

"""Harm 2: a subscriber of events whose queue is full and refuses what comes, and who never reads it."""

from aio_pika import Message

from tests.neighbours.deployment import Deployment, filled
from tests.neighbours.measurement import Begin
from whatsapp_qr_contracts.message import EVENTS

_HELD = 10
_MOST_DELIVERIES = 4
_KINDS = ("classic", "quorum")


async def test_a_full_subscriber_is_nobody_elses_trouble(deployment: Deployment, begin: Begin) -> None:
    """Other subscribers get every event in time, each at most four times; nothing waits for the one that is full."""
    async with (
        begin(deployment, "2 a subscriber refuses", partitions=False) as measurement,
        deployment.channel() as channel,
    ):
        full = [
            await channel.declare_queue(
                f"stuck.{kind}",
                durable=True,
                arguments={"x-queue-type": kind, "x-max-length": _HELD, "x-overflow": "reject-publish"},
            )
            for kind in _KINDS
        ]
        for queue in full:
            await queue.bind(EVENTS, "#")
            await filled(channel, queue.name, Message(b"{}", message_id="filling"))
        deployment.receiver.deliveries.clear()
        await measurement.during()
        await measurement.judge()
        await measurement.healed()
        again = {one: times for one, times in deployment.receiver.deliveries.items() if times > _MOST_DELIVERIES}
        assert not again, f"events came too often: {again}"
        for queue in full:
            await queue.delete(if_unused=False, if_empty=False)
    await deployment.settled()

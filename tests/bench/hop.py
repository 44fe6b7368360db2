"""One raw hop: what a message costs that goes through RabbitMQ and nothing else. It is the unit of the benchmark.

    python tests/bench/hop.py AMQP_URL MESSAGES

Plain aio-pika on asyncio's own loop, one process and one connection: 64 persistent confirmed publishes of 200 bytes
under way to a quorum queue, then consumed with a prefetch of 64 and one ack each. A JSON line says, after each of the
two, how long it took and how much CPU this process used; then it waits for a line on its input.
"""

import asyncio
import json
import sys
import time

import aio_pika

_UNDER_WAY = 64
_BODY = b"x" * 200
_ALONE, _ALONE_PER_SECOND = 200, 50


async def hop(url: str, count: int) -> None:
    """Publish and consume so many messages."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=_UNDER_WAY)
        queue = await channel.declare_queue("hop", durable=True, arguments={"x-queue-type": "quorum"})
        await _publish(channel, queue.name, count // 10)  # both sides warm
        await _consume(queue, count // 10)
        for step, work in (("publish", _publish(channel, queue.name, count)), ("consume", _consume(queue, count))):
            _say("begin", step)
            began, cpu = time.perf_counter(), time.process_time()
            await work
            _say("end", step, seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)
        await _slow(channel, queue.name)
        await queue.delete(if_unused=False, if_empty=False)


async def _publish(channel: aio_pika.abc.AbstractChannel, queue: str, count: int) -> None:
    numbers = iter(range(count))

    async def one_after_another() -> None:
        for _ in numbers:
            await _publish_one(channel, queue)

    await asyncio.gather(*(one_after_another() for _ in range(_UNDER_WAY)))


async def _publish_one(channel: aio_pika.abc.AbstractChannel, queue: str) -> None:
    await channel.default_exchange.publish(
        aio_pika.Message(_BODY, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), routing_key=queue
    )


async def _consume(queue: aio_pika.abc.AbstractQueue, count: int) -> None:
    left, done = count, asyncio.Event()

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        nonlocal left
        await message.ack()
        left -= 1
        if not left:
            done.set()

    tag = await queue.consume(take)
    await done.wait()
    await queue.cancel(tag)


async def _slow(channel: aio_pika.abc.AbstractChannel, queue: str) -> None:
    """Say how long one confirmed publish takes while nothing else is under way.

    Publishes come at the rate at which the service's waiting is measured: what runs seldom runs slowly, on a processor
    that sleeps in between and has forgotten it. The same publish takes a third less at 200 a second, and more than
    twice as long at 1 a second.
    """
    took = []
    for _ in range(_ALONE):
        began = time.perf_counter()
        await _publish_one(channel, queue)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(1 / _ALONE_PER_SECOND)
    _say("alone", "publish", median=sorted(took)[_ALONE // 2])


def _say(what: str, step: str, **values: float) -> None:
    print(json.dumps({"what": what, "step": step, **values}), flush=True)
    if what != "alone":
        sys.stdin.readline()  # whoever reads this measures the broker now


if __name__ == "__main__":
    asyncio.run(hop(sys.argv[1], int(sys.argv[2])))

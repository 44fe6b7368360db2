"""How many messages per second the whole service moves on this machine: real processes, broker and database.

    python tests/bench/throughput.py sqlite|postgres

Prints, for customers' messages and for sends, how fast they are accepted and how fast they are through, the CPU
seconds of each process, and the speed of bare confirmed publishes to compare with: only ratios of one run mean much.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aio_pika
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.servers import Broker, Postgres
from tests.system import System, running

MESSAGES = 1600
SESSIONS = 16
AT_ONCE = 32


async def rate(call: Callable[[int], Awaitable[Any]]) -> float:
    """Make all calls, some at once, and return how many were answered per second."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with free:
            await call(number)

    started = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(MESSAGES)))
    return MESSAGES / (time.monotonic() - started)


async def measure(system: System) -> None:
    """Measure both directions."""
    linked = await asyncio.gather(*(system.connect() for _ in range(SESSIONS)))
    await system.faults(receipts=False)
    jobs, events = await system.jobs(), await system.hear("whatsapp-qr.events", "message.sent")

    async def incoming(number: int) -> None:
        body = {
            "from": f"54911{number % 50:08d}",
            "message": "x",
            "messageId": f"W{number}",
            "timestamp": 1_700_000_000,
        }
        answer = await system.post("/incoming", sessionId=linked[number % SESSIONS][1], **body)
        assert answer.status_code == 200, answer.text

    async def send(number: int) -> None:
        chatbot_id = str(linked[number % SESSIONS][0])
        answer = await system.post("/send", chatbotId=chatbot_id, to=f"54911{number % 50:08d}", message="x")
        assert answer.status_code == 202, answer.text

    for name, call, through in (("incoming", incoming, jobs), ("send", send, events)):
        started = time.monotonic()
        accepted = await rate(call)
        await through.arrived(MESSAGES)
        print(f"{name}: accepted {accepted:.0f}/s, through {MESSAGES / (time.monotonic() - started):.0f}/s")
    channel = await system.channel()
    queue = await channel.declare_queue("bench", durable=True, arguments={"x-queue-type": "quorum"})
    bare = await rate(
        lambda number: channel.default_exchange.publish(
            aio_pika.Message(b"x" * 200, delivery_mode=2, message_id=str(number)), queue.name
        )
    )
    print(f"bare confirmed publish: {bare:.0f}/s")
    for process in system.processes:
        if process._process is not None and process._process.returncode is None:
            times = psutil.Process(process._process.pid).cpu_times()
            print(f"{process.name}: {times.user + times.system:.1f} CPU s")


async def main(kind: str) -> None:
    """Start everything, measure, end everything."""
    async with AsyncExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        broker, database = Broker(), f"sqlite+aiosqlite:///{folder / 'bench.db'}"
        ends.push_async_callback(broker.close)
        await broker.start()
        if kind == "postgres":
            postgres = Postgres()
            ends.push_async_callback(postgres.close)
            await postgres.start()
            database = await postgres.create_database()
        fast = {"SEND_RATE": "100000", "SEND_BURST": "100000"}
        async with running(await broker.renew(), database, folder, **fast) as system:
            await measure(system)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

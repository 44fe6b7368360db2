"""What is done to processes, servers and phones: each is harmed while its context is entered, and well again after."""

import asyncio
import json
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue
from sqlalchemy import make_url
from yarl import URL

from service.tasks import end
from tests.faults.deployment import TAKEN, Deployment
from tests.faults.retried_calls import until_accepted
from tests.system import Process, eventually

KINDS = ("ingress", "session-consumer", "conversation-consumer", "outbound-consumer")
HANDLERS = {
    "session-consumer": (
        "session.initialize",
        "gateway.qr",
        "gateway.connected",
        "session.disconnect",
        "direct whatsapp-qr.events",
        "look whatsapp-qr.events",
    ),
    "conversation-consumer": (
        "message.send",
        "gateway.message",
        "gateway.receipt",
        "direct whatsapp-qr.events",
        "direct incoming-messages",
        "direct whatsapp-qr-send",
        "look whatsapp-qr.events",
        "look incoming-messages",
        "marks",
    ),
    "outbound-consumer": ("whatsapp-qr-send", "claim", "send", "record", "direct whatsapp-qr.events", "marks"),
    "ingress": ("POST /send", "POST /incoming", "POST /webhook"),
}


async def _any(deployment: Deployment, dice: random.Random, kinds: tuple[str, ...] = KINDS) -> Process:
    """Return a process that runs, as soon as there is one of its kind."""
    return dice.choice(await _running(deployment, dice.choice(kinds)))


async def _running(deployment: Deployment, kind: str) -> list[Process]:
    async def look() -> list[Process]:
        return deployment.running(kind)

    found: list[Process] = await eventually(look)
    return found


def flagged(name: str) -> Callable[[Deployment, random.Random], AbstractAsyncContextManager[None]]:
    """Return what all processes suffer while a file is there: see `process`."""

    @asynccontextmanager
    async def suffered(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
        flag = deployment.flags / name
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    return suffered


# Processes


@asynccontextmanager
async def killed(deployment: Deployment, dice: random.Random) -> AsyncIterator[None]:
    """Any process is killed; its supervisor starts it again."""
    (await _any(deployment, dice, (*KINDS, "simulator"))).send_signal(signal.SIGKILL)
    yield


@asynccontextmanager
async def killed_at_a_step(deployment: Deployment, dice: random.Random) -> AsyncIterator[None]:
    """Four times a process is killed at some step of some handler, if it comes there."""
    plan = deployment.flags / "crash"
    for _ in range(4):
        kind = dice.choice(KINDS)
        plan.write_text(f"{kind} {dice.choice(HANDLERS[kind])} {dice.randint(1, 4)}")
        for _ in range(20):
            await asyncio.sleep(0.1)
            if not plan.exists():
                break
    plan.unlink(missing_ok=True)
    yield


@asynccontextmanager
async def rolled_out(deployment: Deployment, dice: random.Random, *kinds: str) -> AsyncIterator[None]:
    """Every process of a kind, one after another, is told to end and started anew, as a deployment does."""
    kind = dice.choice(kinds or KINDS)
    for process in deployment.running(kind):
        await deployment.supervisor.terminate(process)
        deployment.supervisor.resume(process)
        await deployment.started(process)
    yield


@asynccontextmanager
async def joined(deployment: Deployment, dice: random.Random) -> AsyncIterator[None]:
    """One process more takes its share of the partitions, and gives it back."""
    kind = dice.choice(KINDS[1:])
    (process,) = await deployment.system.start(kind)
    try:
        yield
    finally:
        await deployment.supervisor.terminate(process)


@asynccontextmanager
async def hanging(deployment: Deployment, dice: random.Random) -> AsyncIterator[None]:
    """A process stops in the middle of what it does, and goes on later as if nothing had been."""
    process = await _any(deployment, dice, KINDS[1:])
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if process.alive:
            process.send_signal(signal.SIGCONT)


# The broker


@asynccontextmanager
async def broker_killed(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """The broker is killed as by a power cut, with what waits in it."""
    await deployment.broker.kill()
    try:
        yield
    finally:
        await deployment.broker.start()


@asynccontextmanager
async def broker_restarted(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """The broker is stopped and started."""
    await deployment.broker.stop()
    try:
        yield
    finally:
        await deployment.broker.start()


@asynccontextmanager
async def broker_memory_alarm(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """The broker takes no messages for want of memory."""
    await deployment.broker.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        yield
    finally:
        await deployment.broker.ctl("set_vm_memory_high_watermark", "0.4")


@asynccontextmanager
async def broker_disk_full(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """The broker takes no messages for want of disk space."""
    await deployment.broker.ctl("set_disk_free_limit", "1000000000000000")
    try:
        yield
    finally:
        await deployment.broker.ctl("set_disk_free_limit", "50000000")


@asynccontextmanager
async def jobs_full(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """The AI workers' queue is full, and they take one job after another: some publishes are refused, some are not."""
    vhost = URL(deployment.broker_url).path.removeprefix("/")
    async with await aio_pika.connect(deployment.broker_url) as connection:
        channel = await connection.channel()
        jobs = await channel.get_queue("incoming-messages")
        limit = json.dumps({"max-length": (jobs.declaration_result.message_count or 0) + 3})
        await deployment.broker.ctl(
            "set_policy", "-p", vhost, "full", "^incoming-messages$", limit, "--apply-to", "queues"
        )
        working = asyncio.create_task(_take_slowly(channel, jobs))
        try:
            yield
        finally:
            await end([working])  # the client library may lose a cancellation
            await deployment.broker.ctl("clear_policy", "-p", vhost, "full")


async def _take_slowly(channel: AbstractChannel, jobs: AbstractQueue) -> None:
    while True:
        if job := await jobs.get(fail=False):
            taken = aio_pika.Message(job.body, message_id=job.message_id, delivery_mode=2)
            await channel.default_exchange.publish(taken, TAKEN)
            await job.ack()
        await asyncio.sleep(0.1)


@asynccontextmanager
async def subscriber_full(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """A subscriber to all events has a queue that refuses what it has no room for, and takes nothing."""
    async with await aio_pika.connect(deployment.broker_url) as connection:
        channel = await connection.channel()
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue(exclusive=True, arguments=full)
        await queue.bind("whatsapp-qr.events", "#")
        yield


# The database


@asynccontextmanager
async def database_away(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """PostgreSQL is stopped; a SQLite file is locked by somebody else."""
    if deployment.postgres is not None:
        await deployment.postgres.stop()
        try:
            yield
        finally:
            await deployment.postgres.start()
        return
    connection = sqlite3.connect(
        str(make_url(deployment.system.database_url).database),
        isolation_level=None,
        timeout=30,
        check_same_thread=False,
    )
    await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@asynccontextmanager
async def database_killed(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """PostgreSQL is killed as by a power cut, and recovers."""
    assert deployment.postgres is not None
    await deployment.postgres.kill()
    try:
        yield
    finally:
        await deployment.postgres.start()


# The gateway


@asynccontextmanager
async def gateway_away(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """Nobody listens where the gateway was."""
    (process,) = await _running(deployment, "simulator")
    await deployment.supervisor.terminate(process)
    try:
        yield
    finally:
        deployment.supervisor.resume(process)


@asynccontextmanager
async def phones_dropped(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
    """WhatsApp drops the connections of two accounts; they come back without a QR code."""
    sessions = [link.session_id for link in deployment.ledger.links[:2]]

    async def tell(what: str, *accepted: int) -> None:
        for session_id in sessions:
            url = f"{deployment.system.controls}/sessions/{session_id}/{what}"
            await until_accepted(lambda url=url: deployment.system.http.post(url), *accepted)

    await tell("drop", 200, 409)  # 409: dropped by a try whose answer was lost
    try:
        yield
    finally:
        await tell("reconnect", 200, 409)

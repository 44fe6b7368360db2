"""A real consumer that has all that its prefetch allows, each as large as the broker lets in, stays below its limit."""

import json
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest

from service.messaging import topology
from service.messaging.topology import CONVERSATIONS, SESSIONS, PartitionedQueue
from service.operating.comparing import MAX_MESSAGE_SIZE
from service.settings import Settings
from tests.deploy import memory
from tests.deploy.manifests import container, objects
from tests.system import Process, System, eventually
from whatsapp_qr_contracts.message import MAX_BODY_BYTES

PARTITIONS = int(Settings.model_fields["partitions"].default)
PREFETCH = int(Settings.model_fields["prefetch"].default)
MORE = 16  # than the prefetch, for each partition: what is done makes room for the next


def a_body(size: int) -> bytes:
    """Return a command of exactly that size; what it does not know, its reader ignores."""
    known = {"chatbotId": str(uuid4()), "to": "5491155556666", "message": "Buenas", "more": ""}
    return json.dumps(known | {"more": "x" * (size - len(json.dumps(known)))}).encode()


async def publish(url: str, queue: PartitionedQueue, size: int) -> int:
    """Publish into each partition, and into the entry what belongs to all of them; return how many in all."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        names = [*(queue.queue_name(number) for number in range(PARTITIONS)), *([queue.entry] if queue.entry else [])]
        for name in names:
            for _ in range(PREFETCH + MORE):
                kind = {"type": queue.carries[0].name, "headers": {"schema-version": 1}}
                message = aio_pika.Message(a_body(size), message_id=str(uuid4()), delivery_mode=2, **kind)
                await channel.default_exchange.publish(message, name)
    return len(names) * (PREFETCH + MORE)


def peak(process: Process) -> float:
    """Return the most memory that a process has had, in MiB."""
    assert process._process is not None
    status = Path(f"/proc/{process._process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it so")
@pytest.mark.parametrize(
    ("role", "queue", "size"),
    [
        ("conversation-consumer", CONVERSATIONS, MAX_BODY_BYTES),
        ("conversation-consumer", CONVERSATIONS, MAX_MESSAGE_SIZE),
        ("session-consumer", SESSIONS, MAX_MESSAGE_SIZE),
    ],
)
async def test_a_consumer_has_memory_for_its_prefetch(
    role: str, queue: PartitionedQueue, size: int, clean_broker: str, sqlite_database: str, tmp_path: Path
) -> None:
    """As it is shipped, with all partitions for itself: whether it takes what it gets or has to refuse it."""
    system = System(clean_broker, sqlite_database, tmp_path)
    try:
        await system.migrate()
        await topology.declare(clean_broker, PARTITIONS)
        published = await publish(clean_broker, queue, size)
        [consumer] = await system.start(role)
        await eventually(
            lambda: consumer.metric(system.http, "whatsapp_qr_handled_total"), lambda count: count >= published
        )
        limit = container(objects("overlays/production"), f"whatsapp-qr-{role}")["resources"]["limits"]["memory"]
        assert peak(consumer) < memory.mebibytes(limit)
    finally:
        await system.close()

"""Thirty kill -9 in a row with a full prefetch: no crash counts against a message, so none is given up."""

import asyncio
import json
import time
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

from service.errors import DatabaseUnavailable
from service.persistence.database import Database
from tests.amqp import Amqp
from tests.integration.test_outages import dead_letters
from tests.system import Process, System, be_a_process, eventually, running
from whatsapp_qr_contracts.commands import SendMessage

CUSTOMER = "5491144445555"
KILLS = 30
PREFETCH = 8
MORE_THAN_PREFETCH = 10
QUEUES = {"conversation-consumer": "whatsapp-qr.conversations", "outbound-consumer": "whatsapp-qr-send"}
SETTINGS = {"PARTITIONS": "1", "PREFETCH": str(PREFETCH), "SEND_RATE": "1000", "SEND_BURST": "1000"}


class Traffic:
    """Messages of one chatbot, both ways."""

    def __init__(self, system: System, amqp: Amqp, chatbot_id: UUID, session_id: str) -> None:
        self.system = system
        self.amqp = amqp
        self.chatbot_id = chatbot_id
        self.session_id = session_id
        self.texts: list[str] = []
        self._numbers = count()

    async def put_in(self) -> None:
        """Put in more than one prefetch of each way."""
        for number in (next(self._numbers) for _ in range(MORE_THAN_PREFETCH)):
            text = str(number)
            command = SendMessage(chatbot_id=self.chatbot_id, to=CUSTOMER, message=text)
            await self.amqp.publish(command.wire(), "message.send.0", message_id=f"M{number}", delivery_mode=2)
            report = {"sessionId": self.session_id, "from": CUSTOMER, "timestamp": int(time.time())}
            answer = await self.system.post("/incoming", **report, message=text, messageId=f"WA{number}")
            assert answer.status_code == 200
            self.texts.append(text)

    async def sent(self) -> list[str]:
        return [message["message"] for message in await self.system.sent(self.session_id)]

    async def handed(self) -> list[str]:
        return [json.loads(job.body)["content"] for job in (await self.system.jobs()).messages]


def be_cut_off(name: str, environment: dict[str, str], log: Path) -> None:
    """Be a process that may consume, and for which the database is away as soon as it has work to do."""
    transact = Database.transact

    async def away(self: Database, work: Any, *, urgent: bool = False) -> Any:
        if urgent:  # heartbeats
            return await transact(self, work, urgent=True)
        detail = "away"
        raise DatabaseUnavailable(detail)

    Database.transact = away  # type: ignore[method-assign]
    be_a_process(name, environment, log)


async def kill_in_a_row(system: System, amqp: Amqp, victim: str) -> None:
    """Kill consumers that hold what they get, because the database is away, as soon as each has its whole prefetch."""
    queue = QUEUES[victim]
    total = await amqp.waiting(queue)
    assert total > PREFETCH
    for _ in range(KILLS):
        process: Process = system._process(victim)
        process._entry = be_cut_off
        await process.start()
        try:
            await amqp.until_waiting(queue, range(total - PREFETCH + 2), seconds=60)  # a probe may have come in
        finally:
            await process.kill()
        await amqp.until_waiting(queue, range(total, total + PREFETCH))
        total = await amqp.waiting(queue)


async def stop(system: System, name: str) -> None:
    (process,) = system.named(name)
    assert await process.stop() == 0


# One kind of database is enough: while the consumers are killed none has any.
async def test_thirty_kills_in_a_row_give_nothing_up(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Each with a full prefetch, of both consumers: no dead letter; then all is done once, in order, both ways."""
    async with (
        running(clean_broker, sqlite_database, tmp_path, careful=True, **SETTINGS) as system,
        Amqp(clean_broker) as amqp,
        Amqp(clean_broker) as other,
    ):
        traffic = Traffic(system, amqp, *await system.connect())
        jobs, events = await system.jobs(), await system.hear()
        await stop(system, "outbound-consumer")
        await traffic.put_in()
        await jobs.arrived(MORE_THAN_PREFETCH)
        await amqp.until_waiting(QUEUES["outbound-consumer"], MORE_THAN_PREFETCH, seconds=60)
        await stop(system, "conversation-consumer")
        await traffic.put_in()
        await asyncio.gather(
            kill_in_a_row(system, amqp, "conversation-consumer"), kill_in_a_row(system, other, "outbound-consumer")
        )
        await system.start(*QUEUES)
        assert await eventually(traffic.sent, lambda found: len(found) >= len(traffic.texts)) == traffic.texts
        assert await eventually(traffic.handed, lambda found: len(found) >= len(traffic.texts)) == traffic.texts
        await events.arrived(len(traffic.texts), of_type="message.read")
        assert await dead_letters(system) == 0

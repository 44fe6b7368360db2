"""SIGTERM in the middle of work: what is in flight is finished, the process ends with status 0, nothing is repeated."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from service import tasks
from service.domain.dead_letters import DeadLetter
from service.messaging.dead_letter_queue import DeadLetterQueue
from service.messaging.topology import DEAD_LETTERS
from tests.amqp import Amqp, publishing, until
from tests.integration.test_outages import dead_letters
from tests.system import CONSUMERS, System, eventually, running
from whatsapp_qr_contracts.partitions import partition_of

CUSTOMER = "5491144445555"
# Whoever leaves a send unfinished keeps the lane waiting for GATEWAY_TIMEOUT and more.
SETTINGS = {"SEND_RATE": "1000", "SEND_BURST": "1000", "GATEWAY_TIMEOUT": "100", "PREFETCH": "4"}


class Load:
    """Messages of one chatbot both ways, one after another, and a new chatbot now and then, as careful callers."""

    def __init__(self, system: System, chatbot_id: UUID, session_id: str) -> None:
        self.system = system
        self.chatbot_id = chatbot_id
        self.session_id = session_id
        self.texts: list[str] = []
        self.chatbots: list[str] = []
        self._stopping = False

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Let everything flow, then let all that was begun be accepted."""
        tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._link())]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)

    async def _write(self) -> None:
        for number in count():
            if self._stopping:
                return
            text = str(number)
            report = {"sessionId": self.session_id, "from": CUSTOMER, "timestamp": int(time.time())}
            await self._accepted("/incoming", {}, **report, message=text, messageId=f"WA{self.chatbot_id}{text}")
            sent = {"chatbotId": str(self.chatbot_id), "to": CUSTOMER, "message": text}
            await self._accepted("/send", {"Idempotency-Key": text}, **sent)
            self.texts.append(text)

    async def _link(self) -> None:
        while not self._stopping:
            chatbot_id = str(uuid4())
            await self._accepted("/init", {}, chatbotId=chatbot_id)
            await self.shows_a_code(chatbot_id)
            self.chatbots.append(chatbot_id)

    async def shows_a_code(self, chatbot_id: str) -> None:
        """Wait until a chatbot has a QR code."""

        async def look() -> str:
            answer = await self.system.get(f"/session/{chatbot_id}")
            return answer.json()["data"]["status"] if answer.is_success else answer.text

        with suppress(httpx.TransportError):  # the ingress is being replaced: nothing is said about the chatbot
            await eventually(look, lambda status: status == "QR_READY")

    async def _accepted(self, path: str, headers: dict[str, str], **body: object) -> None:
        """Call until it is accepted, as careful callers do: again where nobody answers, or with 503."""
        while True:
            with suppress(httpx.TransportError):
                answer = await self.system.http.post(self.system.api + path, json=body, headers=headers)
                if answer.is_success:
                    return
                assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.05)

    async def progress(self) -> None:
        """Wait until more has gone through all processes."""
        before = await self._counts()
        await eventually(self._counts, lambda now: all(after > count for count, after in zip(before, now, strict=True)))

    async def _counts(self) -> tuple[int, ...]:
        return len(await self.sent()), len(await self.handed()), len(self.chatbots)

    async def sent(self) -> list[str]:
        return [message["message"] for message in await self.system.sent(self.session_id)]

    async def handed(self) -> list[str]:
        return [json.loads(job.body)["content"] for job in (await self.system.jobs()).messages]


@pytest.mark.one_database("postgres")
async def test_a_rolling_restart_of_everything_is_not_noticed(
    clean_broker: str, database_url: str, tmp_path: Path
) -> None:
    """Each process is replaced under load: all is done in order, each job comes once, nothing is mended."""
    async with running(clean_broker, database_url, tmp_path, careful=True, **SETTINGS, SWEEP_AGE="15") as system:
        load = Load(system, *await system.connect())
        jobs, events = await system.jobs(), await system.hear()
        async with load.flowing():
            for kind in CONSUMERS:
                await load.progress()
                (old,) = system.named(kind)
                await system.start(kind)
                assert await old.stop() == 0
            (ingress,) = system.named("ingress")
            assert await ingress.stop() == 0
            await system.start("ingress")
            await load.progress()
        assert await eventually(load.sent, lambda found: len(found) >= len(load.texts)) == load.texts
        assert await eventually(load.handed, lambda found: len(found) >= len(load.texts)) == load.texts
        await events.arrived(len(load.texts), of_type="message.read")
        ids = [job.message_id for job in jobs.messages]
        assert len(ids) == len(set(ids))
        for chatbot_id in load.chatbots:
            await load.shows_a_code(chatbot_id)
        (session_consumer,) = [process for process in system.named("session-consumer") if process.alive]
        assert await session_consumer.metric(system.http, "whatsapp_qr_redriven_total") == 0
        assert await dead_letters(system) == 0


async def test_an_answer_that_somebody_waits_for_is_given(
    clean_broker: str, sqlite_database: str, tmp_path: Path
) -> None:
    """An ingress that is told to stop answers the /init that waits for its outcome, and ends with status 0."""
    async with running(clean_broker, sqlite_database, tmp_path, careful=True) as system, Amqp(clean_broker) as amqp:
        (session_consumer,) = system.named("session-consumer")
        assert await session_consumer.stop() == 0
        chatbot_id = uuid4()
        waiting = asyncio.create_task(system.post("/init", chatbotId=str(chatbot_id)))
        partition = partition_of(str(chatbot_id), 4)
        await amqp.until_waiting(f"whatsapp-qr.sessions.{partition}" if partition else "whatsapp-qr.sessions", 1)
        (ingress,) = system.named("ingress")
        ending = asyncio.create_task(ingress.stop())
        await system.start("session-consumer")
        assert (await waiting).status_code == 200
        assert await ending == 0


async def test_a_send_that_is_under_way_is_finished(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """An outbound consumer that is told to stop waits for the gateway and records its answer; the next one goes on."""
    async with running(clean_broker, sqlite_database, tmp_path, careful=True, **SETTINGS) as system:
        chatbot_id, session_id = await system.connect()
        await system.faults(answer_latency=2)
        texts = ["first", "second"]
        answers = [
            (await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message=text)).json() for text in texts
        ]
        await eventually(lambda: system.sent(session_id))
        (outbound,) = system.named("outbound-consumer")
        assert await outbound.stop() == 0
        (first, second) = [await system.message(answer["messageId"]) for answer in answers]
        assert first["sentAt"]
        assert second["deliveryStatus"] == "PENDING"
        await system.faults()
        await system.start("outbound-consumer")
        sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) >= len(texts))
        assert [message["message"] for message in sent] == texts
        assert (await system.message(answers[0]["messageId"]))["attempts"] == 0


async def test_a_reader_of_dead_letters_is_ended_whole(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end again and again while it keeps a dead letter, it leaves no subscription that acknowledges nothing."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.02)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def keep(_dead: DeadLetter) -> None:
        begun.set()
        await may_end.wait()

    async with publishing(clean_broker), Amqp(clean_broker) as amqp:
        reading = asyncio.create_task(DeadLetterQueue(clean_broker, 1).consume(keep))
        await amqp.publish(b"?", "nobody.reads", message_id="m")
        await begun.wait()
        ending = asyncio.create_task(tasks.end([reading]))
        await until(lambda: reading.done() or reading.cancelling() > 2)
        may_end.set()
        await ending

        async def readers() -> int | None:
            queue = await amqp.channel.declare_queue(DEAD_LETTERS, passive=True)
            return queue.declaration_result.consumer_count

        await eventually(readers, lambda count: count == 0, seconds=10)

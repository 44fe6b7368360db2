"""A running service whose processes are killed at given steps and started again, as a supervisor does."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import aio_pika
import httpx
from sqlmodel import SQLModel, col, select

from service.persistence.database import Database
from service.persistence.tables import MessageRow
from tests.faults.process import live
from tests.faults.retried_calls import until_accepted
from tests.faults.supervising import KILLED, Supervisor
from tests.system import CONSUMERS, Heard, System, eventually
from whatsapp_qr_contracts.commands import Command

PATIENCE = 40.0


@dataclass
class Run:
    """One run of a handler."""

    steps: dict[int, str] = field(default_factory=dict)
    shared: bool = False
    """Whether it is for several messages: then each step has several lines."""

    @property
    def kinds(self) -> list[str]:
        return [kind for _, kind in sorted(self.steps.items())]


class Drill:
    """The service, what was heard of it, and the folder through which each of its processes is talked to."""

    def __init__(self, system: System, database: Database, supervisor: Supervisor) -> None:
        self.system = system
        self.database = database
        self.supervisor = supervisor
        self.events = Heard()
        self.jobs = Heard()
        self._channel: aio_pika.abc.AbstractChannel | None = None

    async def listen(self) -> None:
        self.events, self.jobs = await self.system.hear(), await self.system.jobs()
        self._channel = await self.system.channel()

    async def command(self, command: Command, command_id: str) -> None:
        """Publish a command under the name that any client knows."""
        message = aio_pika.Message(command.wire(), message_id=command_id, type=command.name, delivery_mode=2)
        await self.publish(command.exchange, command.name, message)

    async def publish(self, exchange: str, key: str, message: aio_pika.Message) -> None:
        assert self._channel is not None
        await (await self._channel.get_exchange(exchange, ensure=False)).publish(message, key)

    async def insist(self, path: str, *, key: str | None = None, **body: object) -> httpx.Response:
        """POST until it is answered, as a sane client does: the same body under the same key."""
        headers = {} if key is None else {"Idempotency-Key": key}
        url = f"{self.system.api}{path}"
        answer, _ = await until_accepted(lambda: self.system.http.post(url, json=body, headers=headers), 200, 202)
        return answer

    async def rows(self, table: type[SQLModel], **values: object) -> list[SQLModel]:
        """Return the rows with these values."""
        query = select(table).where(*(col(getattr(table, name)) == value for name, value in values.items()))
        return await self.database.read(lambda tx: _listed(tx, query))

    async def message(self, chatbot_id: UUID, text: str) -> MessageRow | None:
        """Return the message with a content; it must be the only one."""
        found = await self.rows(MessageRow, chatbot_id=chatbot_id, content=text)
        assert len(found) <= 1, f"stored {len(found)} times: {text}"
        return found[0] if found else None  # type: ignore[return-value]

    async def has_message(self, chatbot_id: UUID, text: str, *, told: bool = False, **values: object) -> MessageRow:
        """Wait for a message that is as given; `told`: nothing of it is left to be told."""

        def is_so(row: MessageRow | None) -> bool:
            if row is None or (told and not (row.handed_over and row.told_version == row.version)):
                return False
            return all(getattr(row, name) == value for name, value in values.items())

        return await eventually(lambda: self.message(chatbot_id, text), is_so, seconds=PATIENCE)

    async def heard_once(self, of_type: str, mark: str) -> None:
        """Wait for an event, or a job, with a text in its body; it must have one id."""
        heard = self.jobs if of_type == "incoming-messages" else self.events

        async def ids() -> set[str | None]:
            alike = (message for message in heard.messages if mark in message.body.decode())
            return {message.message_id for message in alike if of_type in {message.type, message.routing_key}}

        found = await eventually(ids, seconds=PATIENCE)
        assert len(found) == 1, f"{of_type} about {mark} under {len(found)} ids"

    # Crashes

    def folder(self, process: str) -> Path:
        return self.system.folder / process

    async def steps(
        self, process: str, handler: str, drive: Awaitable[object], ended: Callable[[list[str]], bool]
    ) -> dict[int, str] | None:
        """Let something happen, and return the steps of the handler's longest run that was ever recorded as a whole.

        Returns:
            None where each run was one for several messages: such a batch has more steps.
        """
        record = self.folder(process) / "record"

        async def runs() -> list[Run]:
            return [run for run in self._recorded(process, handler) if 1 in run.steps and ended(run.kinds)]

        record.touch()
        await drive
        alone = [run.steps for run in await eventually(runs) if not run.shared]
        record.unlink()
        return max(alone, key=len, default=None)  # others may be about old news

    def _recorded(self, process: str, handler: str, since: int = 0) -> list[Run]:
        """Return what was recorded of each run of a handler."""
        runs: dict[str, Run] = defaultdict(Run)
        mine: set[str] = set()
        for line in self._log(process)[since:]:
            who, name, step, kind = line.rsplit(" ", 3)
            run = runs[name]
            run.shared |= run.steps.get(int(step)) is not None
            run.steps[int(step)] = kind
            if who == f"{process} {handler}":
                mine.add(name)
        return [run for name, run in runs.items() if name in mine]

    def _log(self, process: str) -> list[str]:
        log = self.folder(process) / "steps.log"
        return log.read_text().splitlines() if log.exists() else []

    async def crash(
        self, process: str, handler: str, step: int | str, drive: Awaitable[object], ended: Callable[[list[str]], bool]
    ) -> bool:
        """Let something happen, and see that it kills a process at a step.

        Returns:
            False where the handler ended before that step: on a busy machine another may have done its work.
        """
        folder, deaths = self.folder(process), len(self.supervisor.ended[process])
        taken = folder / "crash.taken"
        taken.unlink(missing_ok=True)
        (folder / "record").touch()
        since = len(self._log(process))
        (folder / "armed").write_text(f"{process} {handler} {step}\n")
        (folder / "armed").rename(folder / "crash")
        driving = asyncio.ensure_future(drive)

        async def over() -> bool:
            return taken.exists() or any(ended(run.kinds) for run in self._recorded(process, handler, since))

        async def died() -> list[int]:
            return self.supervisor.ended[process][deaths:]

        try:
            await eventually(over)
        finally:
            (folder / "crash").unlink(missing_ok=True)
            (folder / "record").unlink()
        if killed := taken.exists():
            assert await eventually(died) == [KILLED]
        await driving
        return killed


async def _listed(tx: object, query: object) -> list[SQLModel]:
    return list(await tx.scalars(query))  # type: ignore[attr-defined]


@asynccontextmanager
async def drilling(amqp_url: str, database_url: str, folder: Path, **settings: str) -> AsyncIterator[Drill]:
    """Run the whole service; whatever ends is started again."""
    system = System(amqp_url, database_url, folder, entry=live, **settings)
    database = Database(database_url)
    supervisor = Supervisor(system.processes)
    drill = Drill(system, database, supervisor)
    try:
        await system.migrate()
        names = ("ingress", *CONSUMERS)
        for name in names:
            drill.folder(name).mkdir()
        await asyncio.gather(
            system.start("simulator"), *(system.start(name, FAULTS_FOLDER=str(drill.folder(name))) for name in names)
        )
        await drill.listen()
        supervisor.start()
        yield drill
    finally:
        await supervisor.stop()
        await database.close()
        await system.close()

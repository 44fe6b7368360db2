"""A process of the service that can be killed at each of its steps, given a wrong clock, a full disk or a mutant.

A step is what the outside world may notice of a handler: a commit and what follows it, a publish and its confirmation,
a call of the gateway and its answer, an acknowledgement. What a test asks for lies in the folder FAULTS_FOLDER:

crash     one line `<process> <handler> <step>`, where `*` stands for any process or handler, and a step is its number
          or its kind: who comes to that step
          first renames the file to `crash.taken` and kills itself before it does what the step does
full      while it exists SQLite's disk is full
unsure    while it exists each third transaction is committed, and who waits for it is told that it failed
refused   while it exists each third job is refused, as by a queue that is full for a moment
record    while it exists each step is appended to `steps.log`: `<process> <handler> <run> <step> <kind>`; of a batch
          one line for each message

A handler is one of

<message>             a batch that has such a message; `entry <message>` where it came without a partition
direct <destination>  a relay publishes what was just committed
look <destination>    a relay tells a page of rows, and writes down that it has
marks                 confirmations are written down
claim, send, record   a round of the outbound consumer, a call of the gateway, the round that records an answer
<singleton job>       one run of it; of the sweeper, one that has woken a lane; of the dead letters' queue, one letter
<METHOD> <route>      a request

FAULTS_SKEW says by how many seconds the clock of the process is wrong, FAULTS_MUTANT which defect it has.
"""

import importlib
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncSession

from service import apps
from service.consumers.outbound import Sender
from service.consumers.relay import Relay
from service.errors import DatabaseUnavailable, GatewayRefused, PublishRefused
from service.gateway import Gateway
from service.messaging import dead_letter_queue
from service.messaging.handling import BatchProcessor
from service.messaging.inbox import Delivery
from service.messaging.publishing import Publisher
from service.messaging.receiving import is_probe, name_of
from service.persistence import sweeping
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.singletons import running
from service.singletons.running import SingletonJob
from tests.faults.clocks import set_clocks_wrong
from tests.system import be_a_process
from whatsapp_qr_contracts.message import JOBS

_PREFIX = "/whatsapp-qr"
_NO_LIMIT = 1_073_741_823


def live(name: str, environment: dict[str, str], log: Path) -> None:
    """Be a process with the faults that its environment asks for."""
    if mutant := environment.get("FAULTS_MUTANT"):
        importlib.import_module("tests.faults.mutants").install(mutant)  # before the hooks, so that they see it
    if skew := float(environment.get("FAULTS_SKEW") or 0):
        set_clocks_wrong(skew)
    if folder := environment.get("FAULTS_FOLDER"):
        _install(Faults(name, Path(folder)))
    be_a_process(name, environment, log)


_runs = count()


@dataclass
class Work:
    """One run of a handler; whatever it starts counts for it too, unless that is another handler's work."""

    handlers: Callable[[], Collection[str]]
    run: str = field(default_factory=lambda: f"{os.getpid()}-{next(_runs)}")
    steps: int = 0

    def become(self, handler: str) -> None:
        """Be the work of another handler, which begins here."""
        self.handlers, self.run, self.steps = lambda: [handler], f"{os.getpid()}-{next(_runs)}", 0


_present: ContextVar[Work | None] = ContextVar("work", default=None)


def _begin(*handlers: str) -> None:
    """Let what follows in this task be the work of a handler; of none where there is no name."""
    _present.set(Work(lambda: handlers) if handlers else None)


@contextmanager
def _working(handlers: Callable[[], Collection[str]]) -> Iterator[None]:
    token = _present.set(Work(handlers))
    try:
        yield
    finally:
        _present.reset(token)


class Faults:
    """What is asked for in the folder of a test."""

    def __init__(self, process: str, folder: Path) -> None:
        self._process = process
        self._crash = folder / "crash"
        self._taken = folder / "crash.taken"
        self._full = folder / "full"
        self._unsure = folder / "unsure"
        self._refused = folder / "refused"
        self._commits, self._jobs = count(1), count(1)
        self._record = folder / "record"
        self._steps = folder / "steps.log"

    def step(self, kind: str) -> None:
        """Count a step of the present handler; end here if that is asked for."""
        work = _present.get()
        if work is None:
            return
        work.steps += 1
        with suppress(FileNotFoundError):
            if self._is_meant(work, kind):
                self._crash.rename(self._taken)  # of several only one succeeds
                os.kill(os.getpid(), signal.SIGKILL)
        if self._record.exists():
            with self._steps.open("ab", buffering=0) as steps:
                for handler in work.handlers():
                    steps.write(f"{self._process} {handler} {work.run} {work.steps} {kind}\n".encode())

    def _is_meant(self, work: Work, kind: str) -> bool:
        if not self._crash.exists():
            return False
        process, *handler, step = self._crash.read_text().split() or ["-", "-", "0"]
        names = ({"*", self._process}, {"*", *work.handlers()})
        return step in {str(work.steps), kind} and process in names[0] and " ".join(handler) in names[1]

    def lose_answer(self) -> None:
        """Lose what the database answers to a commit, if that is asked for and its turn."""
        if self._unsure.exists() and next(self._commits) % 3 == 0:
            message = "the answer to a commit was lost"
            raise DatabaseUnavailable(message)

    def refuse(self) -> None:
        """Refuse a job, if that is asked for and its turn."""
        if self._refused.exists() and next(self._jobs) % 3 == 0:
            message = "a queue has no room for this message"
            raise PublishRefused(message)

    def limit_pages(self, connection: Connection) -> None:
        """Let SQLite's file grow no further than it is, or as far as it likes again."""
        if self._full.exists():
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            connection.info["full"] = True
        elif connection.info.pop("full", False):
            connection.exec_driver_sql(f"PRAGMA max_page_count = {_NO_LIMIT}")


def _install(faults: Faults) -> None:
    """Put the hooks around what the service does."""
    step = faults.step
    build_database = Database.__init__

    def build(database: Database, *given: Any) -> None:
        build_database(database, *given)
        if database._writer.dialect.name == "sqlite":
            event.listen(database._writer.sync_engine, "begin", faults.limit_pages)

    Database.__init__ = build  # type: ignore[assignment,method-assign]
    _around(Database, "transact", partial(_committing, faults))
    _around(Publisher, "publish_raw", partial(_publishing, faults))
    _around(Gateway, "_call", partial(_stepping, step, "call", "called", (GatewayRefused,)))
    _around(Delivery, "acknowledge", partial(_stepping, step, "ack", "acked", ()))
    _around(BatchProcessor, "process", _end)
    _around(Relay, "_step", _relay)
    _around(Relay, "_page", partial(_look, step))
    _around(Confirmations, "flush", _mark)
    _around(Sender, "_round", _round)
    _around(Sender, "_send", _send)
    _around(running, "_do", _run_job)
    _around(sweeping, "wake_forgotten", _wake)
    read_dead_letter = dead_letter_queue.read_dead_letter

    def reading(raw: Any) -> Any:
        _begin("dead-letter-store")
        return read_dead_letter(raw)

    dead_letter_queue.read_dead_letter = reading
    ingress_app = apps.ingress_app
    apps.ingress_app = lambda settings: Requests(ingress_app(settings))  # type: ignore[assignment,return-value]


async def _committing(faults: Faults, do: Any, database: Database, work: Any, **how: Any) -> Any:
    result = await do(database, partial(_flushed, faults.step, work), **how)
    faults.step("committed")
    faults.lose_answer()
    return result


async def _flushed(step: Callable[[str], None], work: Callable[..., Awaitable[Any]], tx: AsyncSession) -> Any:
    result = await work(tx)
    await tx.flush()
    step("commit")
    return result


async def _publishing(faults: Faults, do: Callable[..., Awaitable[Any]], *given: Any, **named: Any) -> None:
    faults.step("publish")
    if named["exchange"] == JOBS:
        faults.refuse()
    await do(*given, **named)
    faults.step("published")


async def _stepping(
    step: Callable[[str], None],
    before: str,
    after: str,
    answers: tuple[type[Exception], ...],
    do: Callable[..., Awaitable[Any]],
    *given: Any,
    **named: Any,
) -> Any:
    step(before)
    try:
        result = await do(*given, **named)
    except answers:
        step(after)
        raise
    step(after)
    return result


async def _end(do: Callable[..., Awaitable[Any]], handling: BatchProcessor, batch: Any, **how: Any) -> Any:
    names = [  # each as often as the batch has it
        f"entry {name_of(delivery)}" if delivery.number == handling._count else name_of(delivery)
        for delivery in batch.deliveries
        if not is_probe(delivery)
    ]
    with _working(lambda: names):
        return await do(handling, batch, **how)


async def _relay(do: Callable[..., Awaitable[bool]], relay: Relay) -> bool:
    _begin(*([f"direct {relay.name}"] if relay._waiting else []))
    return await do(relay)


async def _look(step: Callable[[str], None], do: Callable[..., Awaitable[Any]], relay: Relay, *given: Any) -> Any:
    page = await do(relay, *given)
    if page:  # most looks find nothing
        _begin(f"look {relay.name}")
        step("page")
    return page


async def _mark(do: Callable[..., Awaitable[None]], confirmations: Confirmations) -> None:
    if _present.get() is not None:  # within a look
        await do(confirmations)
        return
    with _working(lambda: ["marks"]):
        await do(confirmations)


async def _round(do: Callable[..., Awaitable[None]], sender: Sender) -> None:
    name = "record" if sender._answers else "claim"
    with _working(lambda: [name]):
        await do(sender)


async def _send(do: Callable[..., Awaitable[None]], sender: Sender, claimed: Any) -> None:
    _begin("send")
    await do(sender, claimed)


async def _run_job(do: Callable[..., Awaitable[str]], job: SingletonJob, *more: Any) -> str:
    name = f"{job.name} that looks" if job.name == "sweeper" else job.name
    with _working(lambda: [name]):
        return await do(job, *more)


async def _wake(do: Callable[..., Awaitable[list[str]]], *given: Any, **named: Any) -> list[str]:
    woken = await do(*given, **named)
    if woken and (work := _present.get()):
        work.become("sweeper")
    return woken


class Requests:
    """The ingress: each request is the work of its route, which is known once it has been found."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state = app.state

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        def route() -> list[str]:
            path = getattr(scope.get("route"), "path", scope.get("path", ""))
            return [f"{scope.get('method', scope['type'])} {path.removeprefix(_PREFIX)}"]

        with _working(route):
            await self._app(scope, receive, send)


def _around(owner: Any, name: str, wrapper: Callable[..., Awaitable[Any]]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    async def wrapped(*given: Any, **named: Any) -> Any:
        return await wrapper(original, *given, **named)

    setattr(owner, name, wrapped)

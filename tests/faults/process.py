"""A process of the service that can be killed at each of its steps, given a wrong clock, a full disk or a mutant.

A step is what the outside world may notice of a handler: a commit, a publish and its confirmation, a call of the
gateway and its answer, an acknowledgement. What a test asks for lies in the folder FAULTS_FOLDER:

crash     one line `<process> <handler> <step>`, where `*` stands for any process or handler, and a step is its number
          or its kind: who comes to that step
          first renames the file to `crash.taken` and kills itself before it does what the step does
full      while it exists SQLite's disk is full
record    while it exists each step is appended to `steps.log`: `<process> <handler> <step> <kind>`

FAULTS_SKEW says by how many seconds the clock of the process is wrong, FAULTS_MUTANT which defect it has.
"""

import importlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

from faststream.rabbit.message import RabbitMessage
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncSession

from service import apps
from service.errors import GatewayRefused
from service.gateway import Gateway
from service.messaging import topology
from service.messaging.partitions import Partition
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.upkeep import hosting
from service.upkeep.hosting import Duty
from tests.faults.clocks import set_clocks_wrong
from tests.system import be_a_process

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


@dataclass
class Work:
    """One run of a handler; whatever it starts counts for it too."""

    handler: Callable[[], str]
    steps: int = 0


_present: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def _working(handler: Callable[[], str]) -> Iterator[None]:
    token = _present.set(Work(handler))
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
                steps.write(f"{self._process} {work.handler()} {work.steps} {kind}\n".encode())

    def _is_meant(self, work: Work, kind: str) -> bool:
        if not self._crash.exists():
            return False
        process, *handler, step = self._crash.read_text().split() or ["-", "-", "0"]
        names = ({"*", self._process}, {"*", work.handler()})
        return step in {str(work.steps), kind} and process in names[0] and " ".join(handler) in names[1]

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
        if database.is_sqlite:
            event.listen(database._writer.sync_engine, "begin", faults.limit_pages)

    Database.__init__ = build  # type: ignore[assignment,method-assign]
    _around(Database, "transact", partial(_committing, step))
    _around(Publisher, "publish_raw", partial(_stepping, step, "publish", "published", ()))
    _around(Gateway, "_call", partial(_stepping, step, "call", "called", (GatewayRefused,)))
    _around(RabbitMessage, "ack", partial(_stepping, step, "ack", "acked", ()))
    _around(Partition, "_handle", _deliver)
    _around(hosting, "_do", _do_duty)
    ingress_app = apps.ingress_app
    apps.ingress_app = lambda settings: Requests(ingress_app(settings))  # type: ignore[assignment,return-value]


async def _committing(step: Callable[[str], None], do: Any, database: Database, work: Any, **how: Any) -> Any:
    return await do(database, partial(_flushed, step, work), **how)


async def _flushed(step: Callable[[str], None], work: Callable[..., Awaitable[Any]], tx: AsyncSession) -> Any:
    result = await work(tx)
    await tx.flush()
    step("commit")
    return result


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


async def _deliver(do: Callable[..., Awaitable[None]], partition: Partition, delivery: RabbitMessage) -> None:
    raw = delivery.raw_message
    name = raw.type or topology.name_of(raw.routing_key or "")
    with _working(lambda: "dead-letter-store" if partition.name == topology.DEAD_LETTERS else name):
        await do(partition, delivery)


async def _do_duty(do: Callable[..., Awaitable[str]], duty: Duty, *more: Any) -> str:
    with _working(lambda: duty.name):
        return await do(duty, *more)


class Requests:
    """The ingress: each request is the work of its route, which is known once it has been found."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state = app.state

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        def route() -> str:
            path = getattr(scope.get("route"), "path", scope.get("path", ""))
            return f"{scope.get('method', scope['type'])} {path.removeprefix(_PREFIX)}"

        with _working(route):
            await self._app(scope, receive, send)


def _around(owner: Any, name: str, wrapper: Callable[..., Awaitable[Any]]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    async def wrapped(*given: Any, **named: Any) -> Any:
        return await wrapper(original, *given, **named)

    setattr(owner, name, wrapped)

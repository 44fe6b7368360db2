"""A session consumer with a stand-in for its gateway, and crashes at any step of what it does."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from service.consumers.session import SessionConsumer
from service.domain.reported import Connected, OtherState, Reported, UnknownSession
from service.errors import GatewayError
from service.persistence.database import Database, Work
from service.persistence.tables import SessionRow
from tests.component.rows import Outputs, a_session, all_of, change, received
from whatsapp_qr_contracts.gateway import GatewayConnected, GatewayDisconnected
from whatsapp_qr_contracts.message import Message, SessionStatus

ASKED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def in_state(status: SessionStatus, *, number: str | None = None, qr_code: str | None = None) -> Reported:
    """Return how the gateway says that a session is in a state."""
    return Connected(number) if status is SessionStatus.CONNECTED else OtherState(status, qr_code)


class CrashError(Exception):
    """The process ends here."""


@dataclass
class Steps:
    """Calls of the gateway and commits, in order; one step may be the process's last."""

    taken: int = 0
    crash_at: int | None = None
    when_done: bool = False
    """Whether the crash comes after the step has had its effect."""

    @contextmanager
    def step(self) -> Iterator[None]:
        self.taken += 1
        crash = self.taken == self.crash_at
        if crash and not self.when_done:
            raise CrashError
        yield
        if crash:
            raise CrashError


@dataclass(frozen=True)
class Committing:
    """A database whose commits are steps."""

    database: Database
    steps: Steps

    async def transact(self, work: Work[Any]) -> Any:
        with self.steps.step():
            return await self.database.transact(work)

    async def read(self, work: Work[Any]) -> Any:
        return await self.database.read(work)


@dataclass
class Gateway:
    """The gateway: gives the answers that a test scripts, the last one for ever, and remembers what it was asked."""

    steps: Steps = field(default_factory=Steps)
    answers: list[Reported] = field(default_factory=lambda: [UnknownSession()])
    refusal: GatewayError | None = None
    """Its answer to whatever is to be done."""
    calls: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None
    """Happens elsewhere while it is asked for the status."""

    async def status(self, session_id: str) -> Reported:
        with self.steps.step():
            self.calls.append(f"status {session_id}")
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def initialize(self, session_id: str, chatbot_id: str) -> None:
        self._do(f"initialize {session_id} {chatbot_id}")

    async def disconnect(self, session_id: str) -> None:
        self._do(f"disconnect {session_id}")

    def _do(self, call: str) -> None:
        with self.steps.step():
            self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal

    @property
    def asked(self) -> list[str]:
        """What was asked, without of which session."""
        return [call.split()[0] for call in self.calls]


class World:
    """One process with a session consumer and its gateway, and what it told."""

    def __init__(self, database: Database, *, strict: bool = False) -> None:
        self.database = database
        self.steps = Steps()
        self.outputs = Outputs()
        self.gateway = Gateway(self.steps)
        parts: Any = (Committing(database, self.steps), self.gateway, self.outputs)
        self.consumer = SessionConsumer(*parts, strict=strict)

    async def handle(self, message: Message, message_id: str = "c") -> None:
        """Handle a message as the consumer does; raise why it can never be processed."""
        one = received(message, message_id, ASKED_AT)
        if message.name not in self.consumer.slow:
            not_done = await self.consumer.handle([one])
            for _, error in not_done:
                if error is not None:
                    raise error
            if not not_done:
                return
        await self.consumer.handle_slow(one)

    def says(self, *answers: Reported | SessionStatus) -> None:
        """Script what the gateway answers when it is asked for the status."""
        self.gateway.answers = [in_state(one) if isinstance(one, SessionStatus) else one for one in answers]

    async def row(self, chatbot_id: UUID) -> SessionRow:
        """Return the chatbot's session."""
        [row] = await all_of(self.database, SessionRow, chatbot_id=chatbot_id)
        assert isinstance(row, SessionRow)
        return row


async def settled(database: Database, *, status: SessionStatus = SessionStatus.CONNECTED, **fields: Any) -> SessionRow:
    """Make a session whose present version is announced."""
    session = await a_session(database, status=status)
    await change(database, session, **{"told_version": session.version, **fields})
    [row] = await all_of(database, SessionRow, id=session.id)
    assert isinstance(row, SessionRow)
    return row


def connected(session: SessionRow, number: str | None = None) -> GatewayConnected:
    return GatewayConnected(type="connected", session_id=session.session_id, data={"phoneNumber": number})


def disconnected(session: SessionRow, reason: str | None = None) -> GatewayDisconnected:
    return GatewayDisconnected(type="disconnected", session_id=session.session_id, data={"reason": reason})

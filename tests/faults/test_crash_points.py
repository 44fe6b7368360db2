"""Each handler is killed at each of its steps: whatever was done and not done by then, it has one effect."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import pytest
from sqlalchemy import update
from sqlmodel import SQLModel, col

from service.consumers.row_outputs import session_event_id
from service.domain.identities import outgoing_message_id, output_id
from service.persistence.tables import ChatbotRow, DeadLetterRow, MessageRow, SessionRow
from tests.faults.crashing import PATIENCE, Drill, drilling
from tests.system import eventually
from whatsapp_qr_contracts.commands import (
    CancelMessage,
    DisconnectSession,
    InitializeSession,
    RegisterChatbot,
    RemoveChatbot,
    RetryMessage,
    SendMessage,
)
from whatsapp_qr_contracts.events import SessionEvent
from whatsapp_qr_contracts.message import COMMANDS, DeliveryStatus, SessionStatus

SETTINGS = {
    "PARTITIONS": "1",
    "SEND_RATE": "1000",
    "SEND_BURST": "1000",
    "GATEWAY_TIMEOUT": "1",
    "HEARTBEAT_PERIOD": "0.2",
    "SWEEP_PERIOD": "0.3",
    "SWEEP_AGE": "2",
    "RECONCILE_PERIOD": "0.5",
    "RECONCILE_AGE": "30",
    "RECONCILE_PAUSE": "0.5",
    "LEASE": "1",
}
PHONE = "5491100000000"
TRIES = 5
INGRESS, SESSIONS, CONVERSATIONS, OUTBOUND = "ingress", "session-consumer", "conversation-consumer", "outbound-consumer"


@dataclass
class Subject:
    """What one drive of a handler is about."""

    chatbot_id: UUID
    session_id: str = ""
    id: str = field(default_factory=lambda: uuid4().hex)
    """The id of the command, the key of the call or WhatsApp's id; the text of the message too."""

    @property
    def customer(self) -> str:
        return str(int(self.id, 16))[:14]

    @property
    def message_id(self) -> UUID:
        return outgoing_message_id(self.chatbot_id, self.id)


Prepare = Callable[[Drill], Awaitable[Subject]]
Act = Callable[[Drill, Subject], Awaitable[object]]


@dataclass
class Case:
    """A handler, what it needs, what makes it work, and what must have come of it."""

    process: str
    handler: str
    prepare: Prepare
    drive: Act
    check: Act
    ended: Callable[[list[str]], bool] = lambda kinds: "acked" in kinds

    @property
    def tells(self) -> bool:
        """Whether it is a relay."""
        return self.handler.startswith(("direct ", "look "))


# What is needed


async def nothing(_drill: Drill) -> Subject:
    return Subject(uuid4())


async def pairing(drill: Drill) -> Subject:
    """A session that shows its QR code."""
    chatbot_id = uuid4()
    answer = await drill.insist("/init", chatbotId=str(chatbot_id))
    subject = Subject(chatbot_id, answer.json()["sessionId"])
    await has_status(drill, subject, SessionStatus.QR_READY)
    return subject


class Linked:
    """One session for many subjects."""

    def __init__(self) -> None:
        self._first: Subject | None = None

    async def __call__(self, drill: Drill) -> Subject:
        """A session that is connected."""
        if self._first is None:
            self._first = await pairing(drill)
            await drill.system.control(f"/sessions/{self._first.session_id}/scan", phoneNumber=PHONE)
        subject = Subject(self._first.chatbot_id, self._first.session_id)
        await drill.system.control(f"/sessions/{subject.session_id}/reconnect")
        await has_status(drill, subject, SessionStatus.CONNECTED)
        return subject

    async def dropped(self, drill: Drill) -> Subject:
        """A session that has lost its connection."""
        subject = await self(drill)
        await drop(drill, subject)
        await has_status(drill, subject, SessionStatus.DISCONNECTED)
        return subject

    async def with_incoming(self, drill: Drill) -> Subject:
        """A customer's message that has been handed over."""
        subject = await self(drill)
        await post_incoming(drill, subject)
        await drill.has_message(subject.chatbot_id, subject.id, told=True)
        return subject

    async def with_sent(self, drill: Drill) -> Subject:
        """A message that was sent and read."""
        subject = await self(drill)
        await send(drill, subject)
        await is_sent(drill, subject)
        return subject

    async def with_failed(self, drill: Drill) -> Subject:
        """A message that was not sent."""
        subject = await self(drill)
        await drill.system.faults(not_on_whatsapp=[subject.customer])
        await send(drill, subject)
        await drill.has_message(subject.chatbot_id, subject.id, delivery_status=DeliveryStatus.FAILED, told=True)
        await drill.system.faults()
        return subject


class Waiting:
    """One session that shows its QR code, for many messages."""

    def __init__(self) -> None:
        self._first: Subject | None = None

    async def __call__(self, drill: Drill) -> Subject:
        """A message that waits for its session."""
        self._first = self._first or await pairing(drill)
        subject = Subject(self._first.chatbot_id, self._first.session_id)
        await send(drill, subject)
        await drill.has_message(subject.chatbot_id, subject.id, delivery_status=DeliveryStatus.PENDING)
        return subject


# What makes a handler work


async def initialize(drill: Drill, subject: Subject) -> None:
    await drill.command(InitializeSession(chatbot_id=subject.chatbot_id), subject.id)


async def post_init(drill: Drill, subject: Subject) -> None:
    answer = await drill.insist("/init", chatbotId=str(subject.chatbot_id))
    subject.session_id = answer.json()["sessionId"]


async def disconnect(drill: Drill, subject: Subject) -> None:
    await drill.command(DisconnectSession(chatbot_id=subject.chatbot_id), subject.id)


async def register(drill: Drill, subject: Subject) -> None:
    await drill.command(RegisterChatbot(chatbot_id=subject.chatbot_id), subject.id)


async def remove(drill: Drill, subject: Subject) -> None:
    await drill.command(RemoveChatbot(chatbot_id=subject.chatbot_id), subject.id)


async def drop(drill: Drill, subject: Subject) -> None:
    await drill.system.control(f"/sessions/{subject.session_id}/drop")


async def reconnect(drill: Drill, subject: Subject) -> None:
    await drill.system.control(f"/sessions/{subject.session_id}/reconnect")


async def forget(drill: Drill, subject: Subject) -> None:
    await drill.system.control("/forget", sessionId=subject.session_id)


async def send(drill: Drill, subject: Subject) -> None:
    command = SendMessage(chatbot_id=subject.chatbot_id, to=subject.customer, message=subject.id)
    await drill.command(command, subject.id)


async def post_send(drill: Drill, subject: Subject) -> None:
    body = {"chatbotId": str(subject.chatbot_id), "to": subject.customer, "message": subject.id}
    answer = await drill.insist("/send", key=subject.id, **body)
    assert answer.json()["messageId"] == str(subject.message_id)


async def cancel(drill: Drill, subject: Subject) -> None:
    command = CancelMessage(chatbot_id=subject.chatbot_id, message_id=subject.message_id)
    await drill.command(command, f"{subject.id} cancel")


async def retry(drill: Drill, subject: Subject) -> None:
    command = RetryMessage(chatbot_id=subject.chatbot_id, message_id=subject.message_id)
    await drill.command(command, f"{subject.id} retry")


async def post_incoming(drill: Drill, subject: Subject) -> None:
    report = {"sessionId": subject.session_id, "from": subject.customer, "timestamp": int(time.time())}
    await drill.insist("/incoming", **report, message=subject.id, messageId=subject.id)


def leaving(table: type[SQLModel], **values: object) -> Act:
    """Return what leaves a subject's row in a table as a crash would, a while ago."""

    async def leave(drill: Drill, subject: Subject) -> None:
        at = next(name for name in ("changed_at", "moved_at", "created_at") if name in table.model_fields)
        old = {at: datetime.now(UTC) - timedelta(minutes=1)}
        mine = [col(table.chatbot_id) == subject.chatbot_id]  # type: ignore[attr-defined]
        mine += [col(MessageRow.content) == subject.id] if table is MessageRow else []
        await drill.database.transact(lambda tx: tx.execute(update(table).where(*mine).values(**values, **old)))

    return leave


async def publish_nonsense(drill: Drill, subject: Subject) -> None:
    """A message of a type that its queue does not carry."""
    await drill.publish(COMMANDS, "message.send", aio_pika.Message(b"{}", message_id=subject.id, type="nonsense"))


async def publish_to_nobody(drill: Drill, subject: Subject) -> None:
    """A message for which the broker has no queue."""
    await drill.publish(COMMANDS, "nobody.knows", aio_pika.Message(b"{}", message_id=subject.id))


# What must have come of it


async def has_status(drill: Drill, subject: Subject, status: SessionStatus) -> SessionRow:
    """There is one session, with this status; each version of it, and each answer to a command, has one id."""

    async def look() -> SessionRow | None:
        found = await drill.rows(SessionRow, chatbot_id=subject.chatbot_id)
        assert len(found) <= 1
        return found[0] if found else None  # type: ignore[return-value]

    def told(row: SessionRow | None) -> bool:
        return row is not None and row.status is status and row.told_version == row.version

    row: SessionRow = await eventually(look, told, seconds=PATIENCE)

    async def ids() -> set[str | None]:
        return {event.message_id for event in drill.events.messages if row.session_id in event.body.decode()}

    await eventually(ids, lambda found: session_event_id(row) in found)
    for event in drill.events.messages:
        if (event.type or "").startswith("session.") and row.session_id in event.body.decode():
            version = SessionEvent.model_validate_json(event.body).version
            answer = output_id(row.chatbot_id, f"{event.type} {event.correlation_id}")
            assert event.message_id in {output_id(row.id, f"version {version}"), answer}
    return row


async def is_pairing(drill: Drill, subject: Subject) -> None:
    """The session shows its QR code, and the gateway knows one session of the chatbot."""
    gateway = f"http://127.0.0.1:{drill.system.simulator_port}/sessions"

    async def there() -> list[tuple[str, str]]:
        sessions = (await drill.system.http.get(gateway)).json()["sessions"]
        return [(one["sessionId"], one["status"]) for one in sessions if str(subject.chatbot_id) in one["sessionId"]]

    found = await eventually(there, lambda own: [status for _, status in own] == ["QR_READY"], seconds=PATIENCE)
    row = await has_status(drill, subject, SessionStatus.QR_READY)
    assert subject.session_id in {"", row.session_id}
    assert [session_id for session_id, _ in found] == [row.session_id]


async def is_answered(drill: Drill, command_id: str) -> None:
    """The command ended in an event."""

    async def answers() -> list[str | None]:
        return [event.type for event in drill.events.messages if event.correlation_id == command_id]

    assert "command.rejected" not in await eventually(answers, seconds=PATIENCE)


async def is_initialized(drill: Drill, subject: Subject) -> None:
    await is_pairing(drill, subject)
    await is_answered(drill, subject.id)


async def is_ended(drill: Drill, subject: Subject) -> None:
    """The session has ended, also at the gateway."""
    row = await has_status(drill, subject, SessionStatus.DISCONNECTED)
    assert not row.wanted
    await is_answered(drill, subject.id)

    async def there() -> str:
        answer = await drill.system.http.get(f"http://127.0.0.1:{drill.system.simulator_port}/status/{row.session_id}")
        return str(answer.json()["session"]["status"])

    await eventually(there, lambda status: status == "DISCONNECTED")


async def is_removed(drill: Drill, subject: Subject) -> None:
    await is_ended(drill, subject)
    await drill.heard_once("chatbot.removed", str(subject.chatbot_id))
    (row,) = await drill.rows(ChatbotRow, id=subject.chatbot_id)
    assert isinstance(row, ChatbotRow)
    assert row.removed_at is not None


async def is_registered(drill: Drill, subject: Subject) -> None:
    await drill.heard_once("chatbot.registered", str(subject.chatbot_id))
    assert len(await drill.rows(ChatbotRow, id=subject.chatbot_id)) == 1


async def is_connected(drill: Drill, subject: Subject) -> None:
    await has_status(drill, subject, SessionStatus.CONNECTED)


async def is_dropped(drill: Drill, subject: Subject) -> None:
    assert (await has_status(drill, subject, SessionStatus.DISCONNECTED)).wanted


async def is_sent(drill: Drill, subject: Subject) -> None:
    """The message was stored, sent, delivered, read and told once."""
    row = await drill.has_message(subject.chatbot_id, subject.id, delivery_status=DeliveryStatus.READ, told=True)
    assert row.id == subject.message_id
    sent = [message for message in await drill.system.sent(subject.session_id) if message["message"] == subject.id]
    assert [message["messageId"] for message in sent] == [row.whatsapp_message_id]
    await drill.heard_once("message.read", str(row.id))
    await drill.heard_once("conversation.started", str(row.conversation_id))


async def is_sent_after_all(drill: Drill, subject: Subject) -> None:
    await is_sent(drill, subject)
    await drill.heard_once("message.failed", str(subject.message_id))
    await drill.heard_once("message.queued", str(subject.message_id))


async def is_cancelled(drill: Drill, subject: Subject) -> None:
    """The message has failed once, and was told to be cancelled once."""
    failed = {"delivery_status": DeliveryStatus.FAILED, "error_code": "cancelled"}
    await drill.has_message(subject.chatbot_id, subject.id, told=True, **failed)
    await drill.heard_once("message.failed", str(subject.message_id))
    await drill.heard_once("message.cancelled", str(subject.message_id))


async def is_received(drill: Drill, subject: Subject) -> None:
    """The customer's message was stored, handed over and told under one id each."""
    row = await drill.has_message(subject.chatbot_id, subject.id, told=True)
    await drill.heard_once("incoming-messages", subject.id)
    await drill.heard_once("message.received", str(row.id))
    await drill.heard_once("conversation.started", str(row.conversation_id))


async def is_kept(drill: Drill, subject: Subject) -> None:
    """The message is among the dead letters, once."""
    found = await eventually(lambda: drill.rows(DeadLetterRow, message_id=subject.id), seconds=PATIENCE)
    assert len(found) == 1


async def has_died_once(drill: Drill, subject: Subject) -> None:
    """It is there with one death, however often its dead letter was delivered."""
    await is_kept(drill, subject)
    (row,) = await drill.rows(DeadLetterRow, message_id=subject.id)
    assert isinstance(row, DeadLetterRow)
    assert row.attempts == 1


def answered(kinds: list[str]) -> bool:
    return len(kinds) >= 2


def published(kinds: list[str]) -> bool:
    return 0 < kinds.count("publish") == kinds.count("published")


def committed(kinds: list[str]) -> bool:
    return "committed" in kinds


EVENTS = "whatsapp-qr.events"
HAND_OVER, ENQUEUE = "incoming-messages", "whatsapp-qr-send"


def session_cases() -> list[Case]:
    linked = Linked()
    return [
        Case(SESSIONS, "entry session.initialize", nothing, initialize, is_initialized),
        Case(SESSIONS, "session.initialize", nothing, initialize, is_initialized),
        Case(SESSIONS, "gateway.qr", nothing, initialize, is_initialized),
        Case(SESSIONS, "session.disconnect", pairing, disconnect, is_ended),
        Case(SESSIONS, "chatbot.register", nothing, register, is_registered),
        Case(SESSIONS, "chatbot.remove", pairing, remove, is_removed),
        Case(SESSIONS, "gateway.disconnected", linked, drop, is_dropped),
        Case(SESSIONS, "gateway.connected", linked.dropped, reconnect, is_connected),
        Case(SESSIONS, f"direct {EVENTS}", nothing, register, is_registered, published),
        Case(SESSIONS, f"look {EVENTS}", linked, leaving(SessionRow, told_version=1), is_connected, committed),
    ]


def conversation_cases() -> list[Case]:
    linked = Linked()
    received = linked.with_incoming
    return [
        Case(CONVERSATIONS, "entry message.send", linked, send, is_sent),
        Case(CONVERSATIONS, "message.send", linked, send, is_sent),
        Case(CONVERSATIONS, "message.cancel", Waiting(), cancel, is_cancelled),
        Case(CONVERSATIONS, "message.retry", linked.with_failed, retry, is_sent_after_all),
        Case(CONVERSATIONS, "gateway.message", linked, post_incoming, is_received),
        Case(CONVERSATIONS, "gateway.receipt", linked, send, is_sent),
        Case(CONVERSATIONS, "entry nonsense", nothing, publish_nonsense, is_kept),
        Case(CONVERSATIONS, f"direct {HAND_OVER}", linked, post_incoming, is_received, published),
        Case(CONVERSATIONS, f"direct {EVENTS}", linked, post_incoming, is_received, published),
        Case(CONVERSATIONS, f"direct {ENQUEUE}", linked, send, is_sent, published),
        Case(CONVERSATIONS, "marks", linked, post_incoming, is_received, committed),
        Case(
            CONVERSATIONS, f"look {HAND_OVER}", received, leaving(MessageRow, handed_over=False), is_received, committed
        ),
        Case(CONVERSATIONS, f"look {EVENTS}", received, leaving(MessageRow, told_version=0), is_received, committed),
        Case(
            CONVERSATIONS,
            f"look {ENQUEUE}",
            linked.with_sent,
            leaving(MessageRow, handed_over=False),
            is_sent,
            committed,
        ),
    ]


def sending_cases() -> list[Case]:
    linked = Linked()
    return [
        Case(OUTBOUND, ENQUEUE, linked, send, is_sent),
        Case(OUTBOUND, "claim", linked, send, is_sent, committed),
        Case(OUTBOUND, "send", linked, send, is_sent, lambda kinds: "called" in kinds),
        Case(OUTBOUND, "record", linked, send, is_sent, committed),
        Case(OUTBOUND, f"direct {EVENTS}", linked, send, is_sent, published),
        Case(OUTBOUND, "marks", linked, send, is_sent, committed),
        Case(OUTBOUND, f"look {EVENTS}", linked.with_sent, leaving(MessageRow, told_version=1), is_sent, committed),
    ]


def other_cases() -> list[Case]:
    """What would be disturbed by the others."""
    linked = Linked()
    waiting = {"delivery_status": DeliveryStatus.PENDING, "error_code": None, "error_message": None, "failed_at": None}
    return [
        Case(INGRESS, "POST /send", linked, post_send, is_sent, answered),
        Case(INGRESS, "POST /incoming", linked, post_incoming, is_received, answered),
        Case(INGRESS, "POST /webhook", linked, drop, is_dropped, answered),
        Case(INGRESS, "POST /init", nothing, post_init, is_pairing, answered),
        Case(SESSIONS, "dead-letter-store", nothing, publish_to_nobody, has_died_once),
        Case(SESSIONS, "sweeper", linked.with_failed, leaving(MessageRow, **waiting), is_sent, committed),
        Case(SESSIONS, "reconciler", pairing, forget, is_pairing, lambda kinds: "published" in kinds),
    ]


LASTING = {
    is_registered,
    is_ended,
    is_removed,
    is_sent,
    is_sent_after_all,
    is_cancelled,
    is_received,
    is_kept,
    has_died_once,
}


class Plan:
    """Crashes on a drill, at those of each handler's steps that are chosen."""

    def __init__(self, drill: Drill, chosen: Callable[[dict[int, str]], dict[int, str]]) -> None:
        self._drill = drill
        self._chosen = chosen
        self._done: list[tuple[Case, Subject, str]] = []

    async def crash_everywhere(self, cases: list[Case]) -> None:
        """Learn the steps of each handler from a drive in peace, then drive it once for each of them.

        Where one never comes, the drive was not in peace: on a busy machine a publish may be repeated. Then once more.
        """
        for case in cases:
            learned = await self._learn(case)
            if (missed := await self._crash_at_each(case, learned)) is None:
                continue
            anew = await self._learn(case)
            if anew == learned or (missed := await self._crash_at_each(case, anew)):
                pytest.fail(f"in {TRIES} tries never: {missed}")

    async def _crash_at_each(self, case: Case, learned: dict[int, str]) -> str | None:
        """Drive a handler once for each of the chosen steps; return the one that never came."""
        started = time.monotonic()
        if case.tells:  # a page may hold what others have left: of each kind of step the first
            learned = {step: kind for step, kind in learned.items() if [*learned.values()].index(kind) == step - 1}
        steps = self._chosen(learned)
        subjects: list[Subject] = []
        if case.prepare is pairing:  # which takes a while, and each has its own
            subjects = await asyncio.gather(*(pairing(self._drill) for _ in steps))
        for step, kind in sorted(steps.items()):
            crash = f"{case.handler} was killed before its step {step} ({kind}) of {steps}"
            for _ in range(TRIES):
                subject = subjects.pop() if subjects else await case.prepare(self._drill)
                with noting(crash):
                    drive = case.drive(self._drill, subject)
                    at = kind if case.tells else step
                    killed = await self._drill.crash(case.process, case.handler, at, drive, case.ended)
                    await case.check(self._drill, subject)
                self._done.append((case, subject, crash))
                if killed:
                    break
            else:
                return crash
        took = time.monotonic() - started
        print(f"{took:5.1f} s {case.handler}: {' '.join(steps[step] for step in sorted(steps))}")  # noqa: T201  # pytest -s
        return None

    async def _learn(self, case: Case) -> dict[int, str]:
        """Drive a handler until it was recorded with one message alone; the drives of others may fill its batches."""

        async def drive(subject: Subject) -> None:
            await case.drive(self._drill, subject)
            await case.check(self._drill, subject)

        for _ in range(TRIES):
            subject = await case.prepare(self._drill)
            if steps := await self._drill.steps(case.process, case.handler, drive(subject), case.ended):
                assert sorted(steps) == list(range(1, len(steps) + 1))
                return steps
        pytest.fail(f"in {TRIES} tries never alone: {case.handler}")

    async def look_again(self) -> None:
        """Check what must have stayed as it was: a second effect may have come after the first was seen."""
        for case, subject, crash in self._done:
            if case.check in LASTING:
                with noting(crash):
                    await case.check(self._drill, subject)
        dead = await self._drill.rows(DeadLetterRow)
        assert {row.reason for row in dead} <= {"unknown_type", "unroutable"}, dead  # the cases publish these


@contextmanager
def noting(note: str) -> Iterator[None]:
    try:
        yield
    except (AssertionError, ValueError) as error:
        error.add_note(note)
        raise


def every_step(steps: dict[int, str]) -> dict[int, str]:
    return steps


def the_riskiest(steps: dict[int, str]) -> dict[int, str]:
    """Where the database says one thing and the world another for the first time; and the last."""
    first = next((step for step, kind in sorted(steps.items()) if kind in {"committed", "publish", "call"}), 1)
    return {step: steps[step] for step in {first, max(steps)}}


@pytest.mark.one_database("sqlite")
@pytest.mark.parametrize("chosen", [pytest.param(every_step, marks=pytest.mark.long), the_riskiest])
async def test_killed_at_each_step(
    clean_broker: str, database_url: str, tmp_path: Path, chosen: Callable[[dict[int, str]], dict[int, str]]
) -> None:
    """Whichever handler is killed before whichever of its steps, what it had to do has happened once in the end."""
    async with drilling(clean_broker, database_url, tmp_path, **SETTINGS) as drill:
        plan = Plan(drill, chosen)
        async with asyncio.TaskGroup() as group:
            for cases in (session_cases(), conversation_cases(), sending_cases()):
                group.create_task(plan.crash_everywhere(cases))
        await plan.crash_everywhere(other_cases())
        await plan.look_again()

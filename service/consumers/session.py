"""The session consumer: executes session and chatbot commands, and applies the gateway's reports.

One session's commands and reports are handled one after another, in order of arrival. If the gateway must be called,
sessions are handled concurrently; QR codes, which are numerous, are handled in batches of one transaction. Each handler
commits its decision; the outputs are published from the rows.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, assert_never, cast

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from service import tracing
from service.consumers import row_outputs
from service.consumers.announcing import Announcer
from service.consumers.changes import Change, apply, is_noop, move, phone
from service.consumers.outcomes import begin, end
from service.consumers.row_outputs import Output, session_event, session_event_id
from service.domain import session as machine
from service.domain.identities import new_session_id
from service.domain.reconciling import NO_QR_CODE
from service.domain.reported import Connected, NoAnswer, OtherState, UnknownSession, UnknownWord
from service.domain.session import Trigger
from service.errors import GatewayError, GatewayUnreachable, Rejected, Undeliverable
from service.gateway import Gateway
from service.messaging.envelope import Envelope
from service.messaging.handling import Handler, NotDone
from service.messaging.receiving import Received
from service.messaging.topology import SESSIONS
from service.persistence import sessions
from service.persistence.database import Database
from service.persistence.records import Records
from service.persistence.tables import CommandRow, SessionRecord, SessionRow
from service.privacy import shown_code
from whatsapp_qr_contracts.codes import DeadLetterReason, RejectionCode, StatusReason
from whatsapp_qr_contracts.commands import Command, DisconnectSession, InitializeSession, RegisterChatbot, RemoveChatbot
from whatsapp_qr_contracts.events import ChatbotRegistered, ChatbotRemoved
from whatsapp_qr_contracts.gateway import GatewayConnected, GatewayDisconnected, GatewayQr, GatewayReport
from whatsapp_qr_contracts.message import SessionStatus

log = structlog.get_logger()

_UNKNOWN_SESSION = Undeliverable("no session has this sessionId", code=DeadLetterReason.UNKNOWN_SESSION)
_ASK_AGAIN_AFTER = (1.0, 3.0)
"""Seconds after which the gateway is asked again when its answer contradicts its report."""


@dataclass(frozen=True)
class SessionConsumer(Handler):
    """The handler of `whatsapp-qr.sessions`."""

    database: Database
    gateway: Gateway
    announcer: Announcer
    strict: bool = False
    """Whether a chatbot must be registered before its first initialize."""
    models: ClassVar[Mapping[str, Any]] = {model.name: model for model in SESSIONS.carries}
    slow = frozenset(models) - {GatewayQr.name}

    async def handle(self, batch: Sequence[Received]) -> NotDone:
        """Apply the reports to their sessions, in one transaction; leave those that the gateway must confirm."""
        outputs, not_done = await self.database.transact(partial(self._follow_all, batch=batch))
        self.announcer.publish_soon(outputs)
        return not_done

    async def _follow_all(self, tx: AsyncSession, *, batch: Sequence[Received]) -> tuple[list[Output], NotDone]:
        rows, not_done, outputs = Records(SessionRecord, SessionRow), NotDone(), list[Output]()
        ids = {received.body.session_id for received in batch}  # type: ignore[attr-defined]
        found = {session.session_id: session for session in await rows.lock(tx, ids, by="session_id")}
        left = set[str]()
        for received in batch:
            report = cast("GatewayReport", received.body)
            session = found.get(report.session_id)
            if session is None:
                not_done.append((received, _UNKNOWN_SESSION))
                continue
            change = _change_of(session, report)
            if session.session_id in left or machine.must_be_confirmed(session.status, change.trigger):
                left.add(session.session_id)
                not_done.append((received, None))
            elif _moves(session, change):
                with received.traced(SESSIONS.name):
                    move(tx, session, change, caused_by=received.envelope.message_id)
                    outputs += row_outputs.of_session(session)
        await rows.write(tx)
        return outputs, not_done

    async def handle_slow(self, received: Received) -> None:
        """Process one message."""
        with received.traced(SESSIONS.name):
            await self._do(received.body, received.envelope)

    async def _do(self, body: Any, envelope: Envelope) -> None:
        match body:
            case InitializeSession():
                await self.initialize(body, envelope)
            case DisconnectSession() | RemoveChatbot():
                await self.disconnect(body, envelope)
            case RegisterChatbot():
                await self.register(body, envelope)
            case GatewayReport():
                await self.follow(body, envelope)
            case _:
                assert_never(body)

    async def initialize(self, command: InitializeSession, envelope: Envelope) -> None:
        """Open the session at the gateway, unless it is connected there."""
        opened = await self.database.transact(partial(self._open, command=command, envelope=envelope))
        if isinstance(opened, SessionRow):
            opened = await self._initialize(opened, command, envelope)
        self.announcer.publish_soon(row_outputs.of_command(opened))

    async def _open(
        self, tx: AsyncSession, *, command: InitializeSession, envelope: Envelope
    ) -> SessionRow | CommandRow:
        row = await begin(tx, command, envelope.id_or_dead_letter())
        if row.outcome is not None:
            return row
        if command.repair_of is not None and (rejected := await _overtaken(tx, command)):
            end(row, command, rejected)
            return row
        if not self.strict:
            await sessions.register_chatbot(tx, command.chatbot_id)
        elif not await sessions.chatbot_is_known(tx, command.chatbot_id):
            detail = "register the chatbot first (chatbot.register)"
            end(row, command, Rejected(detail, code=RejectionCode.UNKNOWN_CHATBOT))
            return row
        asked_at = command.requested_at or envelope.timestamp or datetime.now(UTC)
        session_id = new_session_id(command.chatbot_id, asked_at)
        return await sessions.open_session(tx, command.chatbot_id, session_id)

    async def _initialize(self, seen: SessionRow, command: InitializeSession, envelope: Envelope) -> CommandRow:
        tracing.about(session_id=seen.session_id)
        finish = partial(self._end, command=command, envelope=envelope)
        repairs = command.repair_of is not None
        connected = seen.status is SessionStatus.CONNECTED
        reported = await self.gateway.status(seen.session_id) if seen.version else UnknownSession()
        match reported:
            case Connected(number):
                change = Change(Trigger.CONNECTED, wanted=True, phone_number=phone(number))
                return await finish(seen, None if is_noop(seen, change) else change)
            case NoAnswer(error) if connected:
                return await finish(Rejected(f"the session stays connected: {error.detail}", code=_reason(error)))
            case UnknownWord() if connected:
                return await finish(seen)
            case OtherState(SessionStatus.QR_READY) if seen.status is SessionStatus.QR_READY and not repairs:
                return await finish(seen)
        reason = NO_QR_CODE if repairs and seen.status is SessionStatus.CONNECTING else None
        connecting = await self._change(
            seen, Change(Trigger.INITIALIZE, wanted=True, reason=reason), caused_by=envelope.message_id
        )
        if repairs and machine.hangs(reported, linked=connecting.phone_number is not None):
            await self._tell_gateway(connecting.session_id)  # a second initialize would not replace a running pairing
        try:
            await self.gateway.initialize(connecting.session_id, str(connecting.chatbot_id))
        except GatewayError as error:
            log.warning("initialize_failed", code=shown_code(error.code))
            return await finish(connecting, Change(Trigger.INITIALIZE_FAILED, wanted=True, reason=_reason(error)))
        return await finish(connecting)

    async def disconnect(self, command: DisconnectSession | RemoveChatbot, envelope: Envelope) -> None:
        """End the session, and delete the chatbot if that is requested; conversations and messages are kept.

        If the gateway is unavailable, it is called later.
        """
        closed = await self.database.transact(partial(self._close, command=command, envelope=envelope))
        if not isinstance(closed, CommandRow):
            if closed is not None:
                await self._tell_gateway(closed.session_id)
            if isinstance(command, RemoveChatbot):
                self.announcer.publish_soon(row_outputs.of_session(closed) if closed else [])
                closed = await self.database.transact(partial(self._forget, command=command, envelope=envelope))
            else:
                detail = "the chatbot has no session: nothing to disconnect"
                result = closed or Rejected(detail, code=RejectionCode.NO_SESSION)
                closed = await self._end(result, command=command, envelope=envelope)
        self.announcer.publish_soon(row_outputs.of_command(closed))

    async def _forget(self, tx: AsyncSession, *, command: RemoveChatbot, envelope: Envelope) -> CommandRow:
        row = await begin(tx, command, envelope.message_id)
        await sessions.remove_chatbot(tx, command.chatbot_id)
        end(row, command, ChatbotRemoved(chatbot_id=command.chatbot_id))
        return row

    async def _close(self, tx: AsyncSession, *, command: Command, envelope: Envelope) -> SessionRow | CommandRow | None:
        row = await begin(tx, command, envelope.id_or_dead_letter())
        if row.outcome is not None:
            return row
        session = await sessions.session_of(tx, command.chatbot_id, lock=True)
        if session and (session.wanted or session.status is not SessionStatus.DISCONNECTED):
            closed = machine.TRANSITIONS[session.status, Trigger.DISCONNECT]
            sessions.move(
                tx, session, closed, wanted=False, reason=StatusReason.REQUESTED, caused_by=envelope.message_id
            )
        return session

    async def _tell_gateway(self, session_id: str) -> None:
        tracing.about(session_id=session_id)
        try:
            await self.gateway.disconnect(session_id)
        except GatewayError as error:
            log.warning("gateway_disconnect_failed", code=shown_code(error.code))

    async def register(self, command: RegisterChatbot, envelope: Envelope) -> None:
        """Register the chatbot."""

        async def register(tx: AsyncSession) -> CommandRow:
            row = await begin(tx, command, envelope.id_or_dead_letter())
            if row.outcome is None:
                await sessions.register_chatbot(tx, command.chatbot_id)
                end(row, command, ChatbotRegistered(chatbot_id=command.chatbot_id))
            return row

        self.announcer.publish_soon(row_outputs.of_command(await self.database.transact(register)))

    async def follow(self, report: GatewayReport, envelope: Envelope) -> None:
        """Apply a report of the gateway to its session; once it is connected, the waiting messages are sent."""
        session = await self.database.read(lambda tx: sessions.session_by_id(tx, report.session_id))
        if session is None:
            raise _UNKNOWN_SESSION
        change = _change_of(session, report)
        if _moves(session, change):
            if confirmed := await self._confirmed(session, change):
                changed = await self._change(session, confirmed, caused_by=envelope.message_id)
                self.announcer.publish_soon(row_outputs.of_session(changed))
        elif change.trigger is Trigger.CONNECTED and not session.wanted:
            await self._tell_gateway(session.session_id)

    async def _confirmed(self, session: SessionRow, change: Change) -> Change | None:
        """Return the change as the gateway confirms it; None if its status keeps contradicting its report."""
        if not machine.must_be_confirmed(session.status, change.trigger):
            return change
        for pause in (0.0, *_ASK_AGAIN_AFTER):
            await asyncio.sleep(pause)
            reported = await self.gateway.status(session.session_id)
            if machine.confirms(reported, change.trigger, before=session.status):
                number = reported.phone_number if isinstance(reported, Connected) else None
                return replace(change, phone_number=change.phone_number or phone(number))
        log.info("report_contradicted", report=change.trigger)
        return None

    async def _change(self, seen: SessionRow, change: Change, *, caused_by: str) -> SessionRow:
        return await self.database.transact(partial(apply, seen=seen, change=change, caused_by=caused_by))

    async def _end(
        self,
        result: SessionRow | Rejected,
        change: Change | None = None,
        *,
        command: Command,
        envelope: Envelope,
    ) -> CommandRow:
        """Store the outcome of a command, with the last change of its session, if there is one."""

        async def write(tx: AsyncSession) -> CommandRow:
            row = await begin(tx, command, envelope.message_id)
            if isinstance(result, Rejected):
                end(row, command, result)
                return row
            session = await sessions.locked_unchanged(tx, result)
            if change is not None:
                session = await apply(tx, seen=session, change=change, caused_by=envelope.message_id)
            news = session.told_version < session.version
            end(row, command, session_event(session), message_id=session_event_id(session) if news else None)
            session.told_version = session.version  # published from the command's row
            return row

        return await self.database.transact(write)


def _change_of(session: SessionRecord, report: GatewayReport) -> Change:
    reported = _reported(report)
    return replace(reported, wanted=session.wanted and reported.wanted)


def _moves(session: SessionRecord, change: Change) -> bool:
    target = machine.target(session.status, change.trigger, wanted=session.wanted)
    return target is not None and not is_noop(session, change)


def _reported(report: GatewayReport) -> Change:
    match report:
        case GatewayQr():
            return Change(Trigger.QR, wanted=True, qr_code=report.data.qr_code)
        case GatewayConnected():
            number = phone(report.data.phone_number)
            return Change(Trigger.CONNECTED, wanted=True, reason=report.data.reason, phone_number=number)
        case GatewayDisconnected():
            reason = report.data.reason or StatusReason.CONNECTION_LOST
            return Change(Trigger.DISCONNECTED, wanted=machine.still_wanted(reason), reason=reason)
    raise AssertionError(report.name)


def _reason(error: GatewayError) -> str:
    return error.code if isinstance(error, GatewayUnreachable) else StatusReason.GATEWAY_ERROR


async def _overtaken(tx: AsyncSession, command: InitializeSession) -> Rejected | None:
    """Return why a repair is not needed any more: the session has changed while the command waited."""
    session = await sessions.session_of(tx, command.chatbot_id, lock=True)
    if session is None or not session.wanted:
        return Rejected("the session is not wanted any more", code=RejectionCode.NOT_WANTED)
    if session.version != command.repair_of:
        detail = "the session has changed since its repair was decided: nothing to do"
        return Rejected(detail, code=RejectionCode.OUTDATED)
    return None

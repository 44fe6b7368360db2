"""The reconciler: compares sessions with the gateway, and repairs errors caused by a lost callback or a restart.

It writes nothing. It publishes its findings to the session's queue like a callback or a command, behind the waiting
messages, and the session consumer confirms them with the gateway.
"""

import asyncio
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import structlog
from uuid_utils.compat import uuid7

from service import metrics
from service.domain.reconciling import ACTION_REQUIRED, QR_EXPIRED, Patience, Step, step
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.errors import GatewayError
from service.gateway import Gateway
from service.messaging.publishing import Publisher
from service.persistence.database import Database
from service.persistence.surveying import Surveyed, survey
from service.privacy import shown, shown_code
from service.singletons.watching import Watch
from whatsapp_qr_contracts.commands import InitializeSession
from whatsapp_qr_contracts.gateway import (
    ConnectedData,
    DisconnectedData,
    GatewayConnected,
    GatewayDisconnected,
    GatewayQr,
    QrData,
)
from whatsapp_qr_contracts.message import Message, SessionStatus

log = structlog.get_logger()

_AT_ONCE = 8
_STEPS = 500


class Reconciler:
    """A singleton job.

    Args:
        database: the sessions.
        gateway: is queried.
        publisher: publishes the repairs to the sessions' queue.
        patience: how long a session may stay in a temporary state.
        pause: seconds between the two looks that must agree; longer than a callback needs to arrive.
    """

    def __init__(
        self,
        database: Database,
        gateway: Gateway,
        publisher: Publisher,
        *,
        patience: Patience,
        pause: float,
    ) -> None:
        self._database = database
        self._gateway = gateway
        self._publisher = publisher
        self._patience = patience
        self._pause = pause
        self._in_vain = Watch()
        self._says = Watch()
        self._taken: dict[tuple[str, int, Step], float] = {}

    async def run(self) -> None:
        """Compare the sessions once; faults that both looks find are repaired.

        Raises:
            GatewayError: the gateway does not answer, so nothing is decided.
            Unavailable: the database or the broker is unavailable.
        """
        try:
            listed = await self._gateway.sessions()
        except GatewayError:
            self._says.look({})  # without answers, no state is observed to last
            raise
        seen = await self._survey(listed)
        reported = await self._first_look(seen, listed)
        suspects = {one.session_id: one.version for one in self._timed(seen, reported) if self._step(one, reported)}
        if suspects:
            await asyncio.sleep(self._pause)
            seen = await self._survey(suspects)
            again = {one.session_id for one in seen if suspects.get(one.session_id) == one.version}
            reported |= await self._ask([one for one in seen if one.session_id in again])
            await self._mend([one for one in self._timed(seen, reported) if one.session_id in again], reported)

    async def _first_look(self, seen: Sequence[Surveyed], listed: Mapping[str, Reported] | None) -> dict[str, Reported]:
        if listed is None:
            return await self._ask(seen)
        reported = {one.session_id: listed.get(one.session_id, UnknownSession()) for one in seen}
        return reported | await self._ask([one for one in seen if isinstance(reported[one.session_id], UnknownWord)])

    def _timed(self, seen: Sequence[Surveyed], reported: Mapping[str, Reported]) -> list[Surveyed]:
        """Return the sessions with the time since which the gateway's answer for their version has been the same."""
        answers = ((one, reported.get(one.session_id)) for one in seen)
        looks = {one.session_id: (one.version, type(answer)) for one, answer in answers if _may_pass(answer)}
        since = self._says.look(looks)
        return [replace(one, stored=replace(one.stored, reported_for=since.get(one.session_id, 0.0))) for one in seen]

    async def _survey(self, names: Collection[str] | None) -> list[Surveyed]:
        found = await survey(self._database, names)
        stuck = self._in_vain.look(found.in_vain)
        return [replace(one, stored=replace(one.stored, stuck=stuck.get(one.session_id))) for one in found.sessions]

    def _step(self, one: Surveyed, reported: Mapping[str, Reported]) -> Step | None:
        answer = reported.get(one.session_id)
        return None if answer is None else step(one.stored, answer, self._patience)  # None: it was not queried

    async def _ask(self, asked: Sequence[Surveyed]) -> dict[str, Reported]:
        """Return the gateway's answer for each session."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def ask(session_id: str) -> Reported:
            async with limit:
                reported = await self._about(session_id)
            if isinstance(reported, NoAnswer):
                log.info("gateway_status_unknown", session_id=shown(session_id), code=shown_code(reported.error.code))
            return reported

        names = [one.session_id for one in asked]
        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))  # ask raises nothing

    async def _about(self, session_id: str) -> Reported:
        reported = await self._gateway.status(session_id)
        if reported != OtherState(SessionStatus.QR_READY):
            return reported
        try:
            return replace(reported, qr_code=await self._gateway.qr_code(session_id))
        except GatewayError as error:
            return NoAnswer(error)

    async def _mend(self, again: Sequence[Surveyed], reported: Mapping[str, Reported]) -> None:
        at = time.monotonic()
        repeat_after = 2 * self._patience.passing
        # A repair published earlier may still wait in the queue: it is not published again at every run.
        self._taken = {what: when for what, when in self._taken.items() if at - when < repeat_after}
        # In random order: otherwise repairs that are refused repeatedly could block the last ones for ever.
        for one in random.sample(again, len(again)):
            mends = self._step(one, reported)
            if mends is None or (one.session_id, one.version, mends) in self._taken:
                continue
            if len(self._taken) >= _STEPS:
                log.warning("sessions_repaired_later", reason=f"more than {_STEPS} sessions are being repaired")
                return
            if await self._take(mends, one, reported[one.session_id]):
                self._taken[one.session_id, one.version, mends] = at

    async def _take(self, mends: Step, one: Surveyed, reported: Reported) -> bool:
        try:
            message = _message(mends, one, reported)
        except ValueError as error:
            log.warning(
                "gateway_not_understood", session_id=shown(one.session_id), step=mends, reason=type(error).__name__
            )
            return False
        message_id = str(uuid7())
        await self._publisher.publish(message, message_id=message_id, correlation_id=message_id)
        metrics.REDRIVEN.labels(f"session_{mends}").inc()
        log.warning("session_repaired", session_id=shown(one.session_id), step=mends, was=one.stored.status)
        return True


def _may_pass(reported: Reported | None) -> bool:
    logs_in = isinstance(reported, OtherState) and reported.status is SessionStatus.CONNECTING
    return logs_in or isinstance(reported, UnknownSession)


def _message(mends: Step, one: Surveyed, reported: Reported) -> Message:
    session_id = one.session_id
    number = reported.phone_number if isinstance(reported, Connected) else None
    match mends:
        case Step.CONNECTED:
            connected = ConnectedData(phone_number=number)
            return GatewayConnected(type="connected", session_id=session_id, data=connected)
        case Step.WARN:
            connected = ConnectedData(phone_number=number, reason=ACTION_REQUIRED)
            return GatewayConnected(type="connected", session_id=session_id, data=connected)
        case Step.END:  # the session consumer ends a connection that is not wanted
            return GatewayConnected(type="connected", session_id=session_id)
        case Step.DISCONNECTED:
            reason = QR_EXPIRED if one.stored.status is SessionStatus.QR_READY else None
            return GatewayDisconnected(type="disconnected", session_id=session_id, data=DisconnectedData(reason=reason))
        case Step.QR:
            qr_code = reported.qr_code if isinstance(reported, OtherState) else None
            return GatewayQr(type="qr", session_id=session_id, data=QrData(qr_code=qr_code or ""))
        case Step.INITIALIZE:
            return InitializeSession(chatbot_id=one.chatbot_id, repair_of=one.version)

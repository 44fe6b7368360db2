"""The reconciler: asks the gateway where its sessions stand and mends what a lost callback or a restart left wrong.

It writes nothing. What it finds goes into the session's queue like a callback or a command, behind what waits there,
and the session consumer settles it with the gateway.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog
from uuid_utils.compat import uuid7

from service import metrics
from service.domain.reconciling import ACTION_REQUIRED, QR_EXPIRED, Patience, Said, Step, step
from service.errors import GatewayError
from service.gateway import Gateway, GatewaySession
from service.messaging.publishing import Publisher
from service.persistence import sessions, sweeping
from service.persistence.database import Database
from service.persistence.sessions import Surveyed
from service.privacy import shown, shown_code
from service.upkeep.watching import Watch
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
_DAY = 86_400.0


class Reconciler:
    """A duty of one process at a time.

    Args:
        database: the sessions.
        gateway: is asked.
        publisher: puts what is found into the sessions' queue.
        patience: how long a session may stay in a state that should pass.
        pause: seconds between the two looks that must agree; what the gateway has just reported is under way for less.
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
        """Compare all sessions once; what is wrong at both looks is mended.

        Raises:
            GatewayError: the gateway does not answer, so nothing is decided.
            Unavailable: the database or the broker is away.
        """
        listed = await self._gateway.sessions()
        seen = await self._survey()
        said = self._timed(seen, await self._first_look(seen, listed))
        suspects = {one.session_id: one.version for one in seen if self._step(one, said)}
        if suspects:
            await asyncio.sleep(self._pause)
            seen = await self._survey()
            again = [one for one in seen if suspects.get(one.session_id) == one.version]
            await self._mend(again, self._timed(seen, said | await self._ask(again)))

    async def _first_look(
        self, seen: Sequence[Surveyed], listed: Mapping[str, GatewaySession] | None
    ) -> dict[str, Said | None]:
        if listed is None:
            return await self._ask([one for one in seen if one.known.wanted or one.known.age < _DAY])
        said = {one.session_id: _said(listed.get(one.session_id)) for one in seen}
        return said | await self._ask([one for one in seen if said[one.session_id] is None])

    def _timed(self, seen: Sequence[Surveyed], said: Mapping[str, Said | None]) -> dict[str, Said | None]:
        """Return what the gateway says, with how long it has been saying so of each session as it is."""
        versions = {one.session_id: one.version for one in seen}
        answers = {name: answer for name, answer in said.items() if answer is not None and name in versions}
        lasting = self._says.look({name: (versions[name], answer.status) for name, answer in answers.items()})
        return {name: replace(answer, lasting=lasting[name]) for name, answer in answers.items()}

    async def _survey(self) -> list[Surveyed]:
        seen = await self._database.read(sessions.survey)
        in_vain = self._in_vain.look(await self._database.read(sweeping.tried_in_vain))
        return [replace(one, known=replace(one.known, stuck=in_vain.get(one.session_id))) for one in seen]

    def _step(self, one: Surveyed, said: Mapping[str, Said | None]) -> Step | None:
        answer = said.get(one.session_id)
        return step(one.known, answer, self._patience) if answer is not None else None

    async def _ask(self, asked: Sequence[Surveyed]) -> dict[str, Said | None]:
        """Return what the gateway says about each session; None where it does not say."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def ask(one: Surveyed) -> Said | None:
            async with limit:
                try:
                    return await self._about(one)
                except GatewayError as error:
                    log.info("gateway_does_not_say", session_id=shown(one.session_id), code=shown_code(error.code))
                    return None

        answers = await asyncio.gather(*(ask(one) for one in asked))  # ask raises nothing
        return {one.session_id: answer for one, answer in zip(asked, answers, strict=True)}

    async def _about(self, one: Surveyed) -> Said | None:
        answer = await self._gateway.status(one.session_id)
        if answer is not None and answer.status is SessionStatus.QR_READY and answer.qr_code is None:
            answer = replace(answer, qr_code=await self._gateway.qr_code(one.session_id))
        return _said(answer)

    async def _mend(self, again: Sequence[Surveyed], said: Mapping[str, Said | None]) -> None:
        at = time.monotonic()
        repeat_after = 2 * self._patience.passing
        # What was published before may still wait in the queue: it is not published at every run.
        self._taken = {what: when for what, when in self._taken.items() if at - when < repeat_after}
        # In any order: those that are refused again and again would else keep the last ones from their turn.
        for one in random.sample(again, len(again)):
            mends, answer = self._step(one, said), said.get(one.session_id)
            if mends is None or answer is None or (one.session_id, one.version, mends) in self._taken:
                continue
            if len(self._taken) >= _STEPS:
                log.warning("sessions_mended_later", reason=f"more than {_STEPS} sessions are being mended")
                return
            if await self._take(mends, one, answer):
                self._taken[one.session_id, one.version, mends] = at

    async def _take(self, mends: Step, one: Surveyed, said: Said) -> bool:
        try:
            message = _message(mends, one, said)
        except ValueError as error:
            log.warning(
                "gateway_not_understood", session_id=shown(one.session_id), step=mends, reason=type(error).__name__
            )
            return False
        message_id = str(uuid7())
        await self._publisher.publish(message, message_id=message_id, correlation_id=message_id)
        metrics.REDRIVEN.labels(f"session_{mends}").inc()
        log.warning("session_mended", session_id=shown(one.session_id), step=mends, was=one.known.status)
        return True


def _said(answer: GatewaySession | None) -> Said | None:
    """Return what the gateway says about a session; None where it uses a word of its own."""
    if answer is None:
        return Said(None)
    return Said(answer.status, answer.phone_number, answer.qr_code) if answer.status else None


def _message(mends: Step, one: Surveyed, said: Said) -> Message:
    session_id = one.session_id
    match mends:
        case Step.CONNECTED:
            connected = ConnectedData(phone_number=said.phone_number)
            return GatewayConnected(type="connected", session_id=session_id, data=connected)
        case Step.WARN:
            connected = ConnectedData(phone_number=said.phone_number, reason=ACTION_REQUIRED)
            return GatewayConnected(type="connected", session_id=session_id, data=connected)
        case Step.END:  # the session consumer ends a connection that nobody wants
            return GatewayConnected(type="connected", session_id=session_id)
        case Step.DISCONNECTED:
            reason = QR_EXPIRED if one.known.status is SessionStatus.QR_READY else None
            return GatewayDisconnected(type="disconnected", session_id=session_id, data=DisconnectedData(reason=reason))
        case Step.QR:
            return GatewayQr(type="qr", session_id=session_id, data=QrData(qr_code=said.qr_code or ""))
        case Step.INITIALIZE:
            return InitializeSession(chatbot_id=one.chatbot_id, repair_of=one.version)

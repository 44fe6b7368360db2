"""The outbound consumer: sends each session's messages in order, one at a time; sessions side by side.

The rows are the lane, the job is only its doorbell. A job starts a drain of its session, or tells the one that runs
here to look again. A session that has to wait gives its job back and is resumed by a timer.
"""

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from uuid_utils.compat import uuid7

from service import metrics, tracing
from service.consumers.announcing import Announcer
from service.domain.sending import Retry, SendPolicy, TokenBucket, after_failure
from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused, GatewayUnreachable, Undeliverable
from service.gateway import Gateway
from service.messaging.consuming import Routes
from service.messaging.envelope import Envelope
from service.messaging.holding import Hold, Stopping
from service.persistence import lanes
from service.persistence.database import Database, Work
from service.persistence.lanes import Claimed, Expired, Idle, Wait
from service.persistence.tables import MessageRow
from service.privacy import shown_code
from whatsapp_qr_contracts.jobs import SendJob
from whatsapp_qr_contracts.message import SessionStatus

log = structlog.get_logger()
T = TypeVar("T")

_DRAIN_SECONDS = 10.0
_RING_SECONDS = 5.0
_LONGEST_PAUSE = 1.5  # longer than the pause of one message per second with its jitter


@dataclass
class Drain:
    """One run through a session's lane."""

    task: asyncio.Task[None] = field(init=False)
    look_again: bool = True
    """Set by whoever rings while it runs."""
    after_crash: bool = False
    """Whether somebody may have died between sending a message of this lane and announcing it."""


@dataclass
class Pace:
    """What this process remembers of a session between drains."""

    bucket: TokenBucket
    deferrals: int = 0
    """Times in a row that the session could not send at all."""


class OutboundConsumer:
    """The handler of `whatsapp-qr-send`.

    Args:
        database: the lanes.
        gateway: sends.
        announcer: publishes what became of each message.
        hold: waits while the database or the broker is away.
        policy: how patient sending is.
    """

    def __init__(
        self, database: Database, gateway: Gateway, announcer: Announcer, hold: Hold, policy: SendPolicy
    ) -> None:
        self.database = database
        self.gateway = gateway
        self.announcer = announcer
        self.hold = hold
        self.policy = policy
        self._drains: dict[str, Drain] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._paces: dict[str, Pace] = defaultdict(
            lambda: Pace(TokenBucket(policy.rate, policy.burst, time.monotonic(), policy.jitter))
        )
        self._stopping = False
        metrics.ACTIVE_DRAINS.set_function(lambda: len(self._drains))

    def routes(self) -> Routes:
        """Return the handler of each message."""
        return {SendJob: self.send}

    async def send(self, job: SendJob, envelope: Envelope) -> None:
        """Drain the session's lane, or tell the drain that runs to look again."""
        message = await self.database.read(lambda tx: tx.get(MessageRow, job.message_id))
        if message is None:
            detail = "no message has the messageId of this job"
            raise Undeliverable(detail, code="unknown_message")
        runs_already = message.session_id in self._drains
        drain = self._drain(message.session_id)
        drain.after_crash |= envelope.redelivered
        if not runs_already:
            # The connection may be lost and this handler cancelled; what the drain has begun it ends.
            await asyncio.shield(drain.task)

    def _drain(self, session_id: str) -> Drain:
        drain = self._drains.get(session_id)
        if drain is None:
            drain = self._drains[session_id] = Drain()
            drain.task = asyncio.create_task(self._run(session_id, drain))
            self._tasks.add(drain.task)
            drain.task.add_done_callback(self._ended)
        drain.look_again = True
        return drain

    async def _run(self, session_id: str, drain: Drain) -> None:
        if timer := self._timers.pop(session_id, None):
            timer.cancel()
        try:
            await self._send_in_order(session_id, drain)
        finally:
            self._leave(session_id, drain)

    def _leave(self, session_id: str, drain: Drain) -> None:
        if self._drains.get(session_id) is drain:
            del self._drains[session_id]

    async def _send_in_order(self, session_id: str, drain: Drain) -> None:
        pace = self._paces[session_id]
        until = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < until and not (self._stopping or self.hold.left):
            if drain.after_crash:
                drain.after_crash = False
                await self.hold(partial(self.announcer.lane, session_id))
            pause = pace.bucket.wait(time.monotonic()) or await self._step(session_id, drain, pace)
            if pause is None:
                return
            if pause > _LONGEST_PAUSE:
                await self._resume_later(session_id, pause)
                return
            await asyncio.sleep(pause)
        # Whoever rings from here on starts a drain of his own; this one only passes on what it leaves.
        self._leave(session_id, drain)
        await self.hold(partial(self._ring_anew, session_id))

    async def _step(self, session_id: str, drain: Drain, pace: Pace) -> float | None:
        """Do what is next in the lane; return the seconds to wait then, or None once the drain has left the table."""
        drain.look_again = False
        claim = partial(lanes.claim_next, self.database, session_id=session_id, policy=self.policy)
        match await self._write(claim):
            case Idle(postponed=True):
                await self._write(partial(lanes.postpone, self.database, session_id=session_id, seconds=None))
            case Idle() if not drain.look_again:
                # One step with seeing the mark unset: no await may come in between.
                self._leave(session_id, drain)
                return None
            case Expired(message):
                metrics.SENDS.labels("expired").inc()
                await self.hold(partial(self.announcer.status, message))
            case Claimed(message):
                pace.bucket.take()
                await self._attempt(message, pace)
            case Wait(seconds):
                return seconds
        return 0.0

    async def _attempt(self, message: MessageRow, pace: Pace) -> None:
        # The drain was started by the job of some message of the lane, or by a timer: this may be another one's trace.
        ids = {"correlation_id": message.correlation_id, "message_id": message.id, "session_id": message.session_id}
        with tracing.resumed(message.traceparent, "send message", **ids):
            await self._try(message, pace)

    async def _try(self, message: MessageRow, pace: Pace) -> None:
        try:
            sent_as = await self.gateway.send(
                message.session_id, message.external_user_id, message.content, message.whatsapp_message_id
            )
        except GatewayError as refusal:
            error = await self._explain(message.session_id, refusal)
            attempts = message.attempts + isinstance(error, GatewayOutcomeUnknown)
            verdict = after_failure(error, attempts=attempts, deferrals=pace.deferrals + 1, policy=self.policy)
            pace.deferrals = pace.deferrals + 1 if isinstance(verdict, Retry) and not verdict.counts else 0
            metrics.SENDS.labels("retry" if isinstance(verdict, Retry) else metrics.send_code(verdict.code)).inc()
            log.warning("not_sent", code=shown_code(error.code), verdict=type(verdict).__name__)
            recorded = await self._write(partial(lanes.record_failure, self.database, claimed=message, verdict=verdict))
        else:
            pace.deferrals = 0
            metrics.SENDS.labels("sent").inc()
            recorded = await self._write(partial(lanes.record_sent, claimed=message, whatsapp_id=sent_as))
        if recorded is not None:
            await self.hold(partial(self.announcer.status, recorded))

    async def _explain(self, session_id: str, error: GatewayError) -> GatewayError:
        """Find out what a refusal without a code means: the session is not connected, or the message is no good."""
        if not isinstance(error, GatewayRefused) or error.explicit:
            return error
        try:
            session = await self.gateway.status(session_id)
        except GatewayError as trouble:
            return GatewayUnreachable(trouble.detail)
        if session is None or session.status is not SessionStatus.CONNECTED:
            return GatewayRefused(error.detail, code="not_connected")
        return error

    async def _resume_later(self, session_id: str, seconds: float) -> None:
        await self._write(partial(lanes.postpone, self.database, session_id=session_id, seconds=seconds))
        loop = asyncio.get_running_loop()
        self._timers[session_id] = loop.call_later(seconds, self._drain, session_id, context=Context())

    async def _ring_anew(self, session_id: str) -> None:
        waiting = await self.database.read(lambda tx: lanes.first_pending(tx, session_id))
        if waiting is not None:
            await self.announcer.ring(waiting, ring_id=str(uuid7()))

    async def _write(self, work: Work[T]) -> T:
        return await self.hold(partial(self.database.transact, work))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Stopping):
            log.error("drain_failed", exc_info=error)

    def stop(self) -> None:
        """Let each drain end after its present message; whoever is active next goes on."""
        self._stopping = True

    async def stopped(self) -> None:
        """Wait until every drain has ended, and ring for the lanes that wait: their jobs are acknowledged."""
        while self._tasks:  # a timer may start one more drain meanwhile
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._timers.values():
            timer.cancel()
        with suppress(Stopping, TimeoutError):  # the broker is away: `drain_at` on the sessions' rows remains
            async with asyncio.timeout(_RING_SECONDS):
                for session_id in list(self._timers):
                    await self.hold(partial(self._ring_anew, session_id))

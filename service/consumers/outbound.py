"""The outbound consumer: sends each session's messages in order, one at a time; sessions run concurrently.

The rows are the lanes. Each round is one transaction: it records the gateway's answers, wakes the lanes of new jobs and
claims the next message of every lane that may send. Then the jobs are acknowledged and the gateway is called. A lane
that has to wait, for its pace or for the gateway, holds no job: its row stores the time of the next check. A process
that takes a partition over finds the due lanes in their rows.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar
from uuid import UUID

import structlog

from service import metrics, tracing
from service.consumers import row_outputs
from service.consumers.announcing import Announcer
from service.domain.reported import Connected, NoAnswer
from service.domain.sending import Retry, SendPolicy, after_failure
from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused, GatewayUnreachable, Undeliverable
from service.gateway import MAX_CONNECTIONS, Gateway
from service.messaging.handling import Handler, NotDone
from service.messaging.receiving import Received
from service.messaging.retrying import RetryWhileUnavailable, Stopping
from service.messaging.subscriptions import GRACE_SECONDS
from service.persistence import lanes
from service.persistence.database import Database
from service.persistence.lanes import Answer, Claimed, Round
from service.persistence.unpublished import Part
from service.privacy import shown_code
from service.tasks import Loop, end, happens
from whatsapp_qr_contracts.codes import DeadLetterReason, FailureCode
from whatsapp_qr_contracts.jobs import SendJob

log = structlog.get_logger()

_LOOK_EVERY_SECONDS = 1.0
_MOST_DUE = 1000
_SHORTEST_PAUSE = 0.01
_PAUSE_AFTER_TROUBLE = 1.0
# Answers that arrive meanwhile are recorded in the next round, so that rounds are few. But events may be slow.
_LONGEST_TELLING = 0.05
_TRIES = 5
"""Attempts while the database is unavailable and the process stops; then the last answers are left unrecorded."""


Jobs = dict[asyncio.Future[Collection[UUID]], set[UUID]]
"""The messages of jobs, by the future that is completed when their lanes are woken."""


@dataclass(frozen=True)
class OutboundConsumer(Handler):
    """The handler of `whatsapp-qr-send`."""

    sender: "Sender"
    models: ClassVar[Mapping[str, Any]] = {SendJob.name: SendJob}

    async def handle(self, batch: Sequence[Received]) -> NotDone:
        """Wake the lanes of a batch of jobs in the sender's next round."""
        known = await self.sender.wake({received.body.message_id for received in batch})  # type: ignore[attr-defined]
        unknown = Undeliverable("no message has the messageId of this job", code=DeadLetterReason.UNKNOWN_MESSAGE)
        return [(received, unknown) for received in batch if received.body.message_id not in known]  # type: ignore[attr-defined]


class Sender(Loop):
    """Sends the due messages of the lanes in this process's partitions."""

    def __init__(
        self,
        database: Database,
        gateway: Gateway,
        retry: RetryWhileUnavailable,
        announcer: Announcer,
        policy: SendPolicy,
        part: Callable[[], Part],
    ) -> None:
        self.database, self.gateway, self.retry, self.announcer = database, gateway, retry, announcer
        self.policy, self._part = policy, part
        self._due: dict[str, None] = {}
        """Lanes to check, in order: the longest waiting first."""
        self._answers: list[Answer] = []
        self._jobs: Jobs = {}
        """Messages whose lanes must be woken, by the future that is completed once that is committed."""
        self._calls: dict[str, asyncio.Task[None]] = {}
        """By session: at most one call of each is in progress."""
        self._wake = asyncio.Event()
        self._next_look = 0.0
        self._stopping = False
        metrics.SENDING.set_function(lambda: len(self._calls))

    @property
    def alive(self) -> bool:
        """Whether its task runs, or the process is stopping."""
        return self._stopping or super().alive

    async def wake(self, message_ids: set[UUID]) -> Collection[UUID]:
        """Wake the lanes of messages; return, once that is committed, the ids of those messages that exist.

        Raises:
            Stopping: this process does not send any more.
        """
        if not super().alive:
            raise Stopping
        woken: asyncio.Future[Collection[UUID]] = asyncio.get_running_loop().create_future()
        self._jobs[woken] = message_ids
        self._wake.set()
        return await woken

    async def _run(self) -> None:
        failures = 0
        while not (self._stopping and not self._calls and not self._answers and not self._jobs):
            await self._pause()
            try:
                if failures and self._jobs:
                    await self._only_wake()
                await self.retry(self._look_for_due)
                await self.retry(self._round)
                if len(self._calls) > 1:  # alone, a message is not kept waiting
                    await self.announcer.published(_LONGEST_TELLING)
                failures = 0
            except Exception as error:
                failures += 1
                ends = self._stopping and failures >= _TRIES
                if not isinstance(error, Stopping):
                    log.exception("sending_failed")
                if ends or isinstance(error, Stopping):  # the process stops, or the partitions are released
                    self._fail(list(self._jobs), error)
                if ends:
                    return
                await asyncio.sleep(_PAUSE_AFTER_TROUBLE)

    def _fail(self, jobs: Collection[asyncio.Future[Collection[UUID]]], error: Exception) -> None:
        for woken in jobs:
            if self._jobs.pop(woken, None) is not None and not woken.done():
                woken.set_exception(error)

    async def _only_wake(self) -> None:
        """Wake the lanes of jobs without the rest of the round, which has just failed."""
        jobs = dict(self._jobs)
        try:
            await self.retry(partial(self._transact, jobs, answers=[], due=[], room=0))
        except Exception as error:
            self._fail(jobs, error)
            raise

    async def _pause(self) -> None:
        seconds = max(_SHORTEST_PAUSE, self._next_look - time.monotonic())
        if not self._next_lanes() and not self._answers and not self._jobs:
            self._wake.clear()
            await happens(self._wake, seconds)

    async def _look_for_due(self) -> None:
        """Find the lanes that are due: their rows store the time, so this also works after a take-over."""
        if time.monotonic() < self._next_look or self._stopping or len(self._due) >= _MOST_DUE:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY_SECONDS
        part = self._part()
        if part.owned:
            excluded = self._calls.keys() | self._due.keys()
            found = await self.database.read(partial(lanes.due, part=part, excluded=excluded))
            self._due |= dict.fromkeys(found)
            if len(found) == lanes.BATCH:
                self._next_look = time.monotonic()  # there are more

    async def _round(self) -> None:
        jobs, answers = dict(self._jobs), list(self._answers)
        self._due |= dict.fromkeys(answer.claimed.message.session_id for answer in answers)
        due = self._next_lanes()
        if not answers and not due and not jobs:
            return
        for session_id in due:
            del self._due[session_id]
        try:
            await self._transact(jobs, answers=answers, due=due, room=self._room() - len(due))
        except BaseException:
            self._due |= dict.fromkeys(due)
            raise
        del self._answers[: len(answers)]

    async def _transact(self, jobs: Jobs, *, answers: Sequence[Answer], due: Collection[str], room: int) -> None:
        """Run a round, and act on its result."""
        ids = set[UUID]().union(*jobs.values())
        work = partial(lanes.send_round, answers=answers, due=due, policy=self.policy, jobs=ids, room=room)
        done: Round = await self.database.transact(work)
        self._due |= dict.fromkeys(done.due)
        for woken in jobs:
            del self._jobs[woken]
            if not woken.done():
                woken.set_result(done.known)
        self._act(done)

    def _act(self, done: Round) -> None:
        """Publish the outputs of a round, and send the messages that it has claimed."""
        for message in done.changed:
            if message.error_code == FailureCode.EXPIRED:
                metrics.SENDS.labels(message.error_code).inc()
        self.announcer.publish_soon([output for message in done.changed for output in row_outputs.event_of(message)])
        for claimed in done.claimed:
            self._call(claimed)
        if done.next_at is not None:
            seconds = (done.next_at - done.at).total_seconds()
            self._next_look = min(self._next_look, time.monotonic() + max(0.0, seconds))

    def _room(self) -> int:
        """Return the number of further calls that may be made; while stopping, zero."""
        return 0 if self._stopping else max(0, MAX_CONNECTIONS - len(self._calls))

    def _next_lanes(self) -> list[str]:
        """Return the next lanes in turn, as many as there are free connections to the gateway."""
        return list(islice((session_id for session_id in self._due if session_id not in self._calls), self._room()))

    def _call(self, claimed: Claimed) -> None:
        session_id = claimed.message.session_id
        task = self._calls[session_id] = asyncio.create_task(self._send(claimed))
        task.add_done_callback(lambda _: self._returned(session_id))

    def _returned(self, session_id: str) -> None:
        del self._calls[session_id]
        self._wake.set()

    async def _send(self, claimed: Claimed) -> None:
        # The lane may have been woken by the job of another message: the trace must be this message's.
        message = claimed.message
        ids = {"correlation_id": message.correlation_id, "message_id": message.id, "session_id": message.session_id}
        with tracing.resumed(message.traceparent, "send message", **ids):
            self._answers.append(Answer(claimed, await self._result(claimed)))

    async def _result(self, claimed: Claimed) -> Any:
        message = claimed.message
        try:
            sent_as = await self.gateway.send(
                message.session_id, message.external_user_id, message.content, message.whatsapp_message_id
            )
        except GatewayError as refusal:
            error = await self._explain(message.session_id, refusal)
        except Exception as unforeseen:  # it is not known whether it was sent
            log.exception("send_failed")
            error = GatewayOutcomeUnknown(f"the call failed: {type(unforeseen).__name__}")
        else:
            metrics.SENDS.labels("sent").inc()
            return sent_as
        attempts = message.attempts + isinstance(error, GatewayOutcomeUnknown)
        verdict = after_failure(error, attempts=attempts, deferrals=claimed.deferrals + 1, policy=self.policy)
        metrics.SENDS.labels("retry" if isinstance(verdict, Retry) else metrics.send_code(verdict.code)).inc()
        log.warning("not_sent", code=shown_code(error.code), verdict=type(verdict).__name__)
        return verdict

    async def _explain(self, session_id: str, error: GatewayError) -> GatewayError:
        """Find the reason of a refusal without a code: the session is not connected, or the message is invalid."""
        if not isinstance(error, GatewayRefused) or error.explicit:
            return error
        match await self.gateway.status(session_id):
            case Connected():
                return error
            case NoAnswer(trouble):
                return GatewayUnreachable(trouble.detail)
        return GatewayRefused(error.detail, code="not_connected")

    async def stop(self) -> None:
        """End after the calls in progress; the next active process continues from the lanes' rows."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=GRACE_SECONDS)
            await end([self._task, *self._calls.values()])

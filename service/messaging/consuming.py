"""The life of a message: read it, handle it, publish what follows, acknowledge it. There are few ways to end.

done          handled, every output confirmed                        acknowledged
passed on     its key belongs to another partition                   acknowledged once the copy is confirmed
dead letter   it can never be processed, or failed three times       acknowledged once the copy is confirmed
held          the database or the broker is away                     waits here, is tried again
left          the process ends, or gives up, while it is held        unacknowledged: another process gets it
"""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from faststream.rabbit import RabbitMessage
from opentelemetry.trace import Span, SpanKind
from pydantic import ValidationError

from service import tracing
from service.domain.sending import backoff
from service.errors import BrokerUnavailable, Unavailable, Undeliverable
from service.messaging import topology
from service.messaging.dead_letters import dead_letter
from service.messaging.envelope import Envelope, Properties, copied_headers, received_attributes
from service.messaging.holding import Hold, Stopping
from service.messaging.partitions import Partition
from service.messaging.publishing import Publisher
from service.messaging.subscriptions import GRACE_SECONDS, Check, Share, Subscriptions
from service.messaging.turns import lane_key
from service.metrics import DEAD_LETTERS, HANDLED, HANDLER_ERRORS, HANDLING_SECONDS, MESSAGE_AGE
from whatsapp_qr_contracts.message import Message, storable
from whatsapp_qr_contracts.partitions import partition_of

log = structlog.get_logger()

_TRIES = 3
_TRACEBACK_CHARACTERS = 8_000
_UNKNOWN = "unknown"


Handler = Callable[[Any, Envelope], Awaitable[None]]
Routes = Mapping[type[Message], Handler]


class Consumer:
    """All partitions of one queue in this process.

    Args:
        url: the broker.
        queue: the partitioned queue.
        routes: the handler of each message that the queue carries. A handler may be run again for the same message
            at any time; it raises Unavailable where a part is away and Undeliverable where the message is no good.
        publisher: publishes what is passed on and the dead letters.
        hold: waits while a part is away.
        partitions: partitions of the queue.
        prefetch: unacknowledged messages per partition.
        ordered: whether messages of one key are handled one after another.
    """

    def __init__(
        self,
        url: str,
        queue: topology.PartitionedQueue,
        routes: Routes,
        *,
        publisher: Publisher,
        hold: Hold,
        partitions: int,
        prefetch: int,
        ordered: bool = True,
    ) -> None:
        self._queue = queue
        self._routes = {message.name: (message, handler) for message, handler in routes.items()}
        # Only names that we know may be a label: anybody may publish any other.
        self._seconds = {name: HANDLING_SECONDS.labels(queue.name, name) for name in (*self._routes, _UNKNOWN)}
        self._age = MESSAGE_AGE.labels(queue.name)
        self._publisher = publisher
        self._hold = hold
        self._count = partitions
        self.subscriptions = Subscriptions(
            url,
            [
                Partition(url, queue.queue(number), partial(self._live, number), prefetch=prefetch, ordered=ordered)
                for number in range(partitions)
            ],
            publisher,
            hold,
        )

    def start(self, share: Share | None = None, check: Check | None = None, *, declares: bool = True) -> None:
        """Subscribe as soon as the broker is there; returns at once.

        Args:
            share: says which partitions to subscribe to before the others; all of them, where it is not given.
            check: raises Unavailable while a part besides the broker is away; asked before subscribing again.
            declares: whether it declares all exchanges and queues before; else they have to be there.
        """

        async def everything() -> Sequence[int]:
            return range(self._count)

        async def check_all() -> None:
            if not await self._publisher.ping():
                message = "RabbitMQ is not reachable"
                raise BrokerUnavailable(message)
            if check is not None:
                await check()

        self.subscriptions.start(share or everything, check_all, declares=declares)

    @property
    def ready(self) -> bool:
        """Whether every partition is subscribed and nothing is held."""
        return self.subscriptions.ready and not self._hold.held

    async def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Finish what has begun, for at most so many seconds, and give up all partitions."""
        await self.subscriptions.stop(seconds)

    @property
    def alive(self) -> bool:
        """Whether what subscribes is there; the broker may be away."""
        return self.subscriptions.alive

    async def _live(self, number: int, delivery: RabbitMessage) -> bool:
        raw, name = delivery.raw_message, _name(delivery)
        if raw.timestamp is not None:
            self._age.observe(max(0.0, (datetime.now(UTC) - raw.timestamp).total_seconds()))
        attributes = received_attributes(self._queue.queue_name(number), number, raw)
        with tracing.root(f"process {self._queue.name}", SpanKind.CONSUMER, attributes, raw.headers) as span:
            tracing.about(correlation_id=raw.correlation_id or raw.message_id, message_id=raw.message_id)
            try:
                await self._hold(partial(self._process, number, name, delivery, span))
            except Stopping:
                span.set_attribute("whatsapp_qr.outcome", "left")
                return False
        return True

    async def _process(self, number: int, name: str, delivery: RabbitMessage, span: Span) -> None:
        known, began = name if name in self._routes else _UNKNOWN, time.perf_counter()
        try:
            try:
                outcome = await self._try(number, name, delivery)
            except Undeliverable as error:
                await self._bury(delivery, error)
                tracing.failed(span, error)
                outcome = "dead_letter"
        finally:
            self._seconds[known].observe(time.perf_counter() - began)
        span.set_attribute("whatsapp_qr.outcome", outcome)
        HANDLED.labels(self._queue.name, known, outcome).inc()

    async def _try(self, number: int, name: str, delivery: RabbitMessage) -> str:
        attempt = 1
        while True:
            try:
                return await self._handle(number, name, delivery)
            except (Unavailable, Undeliverable, Stopping):
                raise
            except Exception as error:
                HANDLER_ERRORS.labels(self._queue.name, name if name in self._routes else _UNKNOWN).inc()
                log.exception("handler_failed", queue=self._queue.name, attempt=attempt)
                if attempt == _TRIES:
                    reason = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
                    raise Undeliverable(reason, code="handler_failed") from error
            await asyncio.sleep(backoff(attempt))
            attempt += 1

    async def _bury(self, delivery: RabbitMessage, error: Undeliverable) -> None:
        log.error("dead_letter", queue=self._queue.name, code=error.code)
        await dead_letter(self._publisher, delivery, error, queue=self._queue.name)
        DEAD_LETTERS.labels(error.code).inc()

    async def _handle(self, number: int, name: str, delivery: RabbitMessage) -> str:
        raw = delivery.raw_message
        if name not in self._routes:
            message = f"{self._queue.name} carries no message of type {name!r}"
            raise Undeliverable(message, code="unknown_type")
        model, handler = self._routes[name]
        body = _read(model, raw.body, raw.headers or {})
        tracing.about(session_id=getattr(body, "session_id", None), chatbot_id=getattr(body, "chatbot_id", None))
        key = lane_key(raw.body, raw.headers)
        if (home := partition_of(key, self._count)) != number:
            await self._pass_on(delivery, model, home)
            return "passed_on"
        await handler(
            body,
            Envelope(
                message_id=storable(raw.message_id or "").strip(),
                timestamp=raw.timestamp,
                redelivered=bool(raw.redelivered),
            ),
        )
        return "done"

    async def _pass_on(self, delivery: RabbitMessage, model: type[Message], home: int) -> None:
        raw = delivery.raw_message
        await self._publisher.publish_raw(
            raw.body,
            exchange=model.exchange,
            routing_key=topology.routing_key(model, home),
            properties=Properties(
                raw.message_id or "", raw.correlation_id or "", model.name, copied_headers(raw.headers)
            ),
        )


def _name(delivery: RabbitMessage) -> str:
    raw = delivery.raw_message
    return raw.type or topology.name_of(raw.routing_key or "")


def _read(model: type[Message], body: bytes, headers: Mapping[str, Any]) -> Message:
    version = headers.get("schema-version", model.schema_version)
    if version not in range(1, model.schema_version + 1):
        message = (
            f"schema-version {version!r} of {model.name} is not known here; this service knows {model.schema_version}"
        )
        raise Undeliverable(message, code="unknown_version")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        # The content itself stays in the dead letter's body: it may hold what must not be in a log.
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        detail = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)
        code = "invalid_json" if faults[0]["type"] == "json_invalid" else "invalid_message"
        raise Undeliverable(detail, code=code) from error

"""One trace from a webhook to the reply: spans, and the context in HTTP and AMQP headers and in rows.

Only a request or a message begins a trace; other work is part of one or is not traced. Without an exporter (see
`exporting`) no span is recorded, but an incoming context is still passed on. Spans contain ids and codes; of an error
they contain the code or the class, never its text.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import privacy
from service.errors import ServiceError

Attributes = Mapping[str, str | int]
Describe = Callable[[], Attributes]
"""Returns a span's attributes; called only if the span is recorded."""

# The framework's own telemetry contains unfiltered paths and errors.
NOT_BY_FASTAPI: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

HEADERS = ("traceparent", "tracestate")
_MOST_CHARACTERS = 512
_W3C = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("whatsapp-qr")


def extracted(headers: Mapping[str, Any] | None) -> Context:
    """Return the context from headers; an empty one if they contain none, or none that can be read."""
    carrier = {
        name: value
        for name in HEADERS
        if headers and isinstance(value := headers.get(name), str) and len(value) <= _MOST_CHARACTERS
    }
    return _W3C.extract(carrier, Context()) if carrier else Context()


def inject(headers: MutableMapping[str, Any]) -> None:
    """Put the present context into headers, if there is one."""
    _W3C.inject(headers)


def traceparent() -> str | None:
    """Return the present context as a row stores it, or None if there is none."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers.get("traceparent")


@contextmanager
def root(name: str, kind: SpanKind, describe: Describe, headers: Mapping[str, Any] | None) -> Iterator[Span]:
    """Trace the work for a request or a message, as part of the trace in its headers."""
    context = extracted(headers)
    span = _begun(name, context, kind, describe)
    with _during(span, context):
        about()
        yield span


@contextmanager
def part(name: str, kind: SpanKind, describe: Describe, *, current: bool = True) -> Iterator[Span]:
    """Trace a part of the present work; outside of a trace nothing is traced.

    Args:
        name: of the operation, with few different values.
        kind: its kind.
        describe: returns its attributes.
        current: whether its own operations become its children.
    """
    if not trace.get_current_span().get_span_context().is_valid:
        yield INVALID_SPAN
        return
    span = _begun(name, None, kind, describe)
    with _during(span, None) if current else _ended(span):
        yield span


def _begun(name: str, context: Context | None, kind: SpanKind, describe: Describe) -> Span:
    span = _tracer.start_span(name, context, kind, record_exception=False, set_status_on_exception=False)
    if span.is_recording():
        span.set_attributes(describe())
    return span


@contextmanager
def resumed(parent: str | None, name: str, **ids: object) -> Iterator[None]:
    """Trace an operation as part of the trace of a row.

    Args:
        parent: the row's context.
        name: of the operation.
        ids: see `about`; until it ends.
    """
    with continued(parent):
        span: Span = INVALID_SPAN
        if trace.get_current_span().get_span_context().is_valid:
            span = _tracer.start_span(name, record_exception=False, set_status_on_exception=False)
        with _during(span, None), structlog.contextvars.bound_contextvars(**_told(ids)):
            yield


@contextmanager
def continued(parent: str | None) -> Iterator[None]:
    """Continue the trace of a row, unless the row has none or its trace is the present one."""
    if parent is None:
        yield
        return
    context = extracted({"traceparent": parent})
    its = trace.get_current_span(context).get_span_context()
    if not its.is_valid or its.trace_id == trace.get_current_span().get_span_context().trace_id:
        yield
        return
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


@contextmanager
def _during(span: Span, context: Context | None) -> Iterator[None]:
    token = attach(trace.set_span_in_context(span, context))
    try:
        with _ended(span):
            yield
    finally:
        detach(token)


@contextmanager
def _ended(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        failed(span, error)
        raise
    finally:
        span.end()


def failed(span: Span, error: BaseException) -> None:
    """Mark a span as failed, without the error's text: it may contain a customer's message."""
    code = privacy.shown_code(error.code) if isinstance(error, ServiceError) else type(error).__qualname__
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def about(**ids: object) -> None:
    """Add the ids of the present work to every later log line, and to the present span.

    Args:
        ids: names and ids; an id that may be a person's number appears as a hash, None changes nothing.
    """
    structlog.contextvars.bind_contextvars(**_told(ids))


def _told(ids: Mapping[str, object]) -> dict[str, str]:
    told = {name: privacy.shown(str(value)) for name, value in ids.items() if value is not None}
    span = trace.get_current_span()
    if told and span.is_recording():
        span.set_attributes({f"whatsapp_qr.{name}": value for name, value in told.items()})
    if (context := span.get_span_context()).is_valid:
        told["trace_id"] = trace.format_trace_id(context.trace_id)
    return told


def received(queue: str, partition: int, raw: Any) -> Attributes:
    """Return the attributes of a span for a received message."""
    return {
        **_message("process", "process", queue, raw.message_id or "", raw.correlation_id or ""),
        "messaging.destination.partition.id": str(partition),
        "messaging.message.body.size": len(raw.body),
    }


def published(exchange: str, routing_key: str, message_id: str, correlation_id: str) -> Attributes:
    """Return the attributes of a span for a publish."""
    return {
        **_message("publish", "send", exchange, message_id, correlation_id),
        "messaging.rabbitmq.destination.routing_key": routing_key,
    }


def _message(name: str, kind: str, destination: str, message_id: str, correlation_id: str) -> Attributes:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
        "messaging.message.id": privacy.shown(message_id),
        "messaging.message.conversation_id": privacy.shown(correlation_id),
    }

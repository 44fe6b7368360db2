"""One trace from a webhook to the reply: spans, and the context that travels in HTTP and AMQP headers and in rows.

Only a request or a message begins a trace; everything else is part of one or is not traced. Without an exporter (see
`exporting`) nothing is recorded, and the context that came in goes out again all the same. Spans carry ids and codes;
of an error they carry the code or the class, never its text.
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
"""Makes a span's attributes; called only where somebody records them."""

# What the framework would send by itself holds paths and errors as they came.
NOT_BY_FASTAPI: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

HEADERS = ("traceparent", "tracestate")
_MOST_CHARACTERS = 512
_W3C = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("whatsapp-qr")


def extracted(headers: Mapping[str, Any] | None) -> Context:
    """Return the context that came in headers; an empty one where none did, or none that can be read."""
    carrier = {
        name: value
        for name in HEADERS
        if headers and isinstance(value := headers.get(name), str) and len(value) <= _MOST_CHARACTERS
    }
    return _W3C.extract(carrier, Context()) if carrier else Context()


def inject(headers: MutableMapping[str, Any]) -> None:
    """Put the present context into headers, where there is one."""
    _W3C.inject(headers)


def traceparent() -> str | None:
    """Return the present context as a row keeps it, or None where there is none."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers.get("traceparent")


@contextmanager
def root(name: str, kind: SpanKind, describe: Describe, headers: Mapping[str, Any] | None) -> Iterator[Span]:
    """Trace what a request or a message asks for, as part of the trace that it came with."""
    context = extracted(headers)
    span = _begun(name, context, kind, describe)
    with _during(span, context):
        about()
        yield span


@contextmanager
def part(name: str, kind: SpanKind, describe: Describe, *, current: bool = True) -> Iterator[Span]:
    """Trace a part of what is being done; outside of a trace nothing is traced.

    Args:
        name: what is done, in few different words.
        kind: its kind.
        describe: makes its attributes.
        current: whether what it does in turn belongs to it.
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
    """Trace something as part of the trace of a row.

    Args:
        parent: the row's.
        name: what is done.
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
    """Go on with the trace of a row, unless it has none or this is part of it anyway."""
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
    """Mark a span as failed, without the error's text: it may hold what a customer wrote."""
    code = privacy.shown_code(error.code) if isinstance(error, ServiceError) else type(error).__qualname__
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def about(**ids: object) -> None:
    """Say what is being worked on: in every line that is logged from here on, and in the present span.

    Args:
        ids: names and ids; an id that may be somebody's number appears as a hash, None changes nothing.
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
    """Return what a span says of a message that was received."""
    return {
        **_message("process", "process", queue, raw.message_id or "", raw.correlation_id or ""),
        "messaging.destination.partition.id": str(partition),
        "messaging.message.body.size": len(raw.body),
    }


def published(exchange: str, routing_key: str, message_id: str, correlation_id: str) -> Attributes:
    """Return what a span says of a publish."""
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

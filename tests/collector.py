"""An OpenTelemetry collector for tests: takes OTLP over HTTP, keeps the spans, and draws a trace as a tree."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


@dataclass(frozen=True)
class Seen:
    """A span as it arrived."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """The traces that it is linked with."""
    failed: bool
    text: str
    """All of it, as text."""


class Collector:
    """The spans that have arrived."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[Seen] = []

    def take(self, body: bytes) -> None:
        """Keep what one request brought."""
        for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {one.key: one.value.string_value for one in of_process.resource.attributes}
            for scope in of_process.scope_spans:
                self.spans += [_seen(resource["service.name"], str(of_process.resource), span) for span in scope.spans]

    def of_trace(self, trace_id: str) -> list[Seen]:
        """Return a trace's spans, in the order in which they began."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start)

    def traces_with(self, **attributes: str) -> set[str]:
        """Return the traces in which a span has these attributes (`__` stands for a dot)."""
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        return {span.trace_id for span in self.spans if wanted.items() <= span.attributes.items()}


def _seen(service: str, resource: str, span: Any) -> Seen:
    values = {one.key: one.value.int_value or one.value.string_value for one in span.attributes}
    return Seen(
        service=service,
        name=span.name,
        kind=KINDS.get(span.kind, "?"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=values,
        links=tuple(link.trace_id.hex() for link in span.links),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        text=f"{resource} {span}",
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_port)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def tree(spans: Iterable[Seen]) -> str:
    """Draw a trace: each span under the one that it is a part of, with its process and when it began and ended."""
    found = sorted(spans, key=lambda span: span.start)
    known, first = {span.span_id for span in found}, found[0].start
    lines: list[str] = []

    def draw(span: Seen, depth: int) -> None:
        begin, end = ((at - first) / 1_000_000 for at in (span.start, span.end))
        head = f"{'  ' * depth}{span.name}"
        lines.append(f"{head:<60}{span.service.removeprefix('whatsapp-qr-'):<22}{begin:>7.0f} to {end:.0f} ms")
        for part in found:
            if part.parent_id == span.span_id:
                draw(part, depth + 1)

    for span in found:
        if span.parent_id not in known:
            draw(span, 0)
    return "\n".join(lines)

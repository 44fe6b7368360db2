"""Exports traces to a collector, by OTLP over HTTP. Needs the extra `otlp`, which only this module imports.

An unavailable collector never slows or stops the service: spans wait in a bounded queue and further ones are dropped,
another thread sends them, and the process waits a few seconds for it at most when it stops. OTEL_TRACES_SAMPLER,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS and similar variables work as the SDK documents them.
"""

import threading
from importlib.metadata import version
from typing import TYPE_CHECKING

from service import metrics
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_EXPORT_SECONDS = 5.0
_END_SECONDS = 3.0

_providers: list["TracerProvider"] = []


def start(role: str, endpoint: str | None) -> None:
    """Publish version and role at /metrics; if there is a collector, record spans from now on and send them there.

    Args:
        role: the process, which becomes part of `service.name`.
        endpoint: the collector's base URL; `/v1/traces` is added.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    metrics.BUILD_INFO.labels(version("whatsapp-qr"), role).set(1)
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and the exporter of traces is not installed: "
            "pip install 'whatsapp-qr[otlp]'"
        ) from error
    from opentelemetry import trace  # noqa: PLC0415

    named = {"service.name": f"whatsapp-qr-{role}", "service.version": version("whatsapp-qr")}
    # The SDK's own exit handler would wait for the collector without a limit.
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _providers.append(provider)


def stop() -> None:
    """Send the remaining spans, for at most 3 s."""
    while _providers:
        ending = threading.Thread(target=_providers.pop().shutdown, daemon=True)
        ending.start()
        ending.join(_END_SECONDS)

"""What the ingress counts of its requests, and in which trace they are."""

from collections.abc import AsyncIterator

import pytest
import structlog
from prometheus_client import REGISTRY

from service.persistence.database import Database
from tests.component.ingress_app import INCOMING, Ingress

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def ingress(database: Database) -> AsyncIterator[Ingress]:
    ingress = Ingress(database)
    yield ingress
    await ingress.http.aclose()


def requests(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return REGISTRY.get_sample_value("whatsapp_qr_requests_total", labels) or 0


async def test_a_request_that_fails_is_counted(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    """The framework answers it with 500 outside of all middleware, and an alert is to see it."""

    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ingress.database, "read", broken)
    before = requests("GET", "/whatsapp-qr/status/{session_id}", 500)
    assert (await ingress.get("/status/unknown")).status_code == 500
    assert requests("GET", "/whatsapp-qr/status/{session_id}", 500) == before + 1


async def test_a_method_that_somebody_made_up_is_no_label(ingress: Ingress) -> None:
    """Else each would be a new series."""
    before = requests("_OTHER", "none", 405)
    await ingress.http.request("CALL-ME-5491112345678", "/whatsapp-qr/send")
    seen = [sample.labels for family in REGISTRY.collect() for sample in family.samples]
    assert not [labels for labels in seen if "5491112345678" in str(labels)]
    assert requests("_OTHER", "none", 405) + requests("_OTHER", "/whatsapp-qr/send", 405) >= before


async def test_lines_of_a_request_are_its_own(ingress: Ingress) -> None:
    """They carry its trace and its ids, and nothing of the request before on the same connection."""
    seen = []

    async def publish(*_: object, **__: object) -> None:
        seen.append(structlog.contextvars.get_contextvars())

    ingress.broker.publish = publish  # type: ignore[method-assign]
    structlog.contextvars.bind_contextvars(left_over="of another")
    await ingress.post("/incoming", INCOMING, headers={"traceparent": TRACEPARENT})
    (bound,) = seen
    assert bound["trace_id"] == TRACEPARENT.split("-")[1]
    assert bound["session_id"] == INCOMING["sessionId"]
    assert bound["correlation_id"] == bound["message_id"]
    assert "left_over" not in bound
    structlog.contextvars.clear_contextvars()

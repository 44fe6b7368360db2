"""Patience for what the tests themselves publish: a disk that stands still for some seconds is no finding."""

import pytest

from service.messaging import publishing
from service.messaging.publishing import Publisher
from tests.amqp import SECONDS


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a publish wait for its confirm; tests of its limit give one of their own."""
    for name in ("_PUBLISH_SECONDS", "_CONNECT_SECONDS"):
        monkeypatch.setattr(publishing, name, SECONDS)
    for publish in (Publisher.publish, Publisher.publish_raw):
        monkeypatch.setitem(publish.__kwdefaults__, "seconds", SECONDS)  # type: ignore[attr-defined]

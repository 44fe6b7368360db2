"""Patience for callbacks: a machine that stands still for some seconds is no ingress that does not answer."""

import pytest

from service.simulator import callbacks
from tests.contract.gateways import PATIENCE


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no callback be repeated because it took long: tests count them."""
    monkeypatch.setattr(callbacks, "ATTEMPT_SECONDS", PATIENCE)

"""docs/observability.md explains every metric and every log line."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.metrics import MetricWrapperBase

from service import metrics
from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "observability.md").read_text(encoding="utf-8")
LEVELS = {"exception": "error"}
LOGGED = {"debug", "info", "warning", "error", "exception", "critical"}


def logged(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the event and the level of each line that a file logs."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=level),
                args=[ast.Constant(value=str(event)), *_],
            ) if level in LOGGED:
                yield event, LEVELS.get(level, level)


def test_every_log_event_is_explained() -> None:
    """With its level; one that is renamed or removed takes its line on the page along."""
    written = {one for file in (REPOSITORY / "service").rglob("*.py") for one in logged(file)}
    assert len(written) > 40
    rows = re.findall(r"(?m)^\| `([\w.]+)` \| (\w+) \| .+ \|$", PAGE)
    assert len(rows) == len(set(rows))
    assert set(rows) == written


METRICS = [one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase)]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric._name)
def test_every_metric_is_explained(metric: MetricWrapperBase) -> None:
    """Under the name by which Prometheus knows it, and with its labels."""
    labels = f"{{{','.join(metric._labelnames)}}}" if metric._labelnames else ""
    assert f"`{metric._name}{'_total' if isinstance(metric, Counter) else ''}{labels}`" in PAGE


def test_no_metric_is_missing_above() -> None:
    """All that are registered are those of the module."""
    registered = {family.name for family in REGISTRY.collect() if family.name.startswith("whatsapp_qr_")}
    assert registered == {metric._name for metric in METRICS}

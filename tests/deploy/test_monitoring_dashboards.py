"""The dashboards for Grafana: every panel says what it shows, about metrics that exist; and that this is noticed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deploy.monitoring import generate, known
from tests.deploy.monitored import MONITORING, dashboard_faults, dashboards

METRICS = known.known(generate.rules())


@pytest.mark.parametrize("name", ["overview", "session-health", "send-pipeline", "broker"])
def test_a_dashboard_is_about_what_exists(name: str) -> None:
    """Each panel has title, unit, description and a chosen source, and asks for metrics and labels that exist."""
    assert dashboard_faults(dashboards()[name], METRICS) == []


def test_each_metric_of_ours_can_be_seen() -> None:
    """Every metric of the service is on a dashboard or in a rule, so that none is measured for nobody."""
    shown = str(dashboards()) + str(generate.rules())
    families = {name.removesuffix("_bucket") for name in known.ours() if not name.endswith(("_sum", "_count"))}
    assert {family for family in families if family not in shown} == set()


def test_dashboards_have_different_addresses() -> None:
    """No two dashboards have the same address or title: Grafana would show one of them."""
    for name in ("uid", "title"):
        assert len({dashboard[name] for dashboard in dashboards().values()}) == len(dashboards())


def test_kubernetes_and_compose_bring_all_dashboards() -> None:
    """The component's ConfigMap has every dashboard, and Grafana beside compose looks for them in a folder."""
    component = yaml.safe_load((generate.COMPONENT / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {file for maps in component["configMapGenerator"] for file in maps["files"]}
    assert files == {f"dashboards/{name}.json" for name in dashboards()}
    provider = MONITORING / "grafana" / "provisioning" / "dashboards" / "whatsapp-qr.yaml"
    (one,) = yaml.safe_load(provider.read_text(encoding="utf-8"))["providers"]
    assert one["options"]["path"].startswith("/")


def _panel(dashboard: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
    return found


def _expression(text: str) -> Callable[[dict[str, Any]], None]:
    return lambda dashboard: _panel(dashboard)["targets"][0].update(expr=text)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_expression("sum(rate(whatsapp_qr_sends_total[5m]"), "unclosed"),
        (_expression("sum(whatsapp_qr_sent)"), "there is no metric whatsapp_qr_sent"),
        (_expression("sum(rate(whatsapp_qr_sends[5m]))"), "there is no metric whatsapp_qr_sends"),
        (_expression('sum(rate(whatsapp_qr_sends_total{code="x"}[5m]))'), "has no label code"),
        (_expression("sum by (code) (rate(whatsapp_qr_sends_total[5m]))"), "nothing has a label code"),
        (_expression('sum(rate(whatsapp_qr_sends_total{outcome="posted"}[5m]))'), "outcome is never posted"),
        (_expression('sum(whatsapp_qr_retrying{pod="$pod"})'), "nobody sets $pod"),
        (lambda one: _panel(one)["targets"][0].update(legendFormat="{{colour}}"), "nothing has a label colour"),
        (lambda one: _panel(one).update(title=""), "has no title"),
        (lambda one: _panel(one).update(description=""), "has no description"),
        (lambda one: _panel(one).update(targets=[]), "shows nothing"),
        (lambda one: _panel(one).update(datasource={"type": "prometheus", "uid": "mine"}), "a fixed data source"),
        (lambda one: _panel(one)["fieldConfig"]["defaults"].pop("unit"), "has no unit"),
        (lambda one: _panel(one).update(id=1), "the same id"),
        (lambda one: _panel(one)["gridPos"].update(x=0, y=0), "lie on each other"),
        (
            lambda one: one["templating"]["list"][1].update(query="label_values(nothing, namespace)"),
            "no metric nothing",
        ),
        (lambda one: one["templating"]["list"][1].update(query="label_values(whatsapp_qr_retrying, x)"), "with x"),
    ],
)
def test_a_wrong_panel_is_noticed(change: Callable[[dict[str, Any]], None], fault: str) -> None:
    """A panel that does not parse, names what does not exist, or lacks a text is told."""
    dashboard = copy.deepcopy(dashboards()["overview"])
    change(dashboard)
    assert fault in "\n".join(dashboard_faults(dashboard, METRICS))

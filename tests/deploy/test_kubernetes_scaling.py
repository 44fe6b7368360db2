"""What the autoscalers of components/keda are told: Prometheus itself evaluates their queries."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.capacity_rules import consumers_scale_to_the_partitions, scalers_look_at_what_exists
from tests.deploy.manifests import KUBERNETES, Objects, Rule, named, objects, of_kind, render
from tests.deploy.monitored import promtool
from tests.deploy.test_kubernetes_rules import complaints

SCALED = [f"whatsapp-qr-{role}-consumer" for role in ("session", "conversation", "outbound")]
HERE, OTHER = 'namespace="whatsapp-qr"', 'namespace="whatsapp-qr-staging"'
NAMED = {"conversation": "whatsapp_qr_oldest_unhandled_seconds", "outbound": "whatsapp_qr_oldest_pending_seconds"}


def query(name: str) -> str:
    """Return what a ScaledObject of production asks Prometheus."""
    text: str = named(objects("overlays/production"), "ScaledObject", name)["spec"]["triggers"][0]["metadata"]["query"]
    return text


def waiting(seconds: str, labels: str) -> list[dict[str, str]]:
    """Return series that say: something has been waiting for so long, in each of the three ways."""
    gauges = [f"{NAMED['conversation']}{{{labels}}}", f'{NAMED["outbound"]}{{session="connected",{labels}}}']
    found = [{"series": series, "values": f"{seconds}+0x40"} for series in gauges]
    slow = "0+0" if seconds in {"0", "NaN"} else "0+10"
    queue = f'queue="whatsapp-qr.sessions.1",{labels}'
    for limit, rises in (("10", "0+0"), ("20", slow), ("+Inf", slow)):
        series = f'whatsapp_qr_message_age_seconds_bucket{{le="{limit}",{queue}}}'
        found.append({"series": series, "values": f"{rises}x40"})
    return found


CASES: dict[str, tuple[list[dict[str, str]], dict[str, float]]] = {
    "nobody says anything": ([], dict.fromkeys(SCALED, 0)),
    "nothing waits": (waiting("0", HERE), dict.fromkeys(SCALED, 0)),
    "the database is away": (waiting("NaN", HERE), dict.fromkeys(SCALED, 0)),
    "staging waits": (waiting("50", OTHER) + waiting("0", HERE), dict.fromkeys(SCALED, 0)),
    "something waits": (
        waiting("50", HERE) + waiting("NaN", f'{HERE},pod="2"'),
        dict(zip(SCALED, (19.5, 50, 50), strict=True)),
    ),
    "it waits for its session": (
        [{"series": f'{NAMED["outbound"]}{{session="away",{HERE}}}', "values": "5000x40"}],
        dict.fromkeys(SCALED, 0),
    ),
}


def told(name: str, text: str, folder: Path) -> list[str]:
    """Return the cases in which a query has another value than it should."""
    wrong = []
    for case, (series, values) in CASES.items():
        expected = [{"labels": "{}", "value": values[name]}]
        asked = {"expr": text, "eval_time": "5m", "exp_samples": expected}
        tests = [{"interval": "15s", "input_series": series, "promql_expr_test": [asked]}]
        (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}), encoding="utf-8")
        if promtool("test", "rules", folder / "test.yaml").returncode:
            wrong.append(case)
    return wrong


@pytest.mark.parametrize("name", SCALED)
def test_a_scaler_is_told_how_long_work_waits(name: str, tmp_path: Path) -> None:
    """Always one number: 0 where nothing is known, and only of this installation."""
    assert told(name, query(name), tmp_path) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "cases"),
    [
        *((name, HERE, 'namespace=~".*"', ["staging waits"]) for name in SCALED),
        *((name, " or vector(0)", "", ["nobody says anything"]) for name in SCALED),
        *((name, " >= 0", "", ["the database is away"]) for name in SCALED),
        (SCALED[2], ',session="connected"', "", ["it waits for its session"]),
    ],
)
def test_a_wrong_query_is_found(name: str, right: str, wrong: str, cases: list[str], tmp_path: Path) -> None:
    """Without its guard a query has no number, or somebody else's."""
    assert right in query(name)
    assert set(cases) <= set(told(name, query(name).replace(right, wrong), tmp_path))


def _fallback(found: Objects) -> None:
    named(found, "ScaledObject", SCALED[0])["spec"]["fallback"]["replicas"] = 2


def _alerts(found: Objects) -> None:
    for rules in of_kind(found, "PrometheusRule"):
        rules["spec"]["groups"][0]["rules"][0]["expr"] = "vector(6)"


def _query(change: Callable[[str], str]) -> Callable[[Objects], None]:
    def broken(found: Objects) -> None:
        metadata = named(found, "ScaledObject", SCALED[1])["spec"]["triggers"][0]["metadata"]
        metadata["query"] = change(metadata["query"])

    return broken


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (consumers_scale_to_the_partitions, _fallback),
        (consumers_scale_to_the_partitions, _alerts),
        (scalers_look_at_what_exists, _query(lambda text: text.replace(HERE, OTHER))),
        (scalers_look_at_what_exists, _query(lambda text: text.replace(HERE, ""))),
        (scalers_look_at_what_exists, _query(lambda text: text.replace(" >= 0", ""))),
        (scalers_look_at_what_exists, _query(lambda text: text.removesuffix(" or vector(0)"))),
    ],
)
def test_what_breaks_a_rule_is_found_by_it(rule: Rule, broken: Callable[[Objects], None]) -> None:
    """Exactly that rule complains."""
    found = objects("overlays/production")
    broken(found)
    assert list(complaints(found)) == [rule]


def _in_another_namespace(folder: Path, *components: str) -> Objects:
    kubernetes = os.path.relpath(KUBERNETES, folder)
    (folder / "release").mkdir()
    component = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component", "namespace": "elsewhere"}
    (folder / "release" / "kustomization.yaml").write_text(yaml.safe_dump(component))
    written: dict[str, Any] = {
        "resources": [f"{kubernetes}/base"],
        "components": [f"{kubernetes}/components/keda", "release", *(f"{kubernetes}/{one}" for one in components)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
    return render(folder)


def test_each_installation_asks_for_its_own(tmp_path: Path) -> None:
    """In another namespace the queries differ by its name and nothing else; who forgets the component is told."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    found = _in_another_namespace((tmp_path / "with").resolve(), "components/keda/namespace")
    for name in SCALED:
        trigger = named(found, "ScaledObject", name)["spec"]["triggers"][0]
        assert trigger["metadata"]["query"] == query(name).replace(HERE, 'namespace="elsewhere"')
    assert list(scalers_look_at_what_exists(found)) == []
    assert len(list(scalers_look_at_what_exists(_in_another_namespace((tmp_path / "without").resolve())))) == 3

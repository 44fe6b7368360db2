"""The rules for Prometheus: valid, tested, about metrics that exist, and each with a page; and that this is noticed."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring import generate
from service import metrics
from service.messaging import topology
from service.settings import Settings
from tests.deploy.monitored import MONITORING, PAGES, REPOSITORY, alerts, promtool, rule_faults

RULES = generate.rules()
TESTS: dict[str, Any] = yaml.safe_load((MONITORING / "rules_test.yaml").read_text(encoding="utf-8"))
QUEUES = re.findall(r'queue=~"([^"]+)"', "".join(str(rule["expr"]) for g in RULES["groups"] for rule in g["rules"]))

# What turns an alert into one that fires too early, too late or about something else: its text, and a wrong one.
WRONG = {
    "WhatsappQrDeadLetters": [("> 0", "> 1"), ("[5m]", "[1m]"), ("by (namespace, reason)", "by (namespace, pod)")],
    "WhatsappQrQueueWithoutConsumer": [
        ("== 0", "<= 1"),
        ("== 0", "< 0"),
        ("max by", "min by"),
        ("[0-9]+|entry", "[1-2]+|entry"),
    ],
    "WhatsappQrPartitionWithoutConsumer": [("< scalar", "<= scalar"), ("sum by", "max by"), ("< scalar", "> scalar")],
    "WhatsappQrBacklogGrowing": [("> 500", "> 650"), ("> 500", "> 300"), ("> 0", ">= 0"), ("and", "or")],
    "WhatsappQrMessageAge": [("> 60", "> 100"), ("> 60", "> 50"), ("0.95", "0.99"), ("0.95", "0.5")],
    "WhatsappQrOldestPending": [("> 900", "> 1000"), ("> 900", "> 800"), ('{session="connected"}', "")],
    "WhatsappQrOldestUnhandled": [("> 120", "> 160"), ("> 120", "> 100")],
    "WhatsappQrPublishFailures": [("0.05", "0.07"), ("0.05", "0.03"), ('{outcome="failed"}', "")],
    "WhatsappQrUnroutable": [("or increase", "unless increase"), ("> 0", ">= 0"), ('outcome="unroutable"', 'type!=""')],
    "WhatsappQrHandlerErrors": [("0.05", "0.07"), ("0.05", "0.03"), ("or 0", "and 0")],
    "WhatsappQrRelaying": [("max by", "min by"), ("> 0", "> 1")],
    "WhatsappQrEventsRefused": [("or increase", "unless increase"), ("> 0", ">= 0"), ("15m", "60m")],
    "WhatsappQrRedriven": [("or increase", "unless increase"), ("> 0", ">= 0"), ("30m", "10m")],
    "WhatsappQrSessionDisconnects": [
        ("0.1", "0.15"),
        ("0.1", "0.05"),
        (", 3", ", 1"),
        ("|requested", ""),
        ("[30m]", "[1m]"),
    ],
    "WhatsappQrSendFailures": [
        ("0.1", "0.15"),
        ("0.1", "0.07"),
        (", 5", ", 3"),
        ("|not_on_whatsapp", ""),
        ("|expired", ""),
    ],
    "WhatsappQrGatewayUnreachable": [
        ("0.5", "0.7"),
        ("0.5", "0.3"),
        ("unreachable|unknown", "unreachable"),
        ("unreachable|unknown", "unknown"),
        ("unreachable|unknown", "unreachable|refused"),
    ],
    "WhatsappQrBrokerAlarm": [
        ("memory_used_watermark > 0", "memory_used_watermark >= 0"),
        ("by (namespace, instance)", ""),
    ],
    "WhatsappQrMetricsAbsent": [
        ('{role="ingress"}', '{role="door"}'),
        ("whatsapp_qr_oldest_pending_seconds", "whatsapp_qr_build_info"),
        ('{queue="whatsapp-qr.sessions"}', ""),
    ],
    "WhatsappQrMigrationFailed": [('condition="true", ', ""), ("(migrate|topology)", "migrate"), ("> 0", "> 1")],
}
WITHOUT_PATIENCE = sorted(name for name, alert in alerts(RULES).items() if "for" in alert)


def test_the_rules_and_the_configuration_are_valid() -> None:
    """Prometheus' own tool accepts the rules, their templates, and the configuration beside compose."""
    assert promtool("check", "rules", MONITORING / "rules.yaml").returncode == 0
    assert promtool("check", "config", MONITORING / "prometheus.yml").returncode == 0


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """All examples of rules_test.yaml come out as they say."""
    run = promtool("test", "rules", MONITORING / "rules_test.yaml")
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_is_tested_firing_and_silent() -> None:
    """Each alert has an example in which it fires, and one in which it does not."""
    for name in alerts(RULES):
        asked = [case for test in _tests_of(name) for case in test["promql_expr_test"]]
        assert any(case["exp_samples"] for case in asked), name
        assert any(not case["exp_samples"] for case in asked), name


def _tests_of(name: str) -> list[dict[str, Any]]:
    return [
        test
        for test in TESTS["tests"]
        if any(f'alertname="{name}"' in case["expr"] for case in test["promql_expr_test"])
    ]


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [(name, *change) for name, changes in WRONG.items() for change in changes]
)
def test_a_wrong_expression_is_noticed(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    """An alert with another threshold, window, selection or grouping fails its examples."""
    assert _fails(tmp_path, name, expr=_replaced(alerts(RULES)[name]["expr"], right, wrong))


@pytest.mark.parametrize("name", sorted(alerts(RULES)))
def test_a_misspelt_metric_is_noticed(name: str, tmp_path: Path) -> None:
    """An alert about a metric that does not exist fails its examples, and is told as such."""
    expression = re.sub(r"\b(whatsapp_qr|rabbitmq|kube)(_|:)", r"\1s\2", alerts(RULES)[name]["expr"])
    assert _fails(tmp_path, name, expr=expression)
    rules = copy.deepcopy(RULES)
    alerts(rules)[name]["expr"] = expression
    assert any("there is no metric" in fault for fault in rule_faults(rules, PAGES))


@pytest.mark.parametrize("name", WITHOUT_PATIENCE)
def test_an_alert_without_patience_is_noticed(name: str, tmp_path: Path) -> None:
    """An alert that does not wait fails its examples."""
    assert _fails(tmp_path, name, **{"for": "0s"})


def _replaced(text: str, right: str, wrong: str) -> str:
    assert right in text
    return text.replace(right, wrong)


def _fails(folder: Path, name: str, **changed: str) -> bool:
    """Run the examples of one alert with a changed copy of it."""
    rules = copy.deepcopy(RULES)
    alerts(rules)[name].update(changed)
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") in {None, name}]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    assert promtool("check", "rules", folder / "rules.yaml").returncode == 0
    (folder / "test.yaml").write_text(yaml.safe_dump(TESTS | {"tests": _tests_of(name)}), encoding="utf-8")
    return promtool("test", "rules", folder / "test.yaml").returncode != 0


def test_the_rules_are_about_what_exists() -> None:
    """Every metric, label and label value of a rule exists, and every alert has severity, texts and a page."""
    assert rule_faults(RULES, PAGES) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"expr": "sum by (namespace, reason (x)"}, "unclosed"),
        ({"expr": 'max by (namespace, reason) (whatsapp_qr_stored_dead_letters{kind="x"}) > 0'}, "has no label kind"),
        ({"expr": "max by (namespace, colour) (whatsapp_qr_stored_dead_letters) > 0"}, "nothing has a label colour"),
        ({"expr": 'max by (namespace, reason) (whatsapp_qr_dead_letters_total{reason="odd"})'}, "reason is never odd"),
        ({"expr": 'max by (namespace) (whatsapp_qr_oldest_pending_seconds{session="gone"})'}, "session is never gone"),
        ({"expr": "max by (namespace) (whatsapp_qr_stored_dead_letters) > 0"}, "no label reason to tell"),
        ({"labels": {"severity": "page"}}, "has no severity"),
        (
            {"annotations": {"summary": "x", "runbook_url": "docs/runbook/WhatsappQrDeadLetters.md"}},
            "has no description",
        ),
        ({"annotations": {"summary": "x", "description": "x", "runbook_url": "docs/runbook/x.md"}}, "has no page"),
    ],
)
def test_a_wrong_rule_is_noticed(change: dict[str, Any], fault: str) -> None:
    """A rule that does not parse, names what does not exist, or lacks a text is told."""
    rules = copy.deepcopy(RULES)
    alerts(rules)["WhatsappQrDeadLetters"].update(change)
    assert fault in "\n".join(rule_faults(rules, PAGES))


def test_an_alert_without_a_page_is_noticed(tmp_path: Path) -> None:
    """Where the runbook has no page of an alert's name that is told."""
    assert "WhatsappQrRedriven has no page" in rule_faults(RULES, tmp_path)


def test_the_rules_are_about_our_queues() -> None:
    """Rules on queues match each queue of the topology, for any PARTITIONS, and no ingress' own queue."""
    assert QUEUES
    for text in QUEUES:
        pattern = re.compile(text.replace(r"\\", "\\"))
        assert all(pattern.fullmatch(queue.name) for queue in topology.queues(64))
        assert not pattern.fullmatch(topology.INGRESS_PREFIX + "abc")
        assert not pattern.fullmatch("whatsapp-qr.sessions.x")


def test_the_rules_know_the_partitions() -> None:
    """The number of partitions in the rules is the setting's default, and what Kubernetes sets."""
    (record,) = (
        rule for group in RULES["groups"] for rule in group["rules"] if rule.get("record") == "whatsapp_qr:partitions"
    )
    assert record["expr"] == f"vector({Settings.model_fields['partitions'].default})"
    settings = (REPOSITORY / "deploy" / "kubernetes" / "settings" / "settings.env").read_text(encoding="utf-8")
    assert record["expr"] == f"vector({dict(re.findall('(.+)=(.+)', settings))['PARTITIONS']})"


def test_the_age_can_be_seen() -> None:
    """The histogram of ages has buckets beyond the threshold, without which the alert could never fire."""
    assert sorted(metrics.MESSAGE_AGE._upper_bounds)[-2] > 60


def _jobs() -> dict[str, dict[str, Any]]:
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    return {job["job_name"]: job for job in configuration["scrape_configs"]}


def test_rabbitmq_is_asked_for_the_queues() -> None:
    """Compose and Kubernetes ask RabbitMQ for the page that tells queues apart, with the same families of metrics."""
    job = _jobs()["rabbitmq-queues"]
    monitors = yaml.safe_load_all((generate.COMPONENT / "monitors.yaml").read_text(encoding="utf-8"))
    (asked,) = (
        endpoint
        for monitor in monitors
        for endpoint in monitor["spec"].get("endpoints", [])
        if endpoint["path"] == job["metrics_path"]
    )
    assert asked["params"]["family"] == job["params"]["family"] == ["queue_coarse_metrics", "queue_consumer_count"]


def test_generated_files_are_up_to_date() -> None:
    """The committed dashboards and PrometheusRule are what the generator makes, byte for byte, in any process."""
    for seed in ("1", "2"):
        command = [sys.executable, MONITORING / "generate.py", "--check"]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{REPOSITORY}"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def test_a_stale_file_is_noticed(tmp_path: Path) -> None:
    """A file that was edited, is missing, or is left over is told."""
    files = generate.generated()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert generate.out_of_date(tmp_path, files) == []
    (tmp_path / "dashboards" / "old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "dashboards" / "broker.json").write_text("{}", encoding="utf-8")
    (tmp_path / "prometheusrule.yaml").unlink()
    assert generate.out_of_date(tmp_path, files) == [
        "dashboards/old.json is left over",
        "dashboards/broker.json is out of date",
        "prometheusrule.yaml is out of date",
    ]


def test_the_prometheus_rule_has_all_rules(capsys: pytest.CaptureFixture[str]) -> None:
    """The PrometheusRule has the rules as they are written, with links that begin as one likes."""
    base = "https://git.example.com/runbook/"
    assert generate.main(["--runbook-base", base]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    committed = yaml.safe_load((generate.COMPONENT / "prometheusrule.yaml").read_text(encoding="utf-8"))
    assert committed["spec"]["groups"] == RULES["groups"]
    links = {alert["annotations"]["runbook_url"] for alert in alerts(printed["spec"]).values()}
    assert links == {f"{base}{name}.md" for name in alerts(RULES)}

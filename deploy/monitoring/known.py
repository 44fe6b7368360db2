"""Every metric that rules, dashboards and runbook may use, with its labels, and what is wrong with an expression."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import promql_parser
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import CollectorRegistry

TARGET = frozenset({"namespace", "pod", "container", "instance", "job"})
"""What Prometheus and its operator add to whatever they scrape."""
_QUEUE = frozenset({"vhost", "queue"})
_NONE: frozenset[str] = frozenset()

RABBITMQ_DETAILED = {
    "rabbitmq_detailed_queue_messages_ready": _QUEUE,
    "rabbitmq_detailed_queue_messages_unacked": _QUEUE,
    "rabbitmq_detailed_queue_consumers": _QUEUE,
}
"""/metrics/detailed?family=queue_coarse_metrics&family=queue_consumer_count: as a real node says in
tests/deploy/test_monitoring_broker.py, and as rabbitmq-server's deps/rabbitmq_prometheus/metrics-detailed.md lists.
"""
RABBITMQ = {
    "rabbitmq_alarms_memory_used_watermark": _NONE,
    "rabbitmq_alarms_free_disk_space_watermark": _NONE,
    "rabbitmq_alarms_file_descriptor_limit": _NONE,
    "rabbitmq_connections": _NONE,
    "rabbitmq_process_resident_memory_bytes": _NONE,
    "rabbitmq_resident_memory_limit_bytes": _NONE,
    "rabbitmq_disk_space_available_bytes": _NONE,
    "rabbitmq_disk_space_available_limit_bytes": _NONE,
    "rabbitmq_global_messages_received_total": frozenset({"protocol"}),
    "rabbitmq_global_messages_confirmed_total": frozenset({"protocol"}),
    "rabbitmq_global_messages_unroutable_returned_total": frozenset({"protocol"}),
    "rabbitmq_global_messages_redelivered_total": frozenset({"protocol", "queue_type"}),
    "rabbitmq_global_messages_dead_lettered_delivery_limit_total": frozenset({"queue_type", "dead_letter_strategy"}),
}
"""/metrics, seen there as well."""
ELSEWHERE = {
    # kube-state-metrics, docs/metrics/workload/job-metrics.md
    "kube_job_failed": frozenset({"job_name", "condition"}),
    # Prometheus itself
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    "up": _NONE,
}

_SERIES = {
    "gauge": {"": _NONE},
    "counter": {"_total": _NONE},
    "histogram": {"_bucket": frozenset({"le"}), "_sum": _NONE, "_count": _NONE},
}

Labels = Mapping[str, frozenset[str]]


def ours(registry: CollectorRegistry = REGISTRY) -> dict[str, frozenset[str]]:
    """Return the metrics of this service as Prometheus names them, from the code itself."""
    import service.metrics  # noqa: F401, PLC0415  # what it defines is registered by this

    found: dict[str, frozenset[str]] = {}
    collectors = registry._collector_to_names  # noqa: SLF001  # there is no other way to the labels
    for collector in collectors:
        if isinstance(collector, MetricWrapperBase) and collector._name.startswith("whatsapp_qr_"):  # noqa: SLF001
            labels = frozenset(collector._labelnames)  # noqa: SLF001
            for suffix, more in _SERIES[collector._type or "gauge"].items():  # noqa: SLF001
                found[collector._name + suffix] = labels | more  # noqa: SLF001
    return found


def known(rules: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return all metrics that exist, those that the rules record among them."""
    metrics = {**ours(), **RABBITMQ_DETAILED, **RABBITMQ, **ELSEWHERE}
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                metrics[rule["record"]] = _grouped_by(promql_parser.parse(rule["expr"]))
    return metrics


def faults(expression: str, metrics: Labels, *, legend: str = "") -> list[str]:
    """Return what is wrong with an expression: it does not parse, or names a metric or a label that does not exist."""
    plain = re.sub(r"\$__(rate_)?interval|\$__range", "5m", expression)
    try:
        tree = promql_parser.parse(plain)
    except ValueError as error:
        return [f"{expression}: {error}"]
    selectors, used = _parts(tree)
    found: list[str] = []
    available = set(TARGET)
    for selector in selectors:
        name = selector.name or ""
        if name not in metrics:
            found.append(f"{expression}: there is no metric {name}")
            continue
        labels = metrics[name] | TARGET
        available |= labels
        found += [
            f"{expression}: {name} has no label {matcher.name}"
            for matcher in _matchers(selector)
            if matcher.name not in labels
        ]
    used |= set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))
    made = set(re.findall(r'label_replace\(.*?,\s*"(\w+)",', plain, flags=re.DOTALL))
    return found + [f"{expression}: nothing has a label {label}" for label in sorted(used - available - made)]


def _parts(tree: promql_parser.Expr) -> tuple[list[promql_parser.VectorSelector], set[str]]:
    selectors: list[promql_parser.VectorSelector] = []
    labels: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            selectors.append(node.vector_selector)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching:
            labels.update(node.modifier.matching.labels)

    promql_parser.walk(tree, visit)
    return selectors, labels


def _matchers(selector: promql_parser.VectorSelector) -> Iterable[promql_parser.Matcher]:
    yield from selector.matchers.matchers
    for group in selector.matchers.or_matchers:
        yield from group


def _grouped_by(tree: promql_parser.Expr) -> frozenset[str]:
    if isinstance(tree, promql_parser.AggregateExpr) and tree.modifier is not None:
        return frozenset(tree.modifier.labels)
    return _NONE

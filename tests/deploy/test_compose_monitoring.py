"""Prometheus beside compose watches every container of every process; and what it would miss is noticed."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.deploy import compose
from tests.servers import REPOSITORY

SERVICES = compose.read()["services"]
CONFIGURED = yaml.safe_load((REPOSITORY / "deploy" / "monitoring" / "prometheus.yml").read_text(encoding="utf-8"))

Job = dict[str, Any]


def _faults(configured: dict[str, Any]) -> Iterator[str]:
    """Yield what Prometheus would not watch, or not as a whole."""
    jobs = configured["scrape_configs"]
    fixed = {target for job in jobs for one in job.get("static_configs", []) for target in one["targets"]}
    found = {
        f"{name}:{one['port']}"
        for job in jobs
        for one in job.get("dns_sd_configs", [])
        for name in one["names"]
        if one["type"] == "A"
    }
    for target in sorted(fixed):
        if target.partition(":")[0] in compose.ROLES:
            yield f"{target} is one container of several"
    environments = {role: SERVICES[role]["environment"] for role in compose.ROLES}
    ports = {role: given.get("HEALTH_PORT", given.get("HTTP_PORT")) for role, given in environments.items()}
    serving = {f"{role}:{port}" for role, port in ports.items()} | {"rabbitmq:15692"}
    yield from (f"{target} is not watched" for target in sorted(serving - fixed - found))
    yield from (f"{target} does not exist" for target in sorted((fixed | found) - serving))
    mounted = {one["target"] for one in SERVICES["prometheus"]["volumes"]}
    yield from (name for name in configured["rule_files"] if f"/etc/prometheus/{name}" not in mounted)


def test_every_process_is_watched_however_many_there_are() -> None:
    """By what its name resolves to, on the port where it answers; the broker too; what Prometheus reads is mounted."""
    assert list(_faults(CONFIGURED)) == []


def _of(job: Job) -> Job:
    found: Job = job["dns_sd_configs"][1]
    return found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda job: job.update(static_configs=[{"targets": ["ingress:8000"]}]), "ingress:8000 is one container"),
        (lambda job: _of(job)["names"].remove("outbound-consumer"), "outbound-consumer:8080 is not watched"),
        (lambda job: _of(job).update(port=8081), "session-consumer:8080 is not watched"),
        (lambda job: _of(job).update(type="SRV"), "session-consumer:8080 is not watched"),
        (lambda job: _of(job)["names"].append("sender"), "sender:8080 does not exist"),
    ],
)
def test_what_would_be_missed_is_noticed(change: Callable[[Job], object], fault: str) -> None:
    """A fixed target of a process that may be scaled, a process, a port or a kind of record that is wrong."""
    configured = copy.deepcopy(CONFIGURED)
    change(configured["scrape_configs"][0])
    assert fault in "\n".join(_faults(configured))


def test_a_rule_file_that_is_not_mounted_is_noticed() -> None:
    """Prometheus would not start."""
    assert list(_faults(CONFIGURED | {"rule_files": ["rules.yaml", "more.yaml"]})) == ["more.yaml"]

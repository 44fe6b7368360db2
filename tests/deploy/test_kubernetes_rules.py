"""Every pod is as the house wants it, every reference leads somewhere, and each rule notices what it is there for."""

import copy

import pytest

from tests.deploy import (
    breaking,
    breaking_operators,
    capacity_rules,
    operator_rules,
    pod_security,
    reference_rules,
    workload_rules,
)
from tests.deploy.breaking import Break
from tests.deploy.manifests import (
    CHECKS,
    COMPONENTS,
    JOBS,
    REPARTITIONS,
    ROLES,
    SERVICES,
    Objects,
    Rule,
    combined,
    container,
    objects,
    workload,
    workloads,
)

REFERENCES = (*reference_rules.RULES, *capacity_rules.RULES)
RULES = (*pod_security.RULES, *workload_rules.RULES, *operator_rules.RULES, *REFERENCES)
# On one machine there is one pod of each, which goes when its node goes; its servers are not part of the service.
NOT_LOCAL = {workload_rules.survives_drains, operator_rules.everything_is_part_of_it}
# What compares the topology does it as the job that makes it.
BORROWED = {pod_security.has_an_account_of_its_own, pod_security.has_a_secret_of_its_own}
BREAKS = [
    *(("overlays/production", rule, broken) for rule, broken in breaking.PRODUCTION),
    *(("overlays/production", rule, broken) for rule, broken in breaking_operators.PRODUCTION),
    *(("overlays/production/migrate", rule, broken) for rule, broken in breaking.JOBS),
    *(("overlays/production/migrate", rule, broken) for rule, broken in breaking_operators.JOBS),
]


def complaints(found: Objects) -> dict[Rule, list[str]]:
    """Return what breaks the rules, by rule."""
    return {rule: broken for rule in RULES if (broken := list(rule(found)))}


@pytest.mark.parametrize("root", [*SERVICES, *JOBS, *CHECKS, *REPARTITIONS])
@pytest.mark.parametrize("rule", RULES)
def test_the_rules_hold(rule: Rule, root: str) -> None:
    """In every environment, for the services and for the jobs."""
    if not (root.startswith("overlays/local") and rule in NOT_LOCAL) and not (root in CHECKS and rule in BORROWED):
        assert list(rule(objects(root))) == []


@pytest.mark.parametrize(("jobs", "checks"), [*zip(JOBS, CHECKS, strict=True)])
def test_the_check_is_the_topology_job_with_another_command(jobs: str, checks: str) -> None:
    """Same user, same rights, same image and settings, beside it; and nothing migrates."""
    check, topology = workload(objects(checks), "whatsapp-qr-check"), workload(objects(jobs), "whatsapp-qr-topology")
    assert container(objects(checks), check.name)["args"] == ["topology", "check"]
    check.spec["containers"][0]["args"] = topology.spec["containers"][0]["args"]
    assert (check.spec, check.labels) == (topology.spec, topology.labels)
    assert [pod.name for pod in workloads(objects(checks))] == [check.name]


@pytest.mark.parametrize(("jobs", "repartition"), [*zip(JOBS, REPARTITIONS, strict=True)])
def test_a_change_of_partitions_is_a_release_with_another_command(jobs: str, repartition: str) -> None:
    """Everything else is as in a release."""
    changed = copy.deepcopy(objects(repartition))
    assert container(changed, "whatsapp-qr-migrate")["args"] == ["migrate", "--repartition"]
    container(changed, "whatsapp-qr-migrate")["args"] = container(objects(jobs), "whatsapp-qr-migrate")["args"]
    assert changed == objects(jobs)


@pytest.mark.parametrize(("root", "rule", "broken"), BREAKS)
def test_what_breaks_a_rule_is_found_by_it(root: str, rule: Rule, broken: Break) -> None:
    """Exactly that rule complains."""
    found = objects(root)
    broken(found)
    assert [rule.__name__ for rule in complaints(found)] == [rule.__name__]


def test_every_rule_was_seen_to_complain() -> None:
    """None of them can only be content."""
    assert {rule for _, rule, _ in BREAKS} == set(RULES)


@pytest.mark.parametrize("root", SERVICES)
def test_every_process_is_there(root: str) -> None:
    """The rules speak of something: each environment runs all four."""
    assert {pod.role for pod in workloads(objects(root))} >= set(ROLES)


@pytest.mark.parametrize("left_out", COMPONENTS)
def test_no_component_needs_another(left_out: str) -> None:
    """All but one render together, and what they say of each other and the code is true."""
    found = combined(*(component for component in COMPONENTS if component != left_out))
    assert [complaint for rule in REFERENCES for complaint in rule(found)] == []

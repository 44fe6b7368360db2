"""Every pod is as the house wants it, every reference leads somewhere, and each rule notices what it is there for."""

import pytest

from tests.deploy import breaking, capacity_rules, pod_security, reference_rules, workload_rules
from tests.deploy.breaking import Break
from tests.deploy.manifests import COMPONENTS, JOBS, ROLES, SERVICES, Objects, Rule, combined, objects, workloads

REFERENCES = (*reference_rules.RULES, *capacity_rules.RULES)
RULES = (*pod_security.RULES, *workload_rules.RULES, *REFERENCES)
# On one machine there is one pod of each, which goes when its node goes.
NOT_LOCAL = {workload_rules.survives_drains}
BREAKS = [
    *(("overlays/production", rule, broken) for rule, broken in breaking.PRODUCTION),
    *(("overlays/production/migrate", rule, broken) for rule, broken in breaking.JOBS),
]


def complaints(found: Objects) -> dict[Rule, list[str]]:
    """Return what breaks the rules, by rule."""
    return {rule: broken for rule in RULES if (broken := list(rule(found)))}


@pytest.mark.parametrize("root", [*SERVICES, *JOBS])
@pytest.mark.parametrize("rule", RULES)
def test_the_rules_hold(rule: Rule, root: str) -> None:
    """In every environment, for the services and for the jobs."""
    if not (root == "overlays/local" and rule in NOT_LOCAL):
        assert list(rule(objects(root))) == []


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

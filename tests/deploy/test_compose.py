"""The compose stack is valid, keeps its rules, and fits the service: its settings, commands, ports and users."""

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import node, validate
from tests.deploy import compose

Change = Callable[[dict[str, Any]], object]


def _exchange_secrets(one: dict[str, Any], other: dict[str, Any]) -> None:
    one["secrets"][1], other["secrets"][1] = other["secrets"][1], one["secrets"][1]


STACK = compose.read()
EXAMPLE = (compose.FOLDER / ".env.example").read_text(encoding="utf-8")

# Each breaks one rule: what a careless change makes of the services.
BROKEN: list[tuple[str, Change]] = [
    ("settings_are_known", lambda services: services["ingress"]["environment"].update(HTTP_PROT="8000")),
    ("settings_are_known", lambda services: services["migrate"]["environment"].update(PARTITIONS="many")),
    ("settings_are_known", lambda services: services["migrate"]["secrets"][0].update(target="DB_URL")),
    ("commands_exist", lambda services: services["operator"].update(command=["dead-letter"])),
    ("commands_exist", lambda services: services["topology"].update(command=["topology", "check"])),
    ("locked_down", lambda services: services["postgres"].pop("user")),
    ("locked_down", lambda services: services["rabbitmq"].update(user="0:0")),
    ("locked_down", lambda services: services["ingress"].update(read_only=False)),
    ("locked_down", lambda services: services["ingress"].update(cap_add=["NET_ADMIN"])),
    ("locked_down", lambda services: services["simulator"].update(cap_drop=["NET_RAW"])),
    ("locked_down", lambda services: services["simulator"].update(security_opt=[])),
    ("published_to_this_machine", lambda services: services["rabbitmq"]["ports"].append("15692:15692")),
    ("images_are_pinned", lambda services: services["postgres"].update(image="postgres:17")),
    ("work_is_finished", lambda services: services["outbound-consumer"].pop("stop_grace_period")),
    ("work_is_finished", lambda services: services["ingress"].update(stop_grace_period="30s")),
    ("started_in_order", lambda services: services["ingress"]["depends_on"].pop("topology")),
    ("started_in_order", lambda services: services["migrate"].update(restart="unless-stopped")),
    ("started_in_order", lambda services: services["postgres"].pop("healthcheck")),
    ("secrets_are_files", lambda services: services["ingress"]["environment"].update(API_KEYS="0123456789abcdef")),
    ("secrets_are_files", lambda services: services["rabbitmq"]["secrets"].clear()),
    ("secrets_are_files", lambda services: services["simulator"]["environment"].pop("SECRETS_DIR")),
    ("each_has_its_own_user", lambda services: _exchange_secrets(services["ingress"], services["operator"])),
    ("each_has_its_own_user", lambda services: services["operator"]["environment"].pop("DECLARE_TOPOLOGY")),
    (
        "only_the_owner_changes_tables",
        lambda services: services["ingress"]["secrets"][0].update(source="database_url_owner"),
    ),
    (
        "only_the_owner_changes_tables",
        lambda services: services["postgres"]["environment"].update(POSTGRES_USER="whatsapp_qr"),
    ),
    ("ports_meet", lambda services: services["session-consumer"]["environment"].update(HEALTH_PORT="8081")),
    ("ports_meet", lambda services: services["simulator"]["environment"].update(CALLBACK_URL="http://ingress:8000")),
    ("ports_meet", lambda services: services["ingress"]["environment"].update(INTERNAL_PORT="9001")),
    ("only_who_needs_it_gets_there", lambda services: services["simulator"]["networks"].append("data")),
    ("only_who_needs_it_gets_there", lambda services: services["postgres"]["networks"].append("gateway")),
    ("what_is_mounted_is_there", lambda services: services["prometheus"]["volumes"][2].update(source="./rules.yaml")),
    ("what_is_mounted_is_there", lambda services: services["rabbitmq"]["volumes"][1].pop("read_only")),
    ("what_is_mounted_is_there", lambda services: services["postgres"]["volumes"][0].update(source="data")),
    ("connections_suffice", lambda services: services["ingress"]["environment"].update(DATABASE_POOL="60")),
    ("memory_suffices", lambda services: services["session-consumer"].update(mem_limit="767m")),
    ("memory_suffices", lambda services: services["outbound-consumer"].pop("mem_limit")),
    ("memory_suffices", lambda services: services["conversation-consumer"]["environment"].update(PREFETCH="65")),
]


def _lint(path: Path) -> subprocess.CompletedProcess[str]:
    node.install(validate.FOLDER)
    return subprocess.run(
        [node.node(), compose.linter(), "--max-warnings", "0", "--config", compose.FOLDER / "dclint.yaml", path],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_linter_has_nothing_to_say() -> None:
    """Every file is valid by the schema of the Compose Specification, and by the rules of dclint."""
    assert {path.name for path in compose.FOLDER.glob("compose*")} == set(compose.FILES)
    for name in compose.FILES:
        checked = _lint(compose.FOLDER / name)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("rule", "was", "becomes"),
    [
        ("invalid-schema", "    read_only: true\n    tmpfs:", "    readonly: true\n    tmpfs:"),
        ("invalid-schema", "condition: service_healthy", "condition: healthy"),
        ("no-version-field", "name: whatsapp-qr\n", 'name: whatsapp-qr\nversion: "3.9"\n'),
        ("no-unbound-port-interfaces", '"127.0.0.1:${AMQP_PORT:-5672}:5672"', '"5672:5672"'),
    ],
)
def test_the_linter_finds_what_is_wrong(rule: str, was: str, becomes: str, tmp_path: Path) -> None:
    """An unknown key, a condition that does not exist, the version key, a port for everybody."""
    text = (compose.FOLDER / "compose.yaml").read_text(encoding="utf-8")
    assert was in text
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace(was, becomes), encoding="utf-8")
    checked = _lint(broken)
    assert checked.returncode
    assert rule in checked.stdout


def test_the_stack_keeps_every_rule() -> None:
    """It fits the service as it is, and keeps what does not concern anybody to itself."""
    assert compose.broken_rules(STACK) == {}


@pytest.mark.parametrize(("rule", "change"), BROKEN)
def test_each_rule_finds_what_breaks_it(rule: str, change: Change) -> None:
    """And only the rule that is meant."""
    stack = copy.deepcopy(STACK)
    change(stack["services"])
    assert set(compose.broken_rules(stack)) == {rule}


def test_every_rule_was_seen_to_fail() -> None:
    """A rule that cannot fail protects nothing."""
    assert {rule.__name__ for rule in compose.RULES} == {rule for rule, _ in BROKEN}


def test_a_gateway_of_ones_own_takes_the_simulators_place() -> None:
    """Both consumers that call it are told where it is."""
    stack = compose.read(WHATSAPP_QR_SERVICE_URL="http://gateway.example:3001")
    for role in ("session-consumer", "outbound-consumer"):
        assert stack["services"][role]["environment"]["WHATSAPP_QR_SERVICE_URL"] == "http://gateway.example:3001"
    assert stack["services"]["simulator"]["profiles"] == ["simulator"]
    assert "\nCOMPOSE_PROFILES=simulator\n" in EXAMPLE


def test_the_example_of_settings_is_complete() -> None:
    """Whatever can be set is shown, with the value that it has anyway; what the build sets is not."""
    shown = dict(line.lstrip("#").split("=") for line in EXAMPLE.splitlines() if line[:2] != "# " and "=" in line)
    assert set(shown) == compose.variables() - {"VERSION", "REVISION", "SOURCE"} | {"COMPOSE_PROFILES"}
    del shown["WHATSAPP_QR_SERVICE_URL"]  # it is shown with another
    assert compose.read(**shown) == STACK


def test_a_fresh_clone_can_do_what_the_readme_says() -> None:
    """What runs in .venv comes after `make setup`, because `make compose` makes none."""
    page = (compose.FOLDER / "README.md").read_text(encoding="utf-8")
    typed = re.findall(r"^    (.+)$", page, flags=re.MULTILINE)
    outside = [number for number, line in enumerate(typed) if ".venv/" in line]
    assert outside
    assert any(line.startswith("make setup") for line in typed[: outside[0]])


def test_the_readmes_commands_fit_the_stack() -> None:
    """What is run, scaled and mounted under a name exists under it."""
    page = (compose.FOLDER / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"docker compose (?:run --rm|exec|logs --follow|up --detach --scale) ([\w-]+)", page)
    assert len(named) > 4
    assert set(named) <= set(STACK["services"])
    mounted = {one["target"] for one in STACK["services"]["postgres"]["secrets"] if isinstance(one, dict)}
    assert set(re.findall(r"-f (/\S+)", page)) <= mounted
    assert set(re.findall(r"`(\w+)`", page.partition("PostgreSQL's (")[2].partition(")")[0])) <= set(STACK["secrets"])

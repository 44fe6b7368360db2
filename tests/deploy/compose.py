"""Reads compose files as docker compose does, and knows this project's rules for them. Each rule returns its faults."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import ValidationError

from deploy.compose.prepare import DATABASE_URLS, file_of
from service import cli
from service.messaging import subscriptions
from service.settings import Settings
from tests.deploy import memory
from tests.servers import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "compose"
ROLES = ("ingress", "session-consumer", "conversation-consumer", "outbound-consumer")
ONE_SHOTS = {"migrate": ("migrate",), "topology": ("topology", "apply")}
OURS = "whatsapp-qr:"
# What finishes its work has to finish before it is killed.
DRAIN = {
    "ingress": cli.INGRESS_GRACE,
    **dict.fromkeys(ROLES[1:], subscriptions.GRACE_SECONDS + subscriptions._END_SECONDS),
}
GRACE = {"ingress": 40, "session-consumer": 40, "conversation-consumer": 40, "outbound-consumer": 60}
WATCHERS = {"prometheus", "grafana"}
MAX_CONNECTIONS = 100 - 3  # PostgreSQL's default, less those that are kept for its administrators

Stack = dict[str, Any]


FILES = ("compose.yaml", "compose.monitoring.yaml")


def read(**environment: str) -> Stack:
    """Return all files as one, with their variables replaced: no file changes what another says."""
    stack: Stack = {}
    for name in FILES:
        for part, content in _read(name, environment).items():
            known: Any = stack.setdefault(part, content)
            if isinstance(content, dict) and known is not content:
                assert not set(known) & set(content)
                known.update(content)
    return stack


def _read(name: str, environment: Mapping[str, str]) -> Stack:
    text = (FOLDER / name).read_text(encoding="utf-8")

    def value(found: re.Match[str]) -> str:
        return environment.get(found["name"], found["default"])

    replaced: Stack = yaml.safe_load(re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text))
    return replaced


def variables() -> set[str]:
    """Return the names of the variables that the files read."""
    return {found for name in FILES for found in re.findall(r"\$\{?(\w+)", (FOLDER / name).read_text(encoding="utf-8"))}


def _ours(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, service) for name, service in stack["services"].items() if service["image"].startswith(OURS))


def _secrets(service: dict[str, Any]) -> dict[str, str]:
    """Return the names of the files in a container, and what each holds."""
    named = [{"source": one, "target": one} if isinstance(one, str) else one for one in service.get("secrets", [])]
    return {one["target"]: one["source"] for one in named}


def settings_are_known(stack: Stack) -> Iterator[str]:
    """Each variable and each file of our containers is a setting, with a value that it may have."""
    fields = {name.upper(): name for name in Settings.model_fields}
    for name, service in _ours(stack):
        given = service.get("environment", {})
        yield from (f"{name}: {variable}" for variable in {*given, *_secrets(service)} - set(fields))
        known = {fields[variable]: value for variable, value in given.items() if variable in fields}
        try:
            Settings.model_validate(known)
        except ValidationError as error:
            yield f"{name}: {error}"


def commands_exist(stack: Stack) -> Iterator[str]:
    """What a container is told to run is a command of ours, and every process that there is runs."""
    command = typer.main.get_command(cli.app)
    for name, service in _ours(stack):
        at: Any = command
        for word in service["command"]:
            if not word.startswith("-"):
                at = getattr(at, "commands", {}).get(word)
        if at is None:
            yield f"{name}: {service['command']}"
    expected = {role: (role,) for role in ROLES} | ONE_SHOTS
    for name, words in expected.items():
        if tuple(stack["services"].get(name, {}).get("command", ())) != words:
            yield f"{name} does not run {words}"


def locked_down(stack: Stack) -> Iterator[str]:
    """No root, no capability, nothing written but where it is said, no way to gain rights."""
    for name, service in stack["services"].items():
        wanted = {
            "user": re.fullmatch(r"[1-9]\d*:[1-9]\d*", service.get("user", "")),
            "read_only": service.get("read_only") is True,
            "cap_drop": service.get("cap_drop") == ["ALL"],
            "security_opt": "no-new-privileges:true" in service.get("security_opt", []),
            "privileges": not {"privileged", "cap_add", "devices", "pid", "network_mode"} & set(service),
        }
        yield from (f"{name}: {word}" for word, kept in wanted.items() if not kept)


def published_to_this_machine(stack: Stack) -> Iterator[str]:
    """A port without an address is open to the world, whatever a firewall says."""
    for name, service in stack["services"].items():
        yield from (f"{name}: {port}" for port in service.get("ports", []) if not port.startswith("127.0.0.1:"))


def images_are_pinned(stack: Stack) -> Iterator[str]:
    """What is not built here is named by digest."""
    for name, service in stack["services"].items():
        if not service["image"].startswith(OURS) and not re.search(r":[^@/]+@sha256:[0-9a-f]{64}$", service["image"]):
            yield f"{name}: {service['image']}"


def work_is_finished(stack: Stack) -> Iterator[str]:
    """Before a container is killed, it has had the time that its process takes to finish, as on Kubernetes."""
    for role in ROLES:
        grace = int(stack["services"][role].get("stop_grace_period", "10s").removesuffix("s"))
        if grace != GRACE[role] or grace <= DRAIN[role]:
            yield f"{role}: {grace} s"


def started_in_order(stack: Stack) -> Iterator[str]:
    """Processes start when the broker answers and both one-shots are done; who is waited for shows that it is ready."""
    services = stack["services"]
    for role in ROLES:
        waits = {name: one["condition"] for name, one in services[role].get("depends_on", {}).items()}
        done = dict.fromkeys(ONE_SHOTS, "service_completed_successfully")
        if waits != {"rabbitmq": "service_healthy"} | done:
            yield f"{role} waits for {waits}"
    for name, service in services.items():
        for other, one in service.get("depends_on", {}).items():
            once = one["condition"] == "service_completed_successfully"
            seen = once or "healthcheck" in services[other] or one["condition"] == "service_started"
            if (services[other]["restart"] == "no") != once or not seen:
                yield f"{name} waits for {other}: {one['condition']}"


def secrets_are_files(stack: Stack) -> Iterator[str]:
    """Nothing secret is in the environment; every file is declared, made by prepare.py, and given to somebody."""
    declared = set(stack["secrets"])
    given = {source for service in stack["services"].values() for source in _secrets(service).values()}
    yield from (f"{name} is not declared, or given to nobody" for name in declared ^ given)
    yield from (name for name in declared if stack["secrets"][name] != {"file": f"./secrets/{name}"})
    secret = re.compile(r"PASSWORD$|SECRET$|TOKEN$|KEYS?$|^AMQP_URL$|^DATABASE_URL$")
    for name, service in stack["services"].items():
        yield from (f"{name}: {variable}" for variable in service.get("environment", {}) if secret.search(variable))
    for name, service in _ours(stack):
        if service["environment"].get("SECRETS_DIR") != "/run/secrets":
            yield f"{name} does not read them"


def each_has_its_own_user(stack: Stack) -> Iterator[str]:
    """Nobody has another's rights on the broker; nobody but the one-shot declares."""
    for name in (*ROLES, "topology", "operator"):
        service = stack["services"][name]
        if _secrets(service).get("AMQP_URL") != file_of(f"whatsapp-qr-{name}"):
            yield f"{name}: {_secrets(service).get('AMQP_URL')}"
        if service["environment"].get("DECLARE_TOPOLOGY") != "false":
            yield f"{name} declares"


def only_the_owner_changes_tables(stack: Stack) -> Iterator[str]:
    """The schema is changed as its owner, by the migration alone; nobody is the database's administrator."""
    for name, service in _ours(stack):
        url = _secrets(service).get("DATABASE_URL")
        if url not in {None, DATABASE_URLS["whatsapp_qr_owner" if name == "migrate" else "whatsapp_qr"]}:
            yield f"{name}: {url}"
    administrator = stack["services"]["postgres"]["environment"].get("POSTGRES_USER", "postgres")
    if administrator in DATABASE_URLS:
        yield f"{administrator} may do everything"


def ports_meet(stack: Stack) -> Iterator[str]:
    """A probe asks where its process listens, and the gateway and we call each other where the other listens."""
    services = stack["services"]
    for role in ROLES:
        given = services[role]["environment"]
        port = given.get("HTTP_PORT" if role == "ingress" else "HEALTH_PORT")
        if f"http://127.0.0.1:{port}/readyz" not in services[role]["healthcheck"]["test"][-1]:
            yield f"{role} is not probed on {port}"
        gateway = services["simulator"]["environment"]["SIMULATOR_PORT"]
        if given["WHATSAPP_QR_SERVICE_URL"] != f"http://simulator:{gateway}":
            yield f"{role} calls {given['WHATSAPP_QR_SERVICE_URL']}"
    ingress = services["ingress"]
    if (
        services["simulator"]["environment"]["CALLBACK_URL"]
        != f"http://ingress:{ingress['environment']['INTERNAL_PORT']}"
    ):
        yield f"the simulator calls {services['simulator']['environment']['CALLBACK_URL']}"
    inner = {port.rpartition(":")[2] for port in ingress["ports"]}
    if inner != {ingress["environment"]["HTTP_PORT"], ingress["environment"]["INTERNAL_PORT"]}:
        yield f"the ingress publishes {inner}"


def only_who_needs_it_gets_there(stack: Stack) -> Iterator[str]:
    """The gateway reaches the ingress, but neither broker nor database; the conversation consumer calls no gateway."""
    services = stack["services"]
    without_gateway = {"rabbitmq", "postgres", "migrate", "topology", "conversation-consumer", "operator"} | WATCHERS
    for name, service in services.items():
        networks = set(service["networks"])
        if ("data" in networks) != (name != "simulator") or ("gateway" in networks) == (name in without_gateway):
            yield f"{name}: {networks}"


def what_is_mounted_is_there(stack: Stack) -> Iterator[str]:
    """Files of this repository are mounted, read-only; Docker would make an empty folder of one that is missing."""
    for name, service in stack["services"].items():
        for one in service.get("volumes", []):
            if one["type"] == "volume" and one["source"] not in stack["volumes"]:
                yield f"{name}: {one['source']} is not declared"
            if one["type"] == "bind" and not (one.get("read_only") and (FOLDER / one["source"]).exists()):
                yield f"{name}: {one['source']} does not exist, or could be written"


def connections_suffice(stack: Stack) -> Iterator[str]:
    """All pools together fit into the database, migration and operator included."""
    pools = sum(
        int(service["environment"].get("DATABASE_POOL", Settings.model_fields["database_pool"].default))
        for name, service in _ours(stack)
        if "DATABASE_URL" in _secrets(service)
    )
    if pools > MAX_CONNECTIONS:
        yield f"{pools} connections"


def memory_suffices(stack: Stack) -> Iterator[str]:
    """A consumer is not killed for what it has prefetched, however large the messages are that the broker lets in."""
    for role in ROLES[1:]:
        service = stack["services"][role]
        given = service["environment"]
        needed = memory.needed(int(given.get("PREFETCH", 0)), int(given["PARTITIONS"]))
        limit = service.get("mem_limit", "")
        if memory.mebibytes(limit) < needed:
            yield f"{role} has {limit}, and may need {needed} MiB"


RULES: tuple[Callable[[Stack], Iterator[str]], ...] = (
    settings_are_known,
    commands_exist,
    locked_down,
    published_to_this_machine,
    images_are_pinned,
    work_is_finished,
    started_in_order,
    secrets_are_files,
    each_has_its_own_user,
    only_the_owner_changes_tables,
    ports_meet,
    only_who_needs_it_gets_there,
    what_is_mounted_is_there,
    connections_suffice,
    memory_suffices,
)


def broken_rules(stack: Stack) -> dict[str, list[str]]:
    """Return the rules that a stack breaks, with what is wrong."""
    return {rule.__name__: faults for rule in RULES if (faults := list(rule(stack)))}


def linter() -> Path:
    return REPOSITORY / "schemas" / "node_modules" / "dclint" / "bin" / "dclint.cjs"

"""Every RabbitMQ that is started by a file of ours refuses what consumers' memory is not made for."""

import re
from collections.abc import Callable

import pytest

from service.operating.comparing import MAX_MESSAGE_SIZE, NEEDED_SIZE
from service.settings import Settings
from tests.deploy import capacity_rules, compose, memory
from tests.deploy.manifests import Objects, container, named, objects, settings
from tests.servers import REPOSITORY, Broker
from whatsapp_qr_contracts.message import MAX_BODY_BYTES

LINE = f"max_message_size = {MAX_MESSAGE_SIZE}"
ARGUMENTS = f"-rabbit max_message_size {MAX_MESSAGE_SIZE}"
BROKER = "whatsapp-qr-rabbitmq"
# What starts a RabbitMQ, and what its file has to say; compose keeps that in a file of its own.
STARTED = {
    "deploy/compose/compose.yaml": "source: ./rabbitmq.conf",
    "deploy/kubernetes/components/rabbitmq-operator/cluster.yaml": LINE,
    "deploy/kubernetes/overlays/local/servers.yaml": LINE,
    "deploy/local/rabbitmq-container.sh": ARGUMENTS,
    "deploy/local/rabbitmq.sh": LINE,
    "tests/servers.py": ARGUMENTS,
}
_STARTS = re.compile(r'rabbitmq:4|^kind: RabbitmqCluster|/rabbitmq-server"|image: .*/rabbitmq', re.MULTILINE)


def test_every_file_that_starts_a_broker_is_known() -> None:
    """A new one has to say it too."""
    files = [path for path in (REPOSITORY / "deploy").rglob("*") if path.suffix in {".yaml", ".sh", ".py"}]
    starting = {path for path in files if _STARTS.search(path.read_text(encoding="utf-8"))}
    assert {str(path.relative_to(REPOSITORY)) for path in starting} | {"tests/servers.py"} == set(STARTED)


@pytest.mark.parametrize(("file", "said"), STARTED.items())
def test_each_of_them_limits_the_size(file: str, said: str) -> None:
    """In its configuration, or on its command line."""
    assert said in (REPOSITORY / file).read_text(encoding="utf-8")


def test_compose_limits_the_size() -> None:
    """In the file that is mounted."""
    told = (compose.FOLDER / "rabbitmq.conf").read_text(encoding="utf-8")
    assert memory.largest_message(told) == MAX_MESSAGE_SIZE


@pytest.mark.parametrize("page", ["deploy/broker/README.md", "docs/kubernetes.md", "docs/operations.md"])
def test_who_has_a_broker_of_his_own_is_told(page: str) -> None:
    """The line to write stands on each page that tells how to set one up."""
    assert LINE in (REPOSITORY / page).read_text(encoding="utf-8")


async def test_a_broker_takes_it_from_the_file(shared_broker: Broker) -> None:
    """RabbitMQ knows the setting by that name: of one that it does not know it would not start."""
    said = await shared_broker.ctl("eval", "application:get_env(rabbit, max_message_size).")
    assert said.strip() == f"{{ok,{MAX_MESSAGE_SIZE}}}"


def test_what_the_service_sends_fits() -> None:
    """With a margin; and no less than the check asks of a broker."""
    assert MAX_BODY_BYTES < NEEDED_SIZE < MAX_MESSAGE_SIZE


def _without_the_file(found: Objects) -> None:
    mounts = container(found, BROKER)["volumeMounts"]
    mounts[:] = [one for one in mounts if one["name"] != "config"]


def _mounted_elsewhere(found: Objects) -> None:
    (mount,) = (one for one in container(found, BROKER)["volumeMounts"] if one["name"] == "config")
    mount["mountPath"] = "/etc/rabbitmq/50-whatsapp-qr.conf"


def _with_another_size(found: Objects) -> None:
    named(found, "ConfigMap", BROKER)["data"]["rabbitmq.conf"] = "max_message_size = 134217728\n"


@pytest.mark.parametrize("broken", [_without_the_file, _mounted_elsewhere, _with_another_size])
def test_the_rule_sees_the_local_broker(broken: Callable[[Objects], None]) -> None:
    """It has no operator, but a file."""
    found = objects("overlays/local")
    assert list(capacity_rules.brokers_refuse_what_is_too_large(found)) == []
    broken(found)
    assert list(capacity_rules.brokers_refuse_what_is_too_large(found))


def test_the_memory_is_that_of_the_page() -> None:
    """The formula, and what it comes to with the settings as they are."""
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    prefetch = Settings.model_fields["prefetch"].default
    partitions = int(settings(objects("overlays/production"))["PARTITIONS"])
    sum_ = f"128 MiB + 2 x {prefetch} x ({partitions} + 1) x 1 MiB = {memory.needed(None, partitions)} MiB"
    assert sum_ in " ".join(page.split())
    assert memory.needed(1, 1) == 128 + 4

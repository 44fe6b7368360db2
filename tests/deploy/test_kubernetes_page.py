"""What docs/kubernetes.md tells people to type and to look at is there."""

import base64
import re

import pytest

from service.messaging import topology
from service.operating import rights
from tests.deploy.known import is_command
from tests.deploy.manifests import COMPONENT, KUBERNETES, objects, of_kind
from tests.deploy.secrets_script import made_by_the_script
from tests.deploy.test_kubernetes_rendered import OLDEST
from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?<![\w/])(?:deploy|tests)/[\w/.-]*\w", PAGE))))
def test_paths_exist(path: str) -> None:
    """Nobody is sent to a file that is not there."""
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:overlays|components|jobs)/[\w/.-]+)`", PAGE))))
def test_paths_within_exist(path: str) -> None:
    """Nor to one beside it."""
    assert (KUBERNETES / path).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`whatsapp-qr ([a-z ]+)`", PAGE))))
def test_commands_exist(command: str) -> None:
    """Nobody is told to type what does not work."""
    assert is_command(command.split())


@pytest.mark.parametrize("command", sorted(set(re.findall(r"-- whatsapp-qr ([a-z -]+)$", PAGE, re.MULTILINE))))
def test_commands_in_a_pod_exist(command: str) -> None:
    """Nor into a pod what works nowhere."""
    assert is_command(command.split())


def test_every_secret_is_explained() -> None:
    """Who makes them himself finds all of them, with their keys and the labels that operators want."""
    table = PAGE[PAGE.index("| Secret |") : PAGE.index("LOG_HASH_KEY is the same")].splitlines()
    for name, secret in made_by_the_script().items():
        (row,) = (row for row in table if f"`{name}`" in row or f"`{name.removeprefix('whatsapp-qr')}`" in row)
        assert all(key in row for key in secret["stringData"])
        labels = {f"`{label}`" for label, value in secret["metadata"]["labels"].items() if value == "true"}
        assert row.split("|")[-2].strip() == "".join(labels)


def test_jobs_and_version_are_named_as_they_are() -> None:
    """The commands wait for the jobs that there are; the oldest version is the one that is checked."""
    roots = ("overlays/production/migrate", "overlays/production/check")
    jobs = {one["metadata"]["name"] for root in roots for one in of_kind(objects(root), "Job")}
    assert set(re.findall(r"job/([\w-]+)", PAGE)) == jobs
    assert f"Kubernetes {OLDEST} or later" in PAGE


KINDS = {
    "cluster.postgresql.cnpg.io": "Cluster",
    "deployment": "Deployment",
    "rabbitmqcluster": "RabbitmqCluster",
    "service": "Service",
}


@pytest.mark.parametrize(("kind", "name"), sorted(set(re.findall(rf"\b({'|'.join(KINDS)})/([\w-]+)", PAGE))))
def test_what_commands_name_is_there(kind: str, name: str) -> None:
    """In production, or on one's own machine."""
    there = of_kind([*objects("overlays/production"), *objects("overlays/local")], KINDS[kind])
    assert name in {one["metadata"]["name"] for one in there}


def test_what_one_tries_on_his_own_machine_answers() -> None:
    """The forwarded ports are Services' ports, and the key is one that the ingress takes."""
    local = objects("overlays/local")
    ports = {(one["metadata"]["name"], str(one["spec"]["ports"][0]["port"])) for one in of_kind(local, "Service")}
    forwarded = set(re.findall(r"port-forward service/([\w-]+) (\d+)", PAGE))
    assert len(forwarded) == 2
    assert forwarded <= ports
    assert {port for _, port in forwarded} == set(re.findall(r"http://127\.0\.0\.1:(\d+)", PAGE))
    keys = {base64.b64decode(one["data"].get("API_KEYS", "")).decode() for one in of_kind(local, "Secret")}
    assert set(re.findall(r"X-API-Key: ([\w-]+)", PAGE)) <= keys


def test_the_catalog_is_the_one_that_the_cluster_asks_for() -> None:
    """Another name and the Cluster waits for ever."""
    (cluster,) = of_kind(objects("overlays/production"), "Cluster")
    name = cluster["spec"]["imageCatalogRef"]["name"]
    assert f"The catalog `{name}`" in PAGE
    assert f"/catalog-{name.removeprefix('postgresql-')}.yaml" in PAGE


NAMESPACES = {
    "RabbitMQ's operators": "rabbitmq-system",
    "CloudNativePG": "cnpg-system",
    "KEDA": "keda",
    "Prometheus": "monitoring",
}


@pytest.mark.parametrize("who", NAMESPACES)
def test_every_place_of_a_namespace_is_listed(who: str) -> None:
    """Who has operators or Prometheus elsewhere finds each file that says where."""
    table = PAGE[PAGE.index("**Other namespaces") : PAGE.index("## Production")]
    (row,) = (row for row in table.splitlines() if row.startswith(f"| {who} |"))
    said = re.compile(rf"metadata\.name: {NAMESPACES[who]}\b|\.{NAMESPACES[who]}\.svc\b")
    sources = [path for folder in ("base", "components", "jobs") for path in (KUBERNETES / folder).rglob("*.yaml")]
    assert {str(path.relative_to(KUBERNETES)) for path in sources if said.search(path.read_text())} == set(
        re.findall(r"`([\w/.-]+\.yaml)`", row)
    )


def test_the_order_of_a_release_can_be_kept_by_a_label() -> None:
    """What is applied last is the ingress and its Services; each consumer is waited for before."""
    labelled = {
        (one["kind"], one["metadata"]["name"])
        for one in objects("overlays/production")
        if one["metadata"].get("labels", {}).get(COMPONENT) == "ingress"
    }
    services = {("Service", "whatsapp-qr"), ("Service", "whatsapp-qr-internal")}
    assert labelled == {("Deployment", "whatsapp-qr-ingress"), *services}
    assert "-l 'app.kubernetes.io/component!=ingress'" in PAGE


def test_a_session_consumer_may_do_what_commands_need() -> None:
    """Every name that the user for commands may use is one that the session consumer may use."""
    users = {one.user: one for one in rights.users()}
    consumer, operator = users["whatsapp-qr-session-consumer"], users["whatsapp-qr-operator"]
    names = [*(exchange.name for exchange in topology.EXCHANGES), *(queue.name for queue in topology.queues(4))]
    for right in ("configure", "write", "read"):
        allowed = [name for name in names if re.search(operator.permission[right], name)]
        assert all(re.search(consumer.permission[right], name) for name in allowed)

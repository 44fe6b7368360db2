"""NetworkPolicies let through what the service needs, and nothing else."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy.flows import Actor, open_ports
from tests.deploy.manifests import COMPONENT, NAME, Object, Objects, named, objects, of_kind, workload

HOME = "whatsapp-qr"
HOME_LABELS = {"kubernetes.io/metadata.name": HOME}
INTERNET = "203.0.113.7"
SERVERS = {"broker": {NAME: "whatsapp-qr-rabbitmq"}, "database": {"cnpg.io/cluster": "whatsapp-qr-postgres"}}
PORTS = (53, 80, 443, 3001, 4369, 5222, 5432, 5672, 6443, 8000, 8001, 8080, 9187, 15672, 15692, 25672)
ROLES = ("ingress", "session-consumer", "conversation-consumer", "outbound-consumer")
CONSUMERS = ROLES[1:]
JOBS = ("migrate", "topology")
OUTSIDE = (
    *("amqp client", "broker operator", "caller", "database operator", "dns", "grafana", "internet", "keda"),
    *("kubelet's neighbour", "metadata", "private", "prometheus", "stranger"),
)

# Everything that may reach anything in production: sender, receiver, port.
ALLOWED = {
    *((role, "broker", 5672) for role in (*ROLES, "topology", "amqp client")),
    *((role, "database", 5432) for role in (*ROLES, "migrate", "database", "database operator")),
    *((role, "gateway", 3001) for role in ("session-consumer", "outbound-consumer")),
    ("gateway", "ingress", 8001),
    *(("gateway", "internet", port) for port in (443, 5222)),
    *((caller, "ingress", 8000) for caller in ("caller", "amqp client", "prometheus")),
    *(("prometheus", consumer, 8080) for consumer in CONSUMERS),
    ("prometheus", "broker", 15692),
    ("prometheus", "database", 9187),
    *((operator, "broker", 15672) for operator in ("broker operator", "keda")),
    *(("broker", "broker", port) for port in (4369, 25672)),
    *((one, "database", 8000) for one in ("database", "database operator")),
    # Peer discovery, instance manager and backups: the API server has no label.
    *((server, target, port) for server in SERVERS for target in OUTSIDE for port in (443, 6443)),
    *((pod, "dns", 53) for pod in (*ROLES, *JOBS, *SERVERS, "gateway", "stranger at home")),
}


def _pod(name: str, found: Objects) -> Actor:
    pod = workload(found, f"whatsapp-qr-{name}")
    return Actor(name, HOME, pod.labels, HOME_LABELS, pod.ports)


def _elsewhere(name: str, namespace: str, labels: dict[str, str] | None = None) -> Actor:
    return Actor(name, namespace, labels or {}, {"kubernetes.io/metadata.name": namespace})


def _client(name: str, labels: dict[str, str] | None = None) -> Actor:
    return Actor(name, "shop", labels or {}, {"kubernetes.io/metadata.name": "shop", "whatsapp-qr/client": "true"})


def everybody(services: Objects, jobs: Objects) -> list[Actor]:
    """Return who there is: the pods of the service, those around it, and strangers."""
    return [
        *(_pod(role, services) for role in ROLES),
        *(_pod(job, jobs) for job in JOBS),
        *(Actor(name, HOME, labels, HOME_LABELS) for name, labels in SERVERS.items()),
        Actor("gateway", HOME, {NAME: "whatsapp-qr-service"}, HOME_LABELS),
        Actor("stranger at home", HOME, {NAME: "stranger"}, HOME_LABELS),
        _client("caller"),
        _client("amqp client", {"whatsapp-qr/amqp": "true"}),
        _elsewhere("stranger", "elsewhere", {"whatsapp-qr/amqp": "true", NAME: "prometheus", COMPONENT: "ingress"}),
        _elsewhere("prometheus", "monitoring", {NAME: "prometheus"}),
        _elsewhere("grafana", "monitoring", {NAME: "grafana"}),
        _elsewhere("keda", "keda", {NAME: "keda-operator"}),
        _elsewhere("broker operator", "rabbitmq-system"),
        _elsewhere("database operator", "cnpg-system"),
        _elsewhere("dns", "kube-system", {"k8s-app": "kube-dns"}),
        _elsewhere("kubelet's neighbour", "kube-system"),
        Actor("internet", address=INTERNET),
        Actor("metadata", address="169.254.169.254"),
        Actor("private", address="10.1.2.3"),
    ]


def flows(services: Objects, jobs: Objects) -> set[tuple[str, str, int]]:
    """Return every flow that has an end here and is let through."""
    actors, policies = everybody(services, jobs), of_kind(services + jobs, "NetworkPolicy")
    return {
        (sender.name, receiver.name, port)
        for sender in actors
        for receiver in actors
        if HOME in {sender.namespace, receiver.namespace}
        for port in open_ports(policies, sender, receiver, PORTS)
    }


def _production() -> tuple[Objects, Objects]:
    return objects("overlays/production"), objects("overlays/production/migrate")


def test_everybody_reaches_what_he_needs_and_nothing_else() -> None:
    """Of all flows between all pods, servers, operators, clients and strangers, exactly the listed ones are open."""
    assert flows(*_production()) == ALLOWED


@pytest.mark.parametrize("port", [53, 443])
def test_names_are_asked_for_by_udp(port: int) -> None:
    """DNS is open by UDP too, and by UDP nothing else."""
    services, jobs = _production()
    actors = {actor.name: actor for actor in everybody(services, jobs)}
    policies = of_kind(services + jobs, "NetworkPolicy")
    found = {
        sender
        for sender in (*ROLES, *JOBS)
        for receiver in ("dns", "internet")
        if open_ports(policies, actors[sender], actors[receiver], [port], "UDP")
    }
    assert found == ({*ROLES, *JOBS} if port == 53 else set())


def _policy(found: Objects, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = named(found, "NetworkPolicy", name)["spec"]
    return spec


def _no_default(found: Objects) -> None:
    found.remove(named(found, "NetworkPolicy", "default-deny"))


def _default_for_the_way_out_only(found: Objects) -> None:
    _policy(found, "default-deny")["policyTypes"].remove("Ingress")


def _internal_port_for_callers(found: Objects) -> None:
    _policy(found, "whatsapp-qr-ingress-public")["ingress"][0]["ports"].append({"port": "internal"})


def _any_port_for_callers(found: Objects) -> None:
    del _policy(found, "whatsapp-qr-ingress-public")["ingress"][0]["ports"]


def _whoever_is_in_the_gateways_place(found: Objects) -> None:
    _policy(found, "whatsapp-qr-ingress-internal")["ingress"][0]["from"] = [{"namespaceSelector": {}}]


def _two_peers_instead_of_one(found: Objects) -> None:
    """The classic slip: `or` where `and` was meant."""
    peer = _policy(found, "whatsapp-qr-metrics")["ingress"][0]["from"].pop()
    _policy(found, "whatsapp-qr-metrics")["ingress"][0]["from"] = [{key: value} for key, value in peer.items()]


def _no_way_to_the_gateway(found: Objects) -> None:
    found.remove(named(found, "NetworkPolicy", "whatsapp-qr-to-gateway"))


def _gateway_reaches_private_machines(found: Objects) -> None:
    for peer in _policy(found, "whatsapp-qr-service")["egress"][1]["to"]:
        del peer["ipBlock"]["except"]


def _broker_for_every_caller(found: Objects) -> None:
    del _policy(found, "whatsapp-qr-rabbitmq")["ingress"][0]["from"][1]["podSelector"]


def _everything_reaches_the_database(found: Objects) -> None:
    """Both ends have to be opened: one alone opens nothing."""
    _policy(found, "whatsapp-qr-broker-and-database")["podSelector"] = {}
    del _policy(found, "whatsapp-qr-postgres")["ingress"][0]["from"]


@pytest.mark.parametrize(
    "broken",
    [
        _no_default,
        _default_for_the_way_out_only,
        _internal_port_for_callers,
        _any_port_for_callers,
        _whoever_is_in_the_gateways_place,
        _two_peers_instead_of_one,
        _no_way_to_the_gateway,
        _gateway_reaches_private_machines,
        _broker_for_every_caller,
        _everything_reaches_the_database,
    ],
)
def test_another_policy_is_found(broken: Callable[[Objects], None]) -> None:
    """Whatever is opened or closed beyond the list shows."""
    services, jobs = _production()
    broken(services)
    assert flows(services, jobs) != ALLOWED


def _policies(**spec: Any) -> list[Object]:
    return [{"kind": "NetworkPolicy", "metadata": {"namespace": HOME}, "spec": {"podSelector": {}, **spec}}]


def _way_in(*peers: dict[str, Any], **port: Any) -> list[Object]:
    rule = {"from": list(peers)} | ({"ports": [port]} if port else {})
    return _policies(policyTypes=["Ingress"], ingress=[rule])


def _cases() -> Iterator[tuple[str, list[Object], bool]]:
    yield "no policy: open", [], True
    yield "selected, no rule: closed", _policies(policyTypes=["Ingress"]), False
    yield "only the way out is restricted", _policies(policyTypes=["Egress"]), True
    yield "an empty rule lets everything in", _policies(policyTypes=["Ingress"], ingress=[{}]), True
    yield "a pod selector alone means the same namespace", _way_in({"podSelector": {}}), False
    yield "a namespace selector alone means all its pods", _way_in({"namespaceSelector": {}}), True
    yield (
        "both together mean both",
        _way_in({"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "c"}}}),
        False,
    )
    yield "one of several peers", _way_in({"podSelector": {}}, {"namespaceSelector": {}}), True
    yield "the port by its name", _way_in({"namespaceSelector": {}}, port="http"), True
    yield "another port", _way_in({"namespaceSelector": {}}, port=81), False
    yield "a name that nobody has", _way_in({"namespaceSelector": {}}, port="https"), False
    yield "a range of ports", _way_in({"namespaceSelector": {}}, port=1, endPort=80), True
    yield "another protocol", _way_in({"namespaceSelector": {}}, port=80, protocol="UDP"), False
    yield "an address is no pod", _way_in({"ipBlock": {"cidr": "0.0.0.0/0"}}), False
    yield "policies add up", _policies(policyTypes=["Ingress"]) + _way_in({"namespaceSelector": {}}), True


@pytest.mark.parametrize(("policies", "allowed"), [case[1:] for case in _cases()], ids=[case[0] for case in _cases()])
def test_policies_mean_what_kubernetes_says(policies: list[Object], allowed: bool) -> None:  # noqa: FBT001
    """The evaluator reads policies as the API describes them."""
    sender = _elsewhere("sender", "elsewhere", {"a": "b"})
    receiver = Actor("receiver", HOME, {}, HOME_LABELS, {"http": 80})
    assert open_ports(policies, sender, receiver, [80]) == ({80} if allowed else set())

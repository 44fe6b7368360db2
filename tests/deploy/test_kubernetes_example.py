"""overlays/example is what an overlay of one's own may be copied from."""

import shutil
from pathlib import Path

import pytest

from tests.deploy.flows import Actor, open_ports
from tests.deploy.manifests import KUBERNETES, Objects, objects, of_kind, processes, render

EXAMPLE = "overlays/example"
HOME = "chatbots"


@pytest.mark.parametrize("folder", ["", "/migrate", "/check"])
def test_it_may_stand_in_another_repository(folder: str, tmp_path: Path) -> None:
    """Only the paths change; what is rendered is the same."""
    shutil.copytree(KUBERNETES, tmp_path / "submodule", ignore=shutil.ignore_patterns("overlays"))
    mine = tmp_path / "mine"
    shutil.copytree(KUBERNETES / EXAMPLE, mine)
    for path in mine.rglob("kustomization.yaml"):
        text = path.read_text()
        for name in ("base", "components", "jobs"):
            text = text.replace(f"../../{name}", f"../submodule/{name}")
        path.write_text(text)
    assert render(Path(f"{mine}{folder}")) == objects(f"{EXAMPLE}{folder}")


def test_it_changes_what_everybody_has_to_change() -> None:
    """Namespace, image, address, class, pull secret, the labels that Prometheus selects by."""
    found = objects(EXAMPLE)
    assert {one["metadata"].get("namespace", HOME) for one in found} == {HOME}
    (ingress,) = of_kind(found, "Ingress")
    assert ingress["spec"]["ingressClassName"]
    hosts = {*(rule["host"] for rule in ingress["spec"]["rules"]), *ingress["spec"]["tls"][0]["hosts"]}
    assert len(hosts) == 1
    assert "whatsapp-qr" not in hosts.pop()
    for one in of_kind(found, "ServiceAccount"):
        assert one["imagePullSecrets"]
    monitors = of_kind(found, "PodMonitor", "ServiceMonitor", "PrometheusRule")
    assert len({one["kind"] for one in monitors}) == 3
    assert {one["metadata"]["labels"].get("release") for one in monitors} == {"kube-prometheus-stack"}


def _actor(name: str, labels: dict[str, str] | None = None, **namespace_labels: str) -> Actor:
    return Actor(name, name, labels or {}, {"kubernetes.io/metadata.name": name} | namespace_labels)


def _open(found: Objects, sender: Actor, receiver: Actor) -> set[int]:
    return open_ports(of_kind(found, "NetworkPolicy"), sender, receiver, [53, 80, 4317, 4318, 8089])


def test_its_policies_open_what_they_say() -> None:
    """Traces for our processes, certificates for the ingress controller, names on the node; nothing else."""
    found = objects(EXAMPLE)
    ours = [Actor(pod.name, HOME, pod.labels) for pod in processes(found)]
    stranger = Actor("stranger", HOME)
    solver = Actor("solver", HOME, {"acme.cert-manager.io/http01-solver": "true"})
    collector, node = _actor("observability"), Actor("node", address="169.254.20.10")
    controller, elsewhere = _actor("ingress", **{"whatsapp-qr/client": "true"}), _actor("elsewhere")
    for pod in ours:
        assert (_open(found, pod, collector), _open(found, pod, node)) == ({4318}, {53})
        assert _open(found, controller, pod) == set()
    assert _open(found, stranger, collector) == set()
    assert (_open(found, controller, solver), _open(found, elsewhere, solver)) == ({8089}, set())
    assert _open(found, solver, Actor("private", address="169.254.169.254")) == set()

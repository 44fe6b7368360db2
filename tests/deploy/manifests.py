"""The Kubernetes objects of deploy/kubernetes, rendered by the real kubectl, and how tests look into them."""

import functools
import os
import pickle
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.servers import REPOSITORY

Object = dict[str, Any]
Objects = list[Object]
Rule = Callable[[Objects], Iterator[str]]
"""Yields what breaks it."""

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"  # the pinned one comes first
ENVIRONMENTS = ("local", "staging", "production", "example")
SERVICES = tuple(f"overlays/{name}" for name in ENVIRONMENTS)
JOBS = tuple(f"overlays/{name}/migrate" for name in ENVIRONMENTS)
CHECKS = tuple(f"overlays/{name}/check" for name in ENVIRONMENTS)
REPARTITIONS = tuple(f"overlays/{name}/repartition" for name in ENVIRONMENTS)
COMPONENTS = ("rabbitmq-operator", "cnpg", "keda", "monitoring", "public-ingress")
# Each component by itself; with all of them there is production.
ALONE = tuple(f"base+{component}" for component in COMPONENTS)
ROOTS = (
    *("base", "jobs/migrate", "jobs/check", "jobs/repartition"),
    *(*SERVICES, *JOBS, *CHECKS, *REPARTITIONS, *ALONE),
)
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
OURS = "whatsapp-qr"
ROLES = ("ingress", "session-consumer", "conversation-consumer", "outbound-consumer")


def objects(root: str) -> Objects:
    """Return a copy, to look at or to break, of what kubectl renders of a folder, or of base+component+component."""
    found: Objects = pickle.loads(_rendered(root))  # noqa: S301  # our own
    return found


def render(folder: Path) -> Objects:
    """Render a folder as `kubectl kustomize` does."""
    run = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr, run.stderr  # a warning of kustomize is something that a later one refuses
    return [found for found in yaml.load_all(run.stdout, yaml.CSafeLoader) if found]


def combined(*components: str) -> Objects:
    """Render the base with components, as an overlay of one's own would."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        kubernetes = os.path.relpath(KUBERNETES, folder)
        written = {
            "resources": [f"{kubernetes}/base"],
            "components": [f"{kubernetes}/components/{component}" for component in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
        return render(folder)


@functools.cache
def _rendered(root: str) -> bytes:
    base, *components = root.split("+")
    return pickle.dumps(combined(*components) if components else render(KUBERNETES / base))


@dataclass(frozen=True)
class Workload:
    """Something that makes pods, and the part of it that describes them."""

    object: Object

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.object["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.object["spec"]["template"]["spec"]
        return spec

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ours(self) -> bool:
        """Whether it runs this project's image."""
        return all(container["name"] == OURS for container in self.containers)

    @property
    def role(self) -> str:
        """The component that it is; empty for a server or a gateway."""
        return self.labels.get(COMPONENT, "") if self.labels.get(NAME) == OURS else ""

    @property
    def secrets(self) -> list[dict[str, Any]]:
        """The Secrets that it has as files."""
        volumes = self.spec.get("volumes", [])
        sources = [source for volume in volumes for source in volume.get("projected", {}).get("sources", [])]
        return [source["secret"] for source in sources if "secret" in source]

    @property
    def ports(self) -> dict[str, int]:
        ports = (port for container in self.containers for port in container.get("ports", []))
        return {port["name"]: port["containerPort"] for port in ports}


def of_kind(found: Objects, *kinds: str) -> Objects:
    """Return the objects of these kinds."""
    return [one for one in found if one["kind"] in kinds]


def named(found: Objects, kind: str, name: str) -> Object:
    """Return one object; there must be exactly one."""
    (one,) = (one for one in of_kind(found, kind) if one["metadata"]["name"] == name)
    return one


def workloads(found: Objects) -> Iterator[Workload]:
    """Yield everything that makes pods."""
    for one in of_kind(found, "Deployment", "StatefulSet", "Job"):
        yield Workload(one)


def our_workloads(found: Objects) -> Iterator[Workload]:
    """Yield those that run this project's image."""
    return (pod for pod in workloads(found) if pod.ours)


def processes(found: Objects) -> Iterator[Workload]:
    """Yield the processes of the service."""
    return (pod for pod in workloads(found) if pod.role in ROLES)


def containers(found: Objects) -> Iterator[tuple[Workload, dict[str, Any]]]:
    """Yield every container with the workload it is in."""
    for pod in workloads(found):
        for one in pod.containers:
            yield pod, one


def workload(found: Objects, name: str) -> Workload:
    """Return one workload."""
    (one,) = (one for one in workloads(found) if one.name == name)
    return one


def container(found: Objects, name: str) -> dict[str, Any]:
    """Return the only container of a workload."""
    (one,) = workload(found, name).spec["containers"]
    return dict_of(one)


def dict_of(value: object) -> dict[str, Any]:
    """Say that a value is a mapping."""
    assert isinstance(value, dict)
    return value


def settings(found: Objects) -> dict[str, str]:
    """Return what the ConfigMap of all processes sets."""
    (config,) = (
        one
        for one in of_kind(found, "ConfigMap")
        if one["metadata"]["name"].startswith(f"{OURS}-") and "HTTP_HOST" in one["data"]
    )
    return dict_of(config["data"])


def selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Say whether a label selector matches; an empty one matches everything, none at all nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_fulfils(labels, wanted) for wanted in selector.get("matchExpressions", []))


def _fulfils(labels: dict[str, str], wanted: dict[str, Any]) -> bool:
    key, operator = wanted["key"], wanted["operator"]
    match operator:
        case "In":
            return labels.get(key) in wanted["values"]
        case "NotIn":
            return labels.get(key) not in wanted["values"]
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise AssertionError(operator)

"""What keeps a pod in its place: Pod Security "restricted" and the house rules beyond. A rule yields what breaks it."""

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import OURS, Objects, Rule, containers, of_kind, our_workloads, workloads

USER = 10001
_TEMPORARY = "/tmp"  # noqa: S108  # a path in the container
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def runs_without_root(objects: Objects) -> Iterator[str]:
    """Neither pod nor container is root."""
    for pod in workloads(objects):
        given = pod.spec.get("securityContext", {})
        if given.get("runAsNonRoot") is not True or not given.get("runAsUser"):
            yield f"{pod.name} may run as root"
        for container in pod.containers:
            own = container.get("securityContext", {})
            if own.get("runAsNonRoot") is False or own.get("runAsUser") == 0:
                yield f"{pod.name} runs {container['name']} as root"


def runs_as_the_images_user(objects: Objects) -> Iterator[str]:
    """Our image has one user, whose group may read the secrets."""
    for pod in our_workloads(objects):
        given = pod.spec.get("securityContext", {})
        if not given.get("runAsUser") == given.get("runAsGroup") == given.get("fsGroup") == USER:
            yield f"{pod.name} does not run as {USER}"


def has_the_default_seccomp_profile(objects: Objects) -> Iterator[str]:
    """System calls are filtered, and no container lifts it."""
    for pod in workloads(objects):
        contexts = [pod.spec, *(container for container in pod.containers if "seccompProfile" in _context(container))]
        if any(_context(one).get("seccompProfile") != {"type": "RuntimeDefault"} for one in contexts):
            yield f"{pod.name} runs unconfined"


def gains_no_privileges(objects: Objects) -> Iterator[str]:
    """No escalation, nothing privileged."""
    for pod, container in containers(objects):
        context = _context(container)
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{pod.name} may gain privileges"


def has_no_capabilities(objects: Objects) -> Iterator[str]:
    """All are dropped, none is added."""
    for pod, container in containers(objects):
        capabilities = _context(container).get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{pod.name} keeps capabilities"


def shares_nothing_with_its_node(objects: Objects) -> Iterator[str]:
    """No namespace, port or folder of the node; only kinds of volumes that "restricted" allows."""
    for pod in workloads(objects):
        if any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.name} is in a namespace of its node"
        if any("hostPort" in port for container in pod.containers for port in container.get("ports", [])):
            yield f"{pod.name} takes a port of its node"
        for volume in pod.spec.get("volumes", []):
            if not _VOLUMES.intersection(volume):
                yield f"{pod.name} mounts {volume}"


def cannot_write_its_image(objects: Objects) -> Iterator[str]:
    """The root file system is read-only."""
    for pod, container in containers(objects):
        if _context(container).get("readOnlyRootFilesystem") is not True:
            yield f"{pod.name} may change what it runs"


def has_bounded_scratch_space(objects: Objects) -> Iterator[str]:
    """There is a /tmp, and what is written into any emptyDir has an end."""
    for pod in workloads(objects):
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{pod.name} may fill its node with {volume['name']}"
        for container in pod.containers:
            scratch = {mount["name"] for mount in container.get("volumeMounts", []) if mount["mountPath"] == _TEMPORARY}
            if not any(volume["name"] in scratch and "emptyDir" in volume for volume in pod.spec.get("volumes", [])):
                yield f"{pod.name} has no /tmp"


def has_an_account_of_its_own(objects: Objects) -> Iterator[str]:
    """Each role has a ServiceAccount, and none a token: no process asks Kubernetes anything."""
    accounts = {one["metadata"]["name"]: one for one in of_kind(objects, "ServiceAccount")}
    for pod in workloads(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name} has a token"
        if pod.role:
            account = accounts.get(pod.spec.get("serviceAccountName", ""), {})
            if (
                pod.spec.get("serviceAccountName") != pod.name
                or account.get("automountServiceAccountToken") is not False
            ):
                yield f"{pod.name} has no account of its own without a token"


def keeps_secrets_in_files(objects: Objects) -> Iterator[str]:
    """No variable holds a secret: whatever prints the environment would print it."""
    for pod in our_workloads(objects):
        for container in pod.containers:
            sources = [one.get("valueFrom", {}) for one in container.get("env", [])] + container.get("envFrom", [])
            if any("secretKeyRef" in one or "secretRef" in one for one in sources):
                yield f"{pod.name} has a secret in its environment"
        for volume in pod.spec.get("volumes", []):
            if volume.get("projected", {}).get("defaultMode") not in (None, 0o440) or "secret" in volume:
                yield f"{pod.name} has secrets that others may read"


def has_a_secret_of_its_own(objects: Objects) -> Iterator[str]:
    """One Secret for each role, by its name, read-only, where SECRETS_DIR points."""
    for pod in our_workloads(objects):
        names = [secret["name"] for secret in pod.secrets]
        # A generated one ends in a hash of its content.
        if not (len(names) == 1 and re.fullmatch(rf"{pod.name}(-[a-z0-9]{{10}})?", names[0])):
            yield f"{pod.name} reads {names}"
        (container,) = pod.containers
        mounts = [mount for mount in container.get("volumeMounts", []) if mount["name"] == "secrets"]
        if [(one["mountPath"], one.get("readOnly")) for one in mounts] != [(f"/run/secrets/{OURS}", True)]:
            yield f"{pod.name} has its secrets at {mounts}"


def is_admitted_restricted(objects: Objects) -> Iterator[str]:
    """The namespace enforces what these rules check."""
    for namespace in of_kind(objects, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{namespace['metadata']['name']} admits any pod"
    homes = {one["metadata"].get("namespace") for one in objects if one["kind"] != "Namespace"}
    if homes != {one["metadata"]["name"] for one in of_kind(objects, "Namespace")}:
        yield f"objects are in {homes}"


RULES: tuple[Rule, ...] = (
    runs_without_root,
    runs_as_the_images_user,
    has_the_default_seccomp_profile,
    gains_no_privileges,
    has_no_capabilities,
    shares_nothing_with_its_node,
    cannot_write_its_image,
    has_bounded_scratch_space,
    has_an_account_of_its_own,
    keeps_secrets_in_files,
    has_a_secret_of_its_own,
    is_admitted_restricted,
)


def _context(part: dict[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = part.get("securityContext", {})
    return context

"""How every pod is run: resources, probes, replacement, spread, images. A rule yields what breaks it."""

import re
from collections.abc import Iterator

from tests.deploy.manifests import (
    COMPONENT,
    NAME,
    OURS,
    Objects,
    Rule,
    containers,
    of_kind,
    our_workloads,
    processes,
    selects,
    workloads,
)

_DIGEST = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")


def is_told_nothing_of_other_services(objects: Objects) -> Iterator[str]:
    """No variables for each Service of the namespace: some would be taken for settings."""
    for pod in workloads(objects):
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name} gets a variable for every Service"


def asks_for_what_it_needs(objects: Objects) -> Iterator[str]:
    """Requests for CPU and memory and a limit for memory; no limit for CPU, which only makes things slow."""
    for pod, container in containers(objects):
        resources = container.get("resources", {})
        if set(resources.get("requests", {})) != {"cpu", "memory"} or set(resources.get("limits", {})) != {"memory"}:
            yield f"{pod.name} has other requests and limits"


def starts_the_entrypoint(objects: Objects) -> Iterator[str]:
    """The image's entrypoint gets the signals; a shell before it would swallow them."""
    for pod in our_workloads(objects):
        if any("command" in container for container in pod.containers):
            yield f"{pod.name} does not start the image's entrypoint"


def is_probed(objects: Objects) -> Iterator[str]:
    """Three probes over HTTP: one minute to start, alive without regard to broker and database, ready with it."""
    for pod in processes(objects):
        (container,) = pod.containers
        wanted = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
        found = {name: container.get(name, {}).get("httpGet", {}).get("path") for name in wanted}
        if found != wanted:
            yield f"{pod.name} is probed at {found}"
        startup = container.get("startupProbe", {})
        if (startup.get("periodSeconds"), startup.get("failureThreshold")) != (2, 30):
            yield f"{pod.name} has another time to start"


def is_replaced_one_by_one(objects: Objects) -> Iterator[str]:
    """A new pod is ready before an old one goes."""
    for pod in processes(objects):
        strategy = pod.object["spec"].get("strategy", {})
        if strategy != {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}:
            yield f"{pod.name} is replaced by {strategy}"


def is_spread(objects: Objects) -> Iterator[str]:
    """Over zones and nodes, counting only pods of the same revision."""
    for pod in processes(objects):
        spread = {
            one["topologyKey"]
            for one in pod.spec.get("topologySpreadConstraints", [])
            if "pod-template-hash" in one.get("matchLabelKeys", []) and selects(one.get("labelSelector"), pod.labels)
        }
        if spread != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{pod.name} is spread over {sorted(spread)}"


def survives_drains(objects: Objects) -> Iterator[str]:
    """One pod of a role at a time is evicted, and one that is broken never keeps a node from being drained."""
    budgets = of_kind(objects, "PodDisruptionBudget")
    for pod in processes(objects):
        own = [one["spec"] for one in budgets if selects(one["spec"]["selector"], pod.labels)]
        if [(one.get("maxUnavailable"), one.get("unhealthyPodEvictionPolicy")) for one in own] != [(1, "AlwaysAllow")]:
            yield f"{pod.name} has no budget of one pod"


def is_pinned(objects: Objects) -> Iterator[str]:
    """By digest: what was tested is what runs. Only an image made on this machine has none."""
    for pod, container in containers(objects):
        image = container["image"]
        if image != f"{OURS}:local" and not _DIGEST.fullmatch(image):
            yield f"{pod.name} runs whatever {image} is today"


def has_selectors_that_never_change(objects: Objects) -> Iterator[str]:
    """A Deployment's selector is immutable: only what a role is called may be in it."""
    for pod in processes(objects):
        if pod.object["spec"]["selector"] != {"matchLabels": {NAME: OURS, COMPONENT: pod.role}}:
            yield f"{pod.name} selects by {pod.object['spec']['selector']}"


def gives_up_jobs(objects: Objects) -> Iterator[str]:
    """A job that fails is repeated a few times, ends, keeps its log, and goes after a day."""
    for job in of_kind(objects, "Job"):
        spec = job["spec"]
        bounded = 0 < spec.get("backoffLimit", 0) < 10 and spec.get("activeDeadlineSeconds")
        kept = spec.get("ttlSecondsAfterFinished") and spec["template"]["spec"].get("restartPolicy") == "Never"
        if not (bounded and kept):
            yield f"{job['metadata']['name']} has no end, or leaves nothing to look at"


RULES: tuple[Rule, ...] = (
    is_told_nothing_of_other_services,
    asks_for_what_it_needs,
    starts_the_entrypoint,
    is_probed,
    is_replaced_one_by_one,
    is_spread,
    survives_drains,
    is_pinned,
    has_selectors_that_never_change,
    gives_up_jobs,
)

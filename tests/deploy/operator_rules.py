"""What the operators and whoever selects by labels need. A rule yields what breaks it."""

import re
from collections.abc import Iterator

from tests.deploy.manifests import OURS, Objects, Rule, of_kind
from tests.deploy.secrets_script import made_by_the_script

PART_OF = "app.kubernetes.io/part-of"
_BROKER = "rabbitmq.com/topology-operator"
_DATABASE = "cnpg.io/reload"


def operators_see_their_secrets(objects: Objects) -> Iterator[str]:
    """secrets.sh gives each Secret that an operator reads the label by which that sees it, or sees it change."""
    for label, secret in _read_by_operators(objects):
        made = made_by_the_script().get(secret, {"metadata": {}})
        if made["metadata"].get("labels", {}).get(label) != "true":
            yield f"the Secret {secret} has no label {label}"


def everything_is_part_of_it(objects: Objects) -> Iterator[str]:
    """One label selects all that belongs together."""
    for one in objects:
        if one["metadata"].get("labels", {}).get(PART_OF) != OURS:
            yield f"{one['kind']} {one['metadata']['name']} is part of nothing"


def waits_end_in_time(objects: Objects) -> Iterator[str]:
    """A job that waits for an operator says why it failed, each time it tries, before Kubernetes ends it."""
    for job in of_kind(objects, "Job"):
        spec = job["spec"]
        given = " ".join(spec["template"]["spec"]["containers"][0].get("args", []))
        wait = re.search(r"--wait=(\d+)", given)
        if wait and int(wait[1]) * (1 + spec.get("backoffLimit", 0)) >= spec.get("activeDeadlineSeconds", 0):
            yield f"{job['metadata']['name']} is ended while it waits"


RULES: tuple[Rule, ...] = (operators_see_their_secrets, everything_is_part_of_it, waits_end_in_time)


def _read_by_operators(objects: Objects) -> Iterator[tuple[str, str]]:
    for user in of_kind(objects, "User"):
        yield _BROKER, user["spec"].get("importCredentialsSecret", {}).get("name", "of a random user")
    for cluster in of_kind(objects, "Cluster"):
        for way in cluster["spec"].get("bootstrap", {}).values():
            yield _DATABASE, way["secret"]["name"]
        for role in cluster["spec"].get("managed", {}).get("roles", []):
            yield _DATABASE, role["passwordSecret"]["name"]

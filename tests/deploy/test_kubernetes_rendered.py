"""What kubectl renders of deploy/kubernetes is what Kubernetes and the operators take."""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

from tests.deploy.manifests import ALONE, ROOTS, Object, objects, of_kind

# The newest is the one that kubernetes-validate knows last. In the oldest `preStop.sleep` needs no feature gate.
OLDEST = "1.33"
VERSIONS = (OLDEST, kubernetes_validate.latest_version())
CRDS = Path(os.environ.get("CRD_SCHEMAS", "CRD_SCHEMAS is not set"))
OPERATORS = ("keda.sh", "monitoring.coreos.com", "rabbitmq.com", "postgresql.cnpg.io")


def _is_custom(one: Object) -> bool:
    return str(one["apiVersion"]).partition("/")[0] in OPERATORS


@pytest.fixture(scope="module", autouse=True)
def _schemas_are_read_once() -> Iterator[None]:
    """Reading them is nearly all of a validation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


def complaint(one: Object, version: str) -> str:
    return _complaint_of(json.dumps(one), version)


@functools.cache
def _complaint_of(text: str, version: str) -> str:
    """Most objects are in several overlays."""
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)  # by itself the tool only warns of a kind that it does not know
    return ""


@functools.cache
def _schema(path: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def _custom_complaints(one: Object) -> list[str]:
    group, _, version = one["apiVersion"].partition("/")
    path = CRDS / f"{one['kind'].lower()}_{group}_{version}.json"
    return [f"{error.json_path}: {error.message}" for error in _schema(path).iter_errors(one)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("root", ROOTS)
def test_kubernetes_knows_every_field(root: str, version: str) -> None:
    """Every object of a kind of Kubernetes itself is valid, with nothing unknown in it, in each supported version."""
    complaints = {one["metadata"]["name"]: complaint(one, version) for one in objects(root) if not _is_custom(one)}
    assert not {name: complaint for name, found in complaints.items() if found}


@pytest.mark.operators
@pytest.mark.parametrize("root", ["overlays/production", "overlays/staging", "overlays/example", *ALONE])
def test_the_operators_know_every_field(root: str) -> None:
    """Every custom resource is valid by the operator's own schema."""
    complaints = {one["metadata"]["name"]: _custom_complaints(one) for one in objects(root) if _is_custom(one)}
    assert not {name: found for name, found in complaints.items() if found}


@pytest.mark.parametrize("root", ROOTS)
def test_nothing_is_there_twice(root: str) -> None:
    """No two objects of a kind have one name."""
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects(root)]
    assert len(names) == len(set(names))


def _misspelt(one: Object) -> None:
    one["spec"]["replica_count"] = 2


def _of_another_type(one: Object) -> None:
    one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "40"


def _of_an_old_version(one: Object) -> None:
    one["apiVersion"] = "extensions/v1beta1"


@pytest.mark.parametrize("broken", [_misspelt, _of_another_type, _of_an_old_version])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_object_is_found(broken: Any, version: str) -> None:
    """Misspelt fields, wrong types and kinds that are gone do not pass."""
    deployment = of_kind(objects("base"), "Deployment")[0]
    broken(deployment)
    assert complaint(deployment, version)


@pytest.mark.operators
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("ScaledObject", "maxReplicas"),
        ("RabbitmqCluster", "replica"),
        ("Cluster", "instance"),
        ("PodMonitor", "podMetricsEndpoint"),
        ("ScheduledBackup", "cron"),
        ("Permission", "permission"),
    ],
)
def test_a_wrong_custom_resource_is_found(kind: str, field: str) -> None:
    """A field that the operator does not know does not pass."""
    one = of_kind(objects("overlays/production"), kind)[0]
    one["spec"][field] = 3
    assert _custom_complaints(one)

"""The broker's users as files: what is committed is what the code derives, and its readers can read it."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from schemas import broker
from service.operating import rights
from tests.allowed import ALLOWED
from tests.servers import REPOSITORY, Broker

DEPLOY = REPOSITORY / "deploy"
CRDS = Path(os.environ.get("CRD_SCHEMAS", "CRD_SCHEMAS is not set"))
PERMISSIONS = DEPLOY / "kubernetes" / "components" / "rabbitmq-operator" / "permissions.yaml"


def resources() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(PERMISSIONS.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", broker.files())
def test_what_is_committed_is_what_is_generated(name: str) -> None:
    """Rights that are changed by hand, or in the code alone, are found."""
    assert (DEPLOY / name).read_text(encoding="utf-8") == broker.files()[name], "run python schemas/generate.py"


def test_every_user_has_its_rights_on_kubernetes() -> None:
    """A User and a Permission each; passwords come from Secrets, never from a file here."""
    by_kind: dict[str, dict[str, Any]] = {"User": {}, "Permission": {}}
    for resource in resources():
        by_kind[resource["kind"]][resource["metadata"]["name"]] = resource["spec"]
    assert by_kind["User"].keys() == by_kind["Permission"].keys() == ALLOWED.keys()
    for one in rights.users():
        permission = by_kind["Permission"][one.user]
        assert permission["permissions"] == one.permission
        assert permission["userReference"] == {"name": one.user}
        assert by_kind["User"][one.user]["importCredentialsSecret"] == {"name": one.user}
        assert by_kind["User"][one.user].get("tags", []) == list(one.tags)


@pytest.mark.operators
def test_the_custom_resources_are_valid() -> None:
    """By the schemas of the Topology Operator's own definitions; and a broken copy is not."""
    for resource in resources():
        assert faults(resource) == []
    broken = resources()[1]
    broken["spec"]["permissions"]["execute"] = ".*"
    assert faults(broken) != []
    user = resources()[0]
    del user["spec"]["rabbitmqClusterReference"]
    assert faults(user) != []


def faults(resource: dict[str, Any]) -> list[str]:
    file = CRDS / f"{resource['kind'].lower()}_rabbitmq.com_v1beta1.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)]


def test_the_cluster_that_is_referred_to_is_the_one_that_is_made() -> None:
    """Users of a cluster of another name would never be made."""
    cluster = yaml.safe_load_all((PERMISSIONS.parent / "cluster.yaml").read_text(encoding="utf-8"))
    [name] = [one["metadata"]["name"] for one in cluster if one["kind"] == "RabbitmqCluster"]
    assert {resource["spec"]["rabbitmqClusterReference"]["name"] for resource in resources()} == {name}


async def test_rabbitmq_imports_the_committed_file(shared_broker: Broker) -> None:
    """With `load_definitions` at its start, or as here while it runs; users and rights are there then, no password."""
    committed = (DEPLOY / "broker" / "definitions.json").read_text(encoding="utf-8")
    vhost = (await shared_broker.renew()).rpartition("/")[2]
    text = committed.replace('"vhost": "/"', f'"vhost": "{vhost}"').replace('"name": "/"', f'"name": "{vhost}"')
    quoted = json.dumps(text)
    assert (
        await shared_broker.ctl("eval", f"rabbit_definitions:import_raw(list_to_binary({quoted})).")
    ).strip() == "ok"
    rows = json.loads(await shared_broker.ctl("-q", "list_permissions", "-p", vhost, "--formatter=json"))
    found = {row.pop("user"): row for row in rows}
    found.pop("guest")
    assert found == {one.user: one.permission for one in rights.users()}
    users = json.loads(await shared_broker.ctl("-q", "list_users", "--formatter=json"))
    tags = {row["user"]: [str(tag) for tag in row["tags"]] for row in users}
    assert tags["whatsapp-qr-keda"] == ["monitoring"]
    assert {user for user in ALLOWED if tags[user]} == {"whatsapp-qr-keda"}


def test_the_page_shows_every_user() -> None:
    """Whoever sets the broker up reads what each is for."""
    page = (DEPLOY / "broker" / "README.md").read_text(encoding="utf-8")
    assert [one.user for one in rights.users() if f"`{one.user}`" not in page] == []
    assert Path(DEPLOY / "broker" / "definitions.json").exists()

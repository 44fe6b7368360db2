"""The database comes back from a snapshot under its name, as docs/operations.md says: nothing else has to change."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import KUBERNETES, NAME, Object, Objects, named, objects, of_kind, render, workloads
from tests.deploy.test_kubernetes_rendered import _custom_complaints
from tests.servers import REPOSITORY

POSTGRES = "whatsapp-qr-postgres"
PRODUCTION = ("overlays/production", "overlays/production/migrate")


@pytest.fixture
def restored(tmp_path: Path) -> Objects:
    """Return production with the component that restores its database."""
    folder = tmp_path.resolve()
    kubernetes = os.path.relpath(KUBERNETES, folder)
    written = {"resources": [f"{kubernetes}/{PRODUCTION[0]}"], "components": [f"{kubernetes}/components/cnpg/restored"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
    return render(folder)


def cluster(found: Objects) -> Object:
    """Return the database's Cluster."""
    return named(found, "Cluster", POSTGRES)


def test_only_the_start_of_the_cluster_differs(restored: Objects) -> None:
    """Storage, settings and roles are those of production; database, owner and Secret those of its first start."""
    present = objects("overlays/production")
    assert [one for one in restored if one["kind"] != "Cluster"] == [one for one in present if one["kind"] != "Cluster"]
    old, new = cluster(present), cluster(restored)
    initial, recovery = (one["spec"].pop("bootstrap") for one in (old, new))
    assert old == new
    assert new["spec"]["managed"]["roles"]
    (start,), (snapshot,) = initial.values(), recovery.values()
    assert list(recovery) == ["recovery"]
    assert snapshot.pop("volumeSnapshots")["storage"]["name"].startswith(f"{POSTGRES}-")
    assert snapshot == {key: start[key] for key in ("database", "owner", "secret")}


@pytest.mark.operators
def test_the_operator_knows_every_field(restored: Objects) -> None:
    """The restored Cluster is valid by the operator's schema, and a misspelt snapshot is not."""
    one = cluster(restored)
    assert _custom_complaints(one) == []
    snapshots = one["spec"]["bootstrap"]["recovery"]["volumeSnapshots"]
    snapshots["volume"] = snapshots.pop("storage")
    assert _custom_complaints(one)


def strangers(found: Objects) -> Iterator[str]:
    """Yield what would not find the Cluster: selectors and backups that name another one."""
    (name,) = (one["metadata"]["name"] for one in of_kind(found, "Cluster"))
    for one in found:
        yield from (f"{one['kind']} {one['metadata']['name']}" for value in _clusters_in(one) if value != name)
    for one in of_kind(found, "ScheduledBackup"):
        if one["spec"]["cluster"]["name"] != name:
            yield f"ScheduledBackup {one['metadata']['name']}"


def _clusters_in(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "cnpg.io/cluster" in part:
            yield part["cnpg.io/cluster"]
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _clusters_in(one)


def test_everything_finds_the_restored_cluster(restored: Objects) -> None:
    """Policies, monitors and backups name it; under another name it would be cut off."""
    found = restored + objects(PRODUCTION[1])
    assert list(strangers(found)) == []
    cluster(found)["metadata"]["name"] = f"{POSTGRES}-restored"
    assert {one.partition(" ")[0] for one in strangers(found)} == {"NetworkPolicy", "PodMonitor", "ScheduledBackup"}


def lost(found: Objects) -> Iterator[str]:
    """Yield what is wrong with the backups: they go with the Cluster, or cannot be restored without archived WAL."""
    spec = cluster(found)["spec"]
    configured = spec["backup"]["volumeSnapshot"]
    archived = any(plugin.get("isWALArchiver") for plugin in spec.get("plugins", []))
    if configured.get("snapshotOwnerReference", "none") != "none":
        yield "snapshots are deleted with the Cluster or its backups"
    if "walStorage" in spec:
        yield "a snapshot is of two volumes"
    for one in of_kind(found, "ScheduledBackup"):
        if one["spec"].get("online", configured.get("online", True)) and not archived:
            yield "snapshots of a running server, without its WAL"


def _owned(found: Objects) -> None:
    cluster(found)["spec"]["backup"]["volumeSnapshot"]["snapshotOwnerReference"] = "cluster"


def _hot(found: Objects) -> None:
    named(found, "ScheduledBackup", POSTGRES)["spec"]["online"] = True


def _two_volumes(found: Objects) -> None:
    cluster(found)["spec"]["walStorage"] = {"size": "1Gi"}


def test_snapshots_outlive_the_cluster() -> None:
    """Whoever deletes the Cluster to restore it has what he restores it from."""
    assert list(lost(objects("overlays/production"))) == []


@pytest.mark.parametrize("broken", [_owned, _hot, _two_volumes])
def test_a_lost_snapshot_is_found(broken: Any) -> None:
    """Each way to lose it is seen."""
    found = objects("overlays/production")
    broken(found)
    assert len(list(lost(found))) == 1


def test_the_cluster_can_be_applied_alone() -> None:
    """By its label nothing else comes with it, and no consumer starts."""
    chosen = [one for one in objects("overlays/production") if one["metadata"].get("labels", {}).get(NAME) == POSTGRES]
    assert [one["kind"] for one in chosen] == ["Cluster"]
    assert f"-l {NAME}={POSTGRES}" in (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    assert POSTGRES not in {pod.labels.get(NAME) for pod in workloads(objects("overlays/production"))}


def unpublished(found: Objects) -> list[str]:
    """Return the catalogs that CloudNativePG does not publish: a Cluster would wait for such a one for ever."""
    published = {f"postgresql-{kind}-{debian}" for kind in ("minimal", "standard") for debian in ("bookworm", "trixie")}
    return [
        reference["name"]
        for reference in (one["spec"]["imageCatalogRef"] for one in of_kind(found, "Cluster"))
        if reference["kind"] != "ClusterImageCatalog" or reference["name"] not in published
    ]


@pytest.mark.parametrize("root", ["overlays/staging", "overlays/production"])
def test_the_images_are_of_a_catalog_that_there_is(root: str) -> None:
    """CloudNativePG's catalogs are called after what is in the images and their Debian."""
    found = objects(root)
    assert unpublished(found) == []
    cluster(found)["spec"]["imageCatalogRef"]["name"] = "postgresql"
    assert unpublished(found) == ["postgresql"]

"""What docs/operations.md tells people to paste for Kubernetes parses, waits long enough, and names what is there."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import (
    COMPONENT,
    KUBERNETES,
    Objects,
    objects,
    of_kind,
    render,
    selects,
    settings,
    workloads,
)
from tests.deploy.test_kubernetes_rules import complaints
from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
CONSUMERS = {f"{role}-consumer" for role in ("session", "conversation", "outbound")}
KINDS = {"deployment": "Deployment", "job": "Job", "cluster.postgresql.cnpg.io": "Cluster"}


def blocks(page: str) -> list[str]:
    """Return the indented blocks with commands of kubectl."""
    found = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found if "kubectl" in block]


def faults(page: str) -> Iterator[str]:
    """Yield what would fail or, worse, go on when it should not."""
    for block in blocks(page):
        lines = [line for line in block.splitlines() if line.startswith(("kubectl", "(", "consumers"))]
        if subprocess.run(["/bin/sh", "-n", "-c", block], capture_output=True, check=False).returncode:
            yield f"no shell takes {block}"
        if len(lines) > 1 and not (block.startswith("(set -e\n") and block.rstrip().endswith(")")):
            yield f"goes on after a failure: {block}"
        for line in re.findall(r"kubectl (?:wait|rollout status) .*", block):
            if "--timeout=" not in line:
                yield f"waits 30 s or for ever: {line}"
        stops, applies = block.find("--replicas=0 -l"), block.find("overlays/production\n")
        if stops >= 0 and "kubectl wait --for=delete pod" not in block[stops : applies if applies > 0 else None]:
            yield f"does not wait until the consumers have ended: {block}"
        yield from _unknown(block)
    for text, file, anchor in re.findall(r"\[([^]]+)\]\(([\w.]*)#([\w-]+)\)", page):
        linked = (REPOSITORY / "docs" / file).read_text(encoding="utf-8") if file else page
        if anchor not in {_anchor(line) for line in linked.splitlines() if line.startswith("#")}:
            yield f"{text} leads nowhere"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lstrip("# ")).lower().replace(" ", "-")


def _unknown(block: str) -> Iterator[str]:
    for path in re.findall(r"deploy/kubernetes/[\w/.-]+\w", block):
        if not (REPOSITORY / path / "kustomization.yaml").exists():
            yield f"{path} is not there"
    found = objects("overlays/production") + objects("overlays/production/migrate")
    there = {(one["kind"], one["metadata"]["name"]) for one in found}
    for kind, name in re.findall(r"([\w.]+)/(whatsapp-qr-[\w-]+)(?![\w$-])", block):
        if kind in KINDS and (KINDS[kind], name) not in there:
            yield f"{kind}/{name} is not there"
    for values in re.findall(rf"{re.escape(COMPONENT)} in \(([\w,-]+)\)", block):
        wanted = {"matchExpressions": [{"key": COMPONENT, "operator": "In", "values": values.split(",")}]}
        if {pod.role for pod in workloads(found) if selects(wanted, pod.object["metadata"]["labels"])} != CONSUMERS:
            yield f"{values} are not the consumers"


def test_the_page_can_be_pasted() -> None:
    """Its blocks are right, and there are some."""
    assert list(faults(PAGE)) == []
    assert len(blocks(PAGE)) > 8


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(set -e\n", "(\n"),
        (' --timeout=5m -l "$consumers"', ' -l "$consumers"'),
        (" --timeout=1m job", " job"),
        ('    kubectl wait --for=delete pod --timeout=5m -l "$consumers"\n', ""),
        ("session-consumer,conversation-consumer,", "session-consumer,"),
        ("job/whatsapp-qr-topology", "job/whatsapp-qr-declare"),
        ("overlays/production/migrate", "overlays/production/jobs"),
        ("deployment/whatsapp-qr-ingress", "deployment/whatsapp-qr-door"),
        ("kubernetes.md#a-new-release", "kubernetes.md#upgrade"),
        ("(#from-a-snapshot-on-kubernetes)", "(#from-a-snapshot)"),
        ("autoscaling.keda.sh/paused-replicas-\n", 'autoscaling.keda.sh/paused-replicas-"\n'),
    ],
)
def test_what_is_wrong_on_the_page_is_found(right: str, wrong: str) -> None:
    """Each slip is seen."""
    assert right in PAGE
    assert list(faults(PAGE.replace(right, wrong)))


def test_partitions_are_changed_in_one_environment(tmp_path: Path) -> None:
    """With the setting and the patches of the page production has 6 partitions, all rules hold, staging keeps its 4."""
    changed = _production_with_6(tmp_path, _patches())
    assert settings(changed)["PARTITIONS"] == "6"
    assert complaints(changed) == {}
    assert settings(objects("overlays/staging"))["PARTITIONS"] == "4"
    assert of_kind(changed, "PrometheusRule") != of_kind(objects("overlays/production"), "PrometheusRule")


@pytest.mark.parametrize(
    ("left_out", "found"),
    [(0, "memory_suffices"), (1, "consumers_scale_to_the_partitions"), (2, "consumers_scale_to_the_partitions")],
)
def test_a_forgotten_patch_is_found(left_out: int, found: str, tmp_path: Path) -> None:
    """None of them can be left out."""
    patches = _patches()
    del patches[left_out]
    (rule,) = complaints(_production_with_6(tmp_path, patches))
    assert rule.__name__ == found


def _patches() -> list[dict[str, object]]:
    (text,) = re.findall(r"```yaml\n(- target:.*?)```", PAGE, re.DOTALL)
    patches: list[dict[str, object]] = yaml.safe_load(text)
    return patches


def _production_with_6(folder: Path, patches: list[dict[str, object]]) -> Objects:
    folder = folder.resolve()
    config = {"name": "whatsapp-qr", "namespace": "whatsapp-qr", "behavior": "merge", "literals": ["PARTITIONS=6"]}
    written = {
        "resources": [f"{os.path.relpath(KUBERNETES, folder)}/overlays/production"],
        "configMapGenerator": [config],
        "patches": patches,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
    return render(folder)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:overlays|components|settings)/[\w/.-]+)`", PAGE))))
def test_paths_exist(path: str) -> None:
    """Nobody is sent to a file that is not there."""
    assert (KUBERNETES / path).exists()

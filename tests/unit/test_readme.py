"""What the README shows is what there is."""

import hashlib
import re

import pytest
from prometheus_client import REGISTRY

from service import metrics
from service.messaging import topology
from tests.servers import REPOSITORY
from whatsapp_qr_contracts.jobs import IncomingJob

assert metrics  # importing it registers what is collected below
README = (REPOSITORY / "README.md").read_text()
DIAGRAM = REPOSITORY / "docs" / "architecture.svg"


def test_the_picture_is_drawn_from_its_source() -> None:
    """Whoever changes the source draws the picture anew: make diagram."""
    digest = hashlib.sha256(DIAGRAM.with_suffix(".dot").read_bytes()).hexdigest()[:16]
    assert DIAGRAM.read_text().endswith(f"<!-- drawn from architecture.dot {digest} -->\n")
    assert "docs/architecture.svg" in README


@pytest.mark.parametrize("queue", [*(queue.name for queue in topology.PARTITIONED), IncomingJob.name])
def test_the_picture_shows_every_queue(queue: str) -> None:
    """A queue that is renamed or new is drawn."""
    assert queue in re.sub("&#45;", "-", DIAGRAM.read_text())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", README))))
def test_links_lead_to_files(path: str) -> None:
    """Nothing that the README links to is missing."""
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize(("path", "anchor"), sorted(set(re.findall(r"\]\(((?!http)[^)#]+)#([^)]+)\)", README))))
def test_links_lead_to_titles(path: str, anchor: str) -> None:
    """A title that is renamed takes its links along."""
    titles = re.findall(r"^#+ (.+)$", (REPOSITORY / path).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_what_is_not_there_yet_is_not_there() -> None:
    """Whoever builds it takes it out; and nothing else is said to be missing that has a folder of its own."""
    missing = README.partition("## What is not there yet\n")[2]
    assert "real gateway" in missing
    assert not (REPOSITORY / "deploy" / "gateway").exists()
    for name in ("Kubernetes deployment", "fault suite", "contract checks", "/events/"):
        assert name not in missing


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?m)(?:^    (?:\S+=\S+ )*|`)make ([a-z]+)", README))))
def test_make_targets_exist(target: str) -> None:
    """Nobody is told to type what does not work."""
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "metric",
    sorted(
        family.name + ("_total" if family.type == "counter" else "")
        for family in REGISTRY.collect()
        if family.name.startswith("whatsapp_qr_")
    ),
)
def test_every_metric_is_explained(metric: str) -> None:
    """Under the name by which Prometheus knows it."""
    assert f"`{metric}" in README

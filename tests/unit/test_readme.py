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


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_to_files(path: str) -> None:
    """Nothing that the README links to is missing."""
    assert (REPOSITORY / path).exists()


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

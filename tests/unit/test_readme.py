"""What the README and the other pages show is what there is."""

import hashlib
import re
from pathlib import Path

import pytest

from service.messaging import topology
from tests.servers import REPOSITORY
from whatsapp_qr_contracts.jobs import IncomingJob

README = (REPOSITORY / "README.md").read_text()
DIAGRAM = REPOSITORY / "docs" / "architecture.svg"
FOLDERS = ("docs", "contracts", "deploy", "service", "tests/bench")
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(
        path
        for folder in FOLDERS
        for path in sorted((REPOSITORY / folder).rglob("*.md"))
        if "node_modules" not in str(path)
    ),
]
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in PAGES}
LINKS = sorted(
    {
        (page, path, anchor)
        for page, text in TEXTS.items()
        for path, anchor in re.findall(r"\]\(((?!http)[^)#]*)#?([^)]*)\)", text)
    }
)
MADE = re.compile(r"(?m)(?:^    (?:\S+=\S+ )*|`(?:\S+=\S+ )*)make ([a-z]+)")


def target_of(page: str, path: str) -> Path:
    """Return the file to which a link on a page leads."""
    return (REPOSITORY / page).parent / path if path else REPOSITORY / page


def test_the_picture_is_drawn_from_its_source() -> None:
    """Whoever changes the source draws the picture anew: make diagram."""
    digest = hashlib.sha256(DIAGRAM.with_suffix(".dot").read_bytes()).hexdigest()[:16]
    assert DIAGRAM.read_text().endswith(f"<!-- drawn from architecture.dot {digest} -->\n")
    assert "docs/architecture.svg" in README


@pytest.mark.parametrize("queue", [*(queue.name for queue in topology.PARTITIONED), IncomingJob.name])
def test_the_picture_shows_every_queue(queue: str) -> None:
    """A queue that is renamed or new is drawn."""
    assert queue in re.sub("&#45;", "-", DIAGRAM.read_text())


@pytest.mark.parametrize(("page", "path"), sorted({(page, path) for page, path, _ in LINKS}))
def test_links_lead_to_files(page: str, path: str) -> None:
    """Nothing that a page links to is missing."""
    assert target_of(page, path).exists()


@pytest.mark.parametrize(("page", "path", "anchor"), [link for link in LINKS if link[2]])
def test_links_lead_to_titles(page: str, path: str, anchor: str) -> None:
    """A title that is renamed takes its links along."""
    titles = re.findall(r"^#+ (.+)$", target_of(page, path).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_page_is_listed() -> None:
    """The index of docs/ leads to each page of it; the runbook has an index of its own."""
    listed = set(re.findall(r"\]\((\w+\.md)\)", TEXTS["docs/README.md"]))
    assert listed == {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    assert "(runbook/README.md)" in TEXTS["docs/README.md"]


def test_what_is_not_there_yet_is_not_there() -> None:
    """Whoever builds it takes it out; and nothing else is said to be missing that has a folder of its own."""
    missing = README.partition("## What is not there yet\n")[2]
    assert "real gateway" in missing
    assert not (REPOSITORY / "deploy" / "gateway").exists()
    for name in ("Kubernetes deployment", "fault suite", "contract checks", "/events/"):
        assert name not in missing


@pytest.mark.parametrize("target", sorted({target for text in TEXTS.values() for target in MADE.findall(text)}))
def test_make_targets_exist(target: str) -> None:
    """Nobody is told to type what does not work."""
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)

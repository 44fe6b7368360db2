"""What docs/architecture.md and CONTRIBUTING.md say of the code is what there is."""

import re
from itertools import pairwise

import pytest

from service.domain.session import TRANSITIONS
from service.messaging import topology
from tests.servers import REPOSITORY
from whatsapp_qr_contracts.jobs import IncomingJob

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE = re.compile(r"`((?:service|contracts|schemas|deploy|docs|tests)/[\w/.-]*\w)`")
NAMED = re.compile(rf"{FILE.pattern} \(`(\w+)`(?:, `(\w+)`)?\)")


def test_the_diagram_is_the_transition_table() -> None:
    """Every arrow is a transition, every transition is an arrow, and none is drawn twice."""
    [diagram] = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", PAGE, re.DOTALL)
    arrows = [re.fullmatch(r"    (\w+) --> (\w+): (\w+)", line) for line in diagram.splitlines()]
    assert None not in arrows
    drawn = [found.groups() for found in arrows if found]
    assert sorted(drawn) == sorted((str(before), str(after), str(by)) for (before, by), after in TRANSITIONS.items())


@pytest.mark.parametrize(
    "name",
    sorted(
        {exchange.name for exchange in topology.EXCHANGES}
        | {queue.name for queue in topology.PARTITIONED}
        | {queue.entry for queue in topology.PARTITIONED if queue.entry}
        | {IncomingJob.name, topology.DEAD_LETTERS, f"{topology.INGRESS_PREFIX}<random>"}
    ),
)
def test_every_exchange_and_queue_is_named(name: str) -> None:
    """One that is renamed or new is said on the page."""
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("path", sorted(set(FILE.findall(PAGE + CONTRIBUTING))))
def test_files_exist(path: str) -> None:
    """Nobody is sent to a file that is not there."""
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize(("path", "names"), sorted({(path, (one, two)) for path, one, two in NAMED.findall(PAGE)}))
def test_functions_are_where_the_page_says(path: str, names: tuple[str, str]) -> None:
    """A function that is renamed or moved takes its name on the page along."""
    code = (REPOSITORY / path).read_text(encoding="utf-8")
    assert [name for name in names if name and not re.search(rf"\bdef {name}\(", code)] == []


def test_the_contributing_page_fits_on_a_page() -> None:
    """Its lists stand in the order in which one needs them."""
    titles = [
        "Set up",
        "Run one test",
        "Where things go",
        "Add a command",
        "Add an event",
        "Add a route",
        "Add a setting",
    ]
    places = [CONTRIBUTING.index(f"\n## {title}\n") for title in titles]
    assert all(before < after for before, after in pairwise(places))
    assert len(CONTRIBUTING.splitlines()) <= 120

"""The guarantees page has a section for each guarantee, and names only tests that there are."""

import ast
import re
from pathlib import Path

import pytest

from tests.servers import REPOSITORY

PAGE = REPOSITORY / "docs" / "guarantees.md"
SECTION = re.compile(
    r"(?ms)^## (?P<name>G\d+): (?P<title>.+?)\n\n(?P<says>.+?)\n\n"
    r"\*\*Limits\*\*\n\n(?P<limits>.+?)\n\n\*\*Proved by\*\*\n\n(?P<proof>.+?)\n\n(?=## )"
)
SECTIONS = [found.groups() for found in SECTION.finditer(PAGE.read_text())]
PROOF = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")


def functions_of(file: Path) -> set[str]:
    """Return the test functions that a file defines."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)}


def anchor_of(title: str) -> str:
    """Return the anchor that a heading has."""
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def test_every_guarantee_is_there() -> None:
    """G1 to G16, in order, and no section has another form."""
    names = [f"G{number}" for number in range(1, 17)]
    assert [name for name, *_ in SECTIONS] == names
    assert re.findall(r"(?m)^## (G\d+)\b", PAGE.read_text()) == names


def test_every_guarantee_is_listed() -> None:
    """The list at the top has the titles of the sections, and leads to them."""
    listed = re.findall(r"(?m)^- \[(G\d+)\]\(#([\w-]+)\): (.+)$", PAGE.read_text())
    assert listed == [(name, anchor_of(f"{name}: {title}"), title) for name, title, *_ in SECTIONS]


@pytest.mark.parametrize(
    ("says", "limits", "proof"), [rest for _, _, *rest in SECTIONS], ids=[one[0] for one in SECTIONS]
)
def test_each_has_limits_and_a_proof(says: str, limits: str, proof: str) -> None:
    """One sentence at least, one limit at least, each a bullet, and nothing but links to tests as proof."""
    assert says.strip().endswith(".")
    assert "\n\n" not in says
    assert all(line.startswith(("- ", "  ")) for line in limits.splitlines())
    assert all(PROOF.fullmatch(line.removeprefix("- ")) for line in proof.splitlines())
    assert PROOF.search(proof)


@pytest.mark.parametrize(("test", "path"), sorted(set(PROOF.findall(PAGE.read_text()))))
def test_what_proves_it_exists(test: str, path: str) -> None:
    """A test that is renamed or removed takes its name on the page along."""
    file = PAGE.parent / path
    assert file.is_file()
    assert test in functions_of(file)


@pytest.mark.parametrize("table", ["fault-table", "neighbour-table"])
def test_the_tables_have_their_places(table: str) -> None:
    """`make faults` and `make neighbours` find where to put them."""
    assert re.search(rf"(?s)<!-- {table} -->.*<!-- /{table} -->", PAGE.read_text())

"""The guarantees page names only tests that there are."""

import ast
import re
from pathlib import Path

import pytest

from tests.servers import REPOSITORY

PAGE = REPOSITORY / "docs" / "guarantees.md"
ROWS = re.findall(r"(?m)^\| \*\*(G\d+)\*\* \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text())
PROOF = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")


def functions_of(file: Path) -> set[str]:
    """Return the test functions that a file defines."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)}


def test_every_guarantee_is_there() -> None:
    """G1 to G16, in order."""
    assert [name for name, *_ in ROWS] == [f"G{number}" for number in range(1, 17)]


@pytest.mark.parametrize(("name", "says", "limits", "proof"), ROWS, ids=[name for name, *_ in ROWS])
def test_each_has_limits_and_a_proof(name: str, says: str, limits: str, proof: str) -> None:  # noqa: ARG001
    """One sentence at least of each, and nothing but links to tests as proof."""
    assert says.strip()
    assert limits.strip()
    assert PROOF.sub("", proof).replace(",", "").strip() == ""
    assert PROOF.search(proof)


@pytest.mark.parametrize(("test", "path"), sorted(set(PROOF.findall(PAGE.read_text()))))
def test_what_proves_it_exists(test: str, path: str) -> None:
    """A test that is renamed or removed takes its name on the page along."""
    file = PAGE.parent / path
    assert file.is_file()
    assert test in functions_of(file)


def test_the_fault_table_has_its_place() -> None:
    """`make faults` finds where to put it."""
    assert re.search(r"(?s)<!-- fault-table -->.*<!-- /fault-table -->", PAGE.read_text())

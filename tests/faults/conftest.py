"""Fixtures of the fault suite, and the table at its end."""

import os
from pathlib import Path

import pytest

from tests.faults.table import RUN, Line, publish, table
from tests.servers import REPOSITORY, Postgres

FOLDER = Path(__file__).parent


@pytest.fixture(params=["sqlite", "postgres"])
def postgres(request: pytest.FixtureRequest) -> Postgres | None:
    """The PostgreSQL that a run may break, or None where its database is SQLite: the test runs with each."""
    found: Postgres | None = None
    if request.param == "postgres":
        found = request.getfixturevalue("breakable_postgres")
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.fault)


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of all runs; RECORD=1 puts it into the guarantees page too."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines: list[Line] = [value for report in reports for name, value in report.user_properties if name == RUN]
    if not lines:
        return
    terminalreporter.write_line(table(lines))
    if os.environ.get("RECORD"):
        publish(REPOSITORY / "docs" / "guarantees.md", lines)

"""Fixtures of the neighbour suite, and the table at its end.

It measures times, so it runs alone and only where it is asked for: `make neighbours`, or this folder's path.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.neighbours.deployment import Deployment, Deployments
from tests.neighbours.load import Kind, Mix
from tests.neighbours.measurement import Begin, Measurement, measure
from tests.neighbours.table import MEASURED, publish, table
from tests.servers import REPOSITORY, Broker, Postgres

FOLDER = Path(__file__).parent
EVERYDAY: Mix = {Kind.INCOMING: 1, Kind.SEND: 1}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the folder out of every run that does not name it."""
    named = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    inside = collection_path.is_relative_to(FOLDER)
    return True if inside and not any(path.is_relative_to(FOLDER) for path in named) else None


@pytest.fixture(scope="session", params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest) -> str:
    """Each test runs on both kinds of database; all on one, then all on the other."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
async def deployments(
    shared_broker: Broker, shared_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Deployments]:
    """The deployments of all tests."""
    deployments = Deployments(shared_broker, shared_postgres, tmp_path_factory.mktemp)
    yield deployments
    await deployments.close()


@pytest.fixture
async def deployment(deployments: Deployments, database: str) -> Deployment:
    """A running service; that of the test before, where nothing of its harm is left."""
    return await deployments.get(database)


@pytest.fixture
def begin(request: pytest.FixtureRequest) -> Begin:
    """Begin a measurement of a harm in a deployment; by default customers write and chatbots send by REST."""

    def of(
        deployment: Deployment, harm: str, mix: Mix = EVERYDAY, **more: Any
    ) -> AbstractAsyncContextManager[Measurement]:
        return measure(deployment, harm, mix, request, **more)

    return of


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of all harms; RECORD=1 puts it into the guarantees page too."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    found = [value for report in reports for name, value in report.user_properties if name == MEASURED]
    lines = sorted((line for one in found for line in one), key=lambda line: (line["harm"], line["database"]))
    if not lines:
        return
    terminalreporter.write_line(table(lines))
    if os.environ.get("RECORD"):
        publish(REPOSITORY / "docs" / "guarantees.md", lines)

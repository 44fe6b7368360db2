"""What docs/kubernetes.md tells people to type and to look at is there."""

import re

import pytest

from tests.deploy.known import is_command, made_by_the_script
from tests.deploy.manifests import KUBERNETES, objects, of_kind
from tests.deploy.test_kubernetes_rendered import OLDEST
from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?<![\w/])(?:deploy|tests)/[\w/.-]*\w", PAGE))))
def test_paths_exist(path: str) -> None:
    """Nobody is sent to a file that is not there."""
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:overlays|components|jobs)/[\w/.-]+)`", PAGE))))
def test_paths_within_exist(path: str) -> None:
    """Nor to one beside it."""
    assert (KUBERNETES / path).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`whatsapp-qr ([a-z ]+)`", PAGE))))
def test_commands_exist(command: str) -> None:
    """Nobody is told to type what does not work."""
    assert is_command(command.split())


def test_every_secret_is_explained() -> None:
    """Who makes them himself finds all of them, with their keys."""
    table = PAGE[PAGE.index("| Secret |") : PAGE.index("LOG_HASH_KEY is the same")]
    for name, secret in made_by_the_script().items():
        assert name.removeprefix("whatsapp-qr") in table
        assert all(key in table for key in secret["stringData"])


def test_jobs_and_version_are_named_as_they_are() -> None:
    """The commands wait for the jobs that there are; the oldest version is the one that is checked."""
    jobs = {one["metadata"]["name"] for one in of_kind(objects("overlays/production/migrate"), "Job")}
    assert set(re.findall(r"job/([\w-]+)", PAGE)) == jobs
    assert f"Kubernetes {OLDEST} or later" in PAGE

"""The image's recipe keeps its rules, and nothing gets into an image but what belongs there."""

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copyfile

import pytest

from tests.deploy import dockerfile
from tests.deploy.dockerfile import Dockerfile, Ignore
from tests.servers import REPOSITORY

PATH = REPOSITORY / "deploy" / "Dockerfile"
TEXT = PATH.read_text(encoding="utf-8")
IGNORE = Ignore((REPOSITORY / ".dockerignore").read_text(encoding="utf-8"))
DIGEST = "@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b"
PROJECTS = ("contracts", ".")

# Each breaks one rule: what stands in the recipe, what a careless change makes of it.
BROKEN = [
    ("bases_are_pinned", DIGEST, ""),
    ("bases_are_pinned", "python:3.13.15-slim-trixie@", "python:latest@"),
    ("bases_are_pinned", "FROM ${PYTHON_IMAGE} AS build", "FROM python:3.13-slim AS build"),
    ("the_account_is_a_number", "USER 10001:10001", "USER whatsapp-qr"),
    ("the_account_is_a_number", "USER 10001:10001\n", ""),
    ("nothing_is_added_from_elsewhere", "COPY service service", "ADD service service"),
    (
        "nothing_is_added_from_elsewhere",
        "WORKDIR /source",
        "RUN curl -o uv.sh https://example.com/uv.sh\nWORKDIR /source",
    ),
    ("installed_by_hash", "--no-build --require-hashes", "--no-build"),
    ("installed_by_hash", "requirements-dev.lock --require-hashes", "requirements-dev.lock"),
    ("mounts_are_absolute", "target=/source/requirements.lock", "target=requirements.lock"),
    ("the_command_is_the_process", 'ENTRYPOINT ["whatsapp-qr"]', "ENTRYPOINT whatsapp-qr"),
    ("the_command_is_the_process", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGINT"),
    ("the_runtime_has_no_tools", "WORKDIR /app", "COPY --from=uv /uv /usr/local/bin/uv\nWORKDIR /app"),
    ("no_secret_is_baked_in", "LOG_FORMAT=json", "LOG_FORMAT=json WEBHOOK_TOKEN=0123456789abcdef"),
    ("no_secret_is_baked_in", "ARG VERSION=unknown", "ARG VERSION=unknown\nARG NPM_TOKEN"),
    ("it_says_what_it_is", 'org.opencontainers.image.revision="${REVISION}"', "vcs-ref=$REVISION"),
    ("it_says_what_it_is", "PYTHONUNBUFFERED=1", "PYTHONUNBUFFERED="),
]


def _hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)


def _broken_rules(text: str) -> set[str]:
    recipe = Dockerfile.of(text)
    return {rule.__name__ for rule in dockerfile.RULES if list(rule(recipe))}


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    """Neither hadolint nor the shellcheck inside it; of a package without a version it would."""
    checked = _hadolint(PATH)
    assert (checked.returncode, checked.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text(TEXT.replace("WORKDIR /source", "RUN apt-get install -y gcc\nWORKDIR /source"))
    assert "DL3008" in _hadolint(worse).stdout


def test_the_recipe_keeps_every_rule() -> None:
    """Pinned, without root, without a shell in front, without tools or secrets inside, and it says what it is."""
    recipe = Dockerfile.of(TEXT)
    assert [fault for rule in dockerfile.RULES for fault in rule(recipe)] == []


@pytest.mark.parametrize(("rule", "was", "becomes"), BROKEN, ids=lambda text: text[:40])
def test_each_rule_finds_what_breaks_it(rule: str, was: str, becomes: str) -> None:
    """And only the rule that is meant."""
    assert was in TEXT
    assert _broken_rules(TEXT.replace(was, becomes)) == {rule}


def test_every_rule_was_seen_to_fail() -> None:
    """A rule that cannot fail protects nothing."""
    assert {rule.__name__ for rule in dockerfile.RULES} == {rule for rule, _, _ in BROKEN}


@pytest.mark.parametrize("source", Dockerfile.of(TEXT).sources)
def test_what_the_recipe_takes_is_there(source: str) -> None:
    """In the repository, and behind .dockerignore."""
    path = REPOSITORY / source
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    assert [file for file in files if IGNORE.lets_in(file.relative_to(REPOSITORY).as_posix())]


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".local/whatsapp-qr.db",
        ".venv/bin/python",
        "id_rsa",
        "requirements.lock.orig",
        "deploy/compose/secrets/api_keys",
        "deploy/Dockerfile",
        "docs/amqp.md",
        "tests/conftest.py",
        "schemas/node_modules/x/index.js",
        "contracts/examples/echo_bot.py",
        "contracts/whatsapp_qr_contracts/__pycache__/message.cpython-311.pyc",
        "service/.env",
        "service/ingress/.npmrc",
        "service/__pycache__/cli.cpython-311.pyc",
        "service/stray.pyc",
    ],
)
def test_nothing_else_gets_in(path: str) -> None:
    """No history, secret, test, data, nor what an earlier run left behind."""
    assert not IGNORE.lets_in(path)


def test_the_context_is_what_was_meant() -> None:
    """A new file beside these stays outside until somebody lets it in."""
    context = IGNORE.context(REPOSITORY)
    tops = {"/".join(path.split("/")[: 2 if path.startswith(("contracts/", "schemas/")) else 1]) for path in context}
    assert tops == {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.lock",
        "requirements-dev.lock",
        "contracts/pyproject.toml",
        "contracts/README.md",
        "contracts/whatsapp_qr_contracts",
        "schemas/asyncapi.yaml",
        "service",
    }


@pytest.mark.parametrize("project", PROJECTS)
def test_the_context_makes_the_same_package(project: str, tmp_path: Path) -> None:
    """Nothing that belongs into the package is kept out: migrations, pages, the link to the AMQP description."""
    context = tmp_path / "context"
    for path in IGNORE.context(REPOSITORY):
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        copyfile(REPOSITORY / path, context / path)
    assert _packed(context / project, tmp_path / "filtered") == _packed(REPOSITORY / project, tmp_path / "whole")


def _packed(project: Path, target: Path) -> dict[str, int]:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=project, capture_output=True, check=True)
    [wheel] = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        files = {file.filename: file.CRC for file in packed.infolist() if not file.filename.endswith(".pyc")}
    assert len(files) > 5
    return files

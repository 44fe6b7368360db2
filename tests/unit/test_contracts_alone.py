"""The contracts stand alone: their wheel, in an environment that has nothing but what the wheel asks for."""

import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CONTRACTS = Path(__file__).parents[2] / "contracts"

USE_ALL = """
import importlib, pkgutil, sys
import whatsapp_qr_contracts as contracts
for module in pkgutil.iter_modules(contracts.__path__):
    if module.name != "client":
        importlib.import_module(f"whatsapp_qr_contracts.{module.name}")
from whatsapp_qr_contracts.commands import SendMessage
print(SendMessage.model_validate(SendMessage.example()).wire().decode())
try:
    import whatsapp_qr_contracts.client
except ModuleNotFoundError as error:
    print("client needs", error.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=CONTRACTS,
        capture_output=True,
        check=True,
    )
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment with the wheel and what it requires, installed without a network."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)  # a pure wheel is installed by unpacking it
    [described] = metadata.distributions(name="whatsapp-qr-contracts", path=[str(packages)])
    for name in _needed(described.requires or [], set()):
        for top in {file.parts[0] for file in metadata.distribution(name).files or ()} - {"..", "__pycache__"}:
            found = Path(str(metadata.distribution(name).locate_file(top)))
            (packages / top).symlink_to(found, target_is_directory=found.is_dir())
    return folder / "bin" / "python"


def _needed(requirements: list[str], seen: set[str]) -> Iterator[str]:
    for text in requirements:
        wanted = Requirement(text)
        if wanted.name in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(wanted.name)
        yield wanted.name
        yield from _needed(metadata.requires(wanted.name) or [], seen)


def test_contracts_work_in_an_empty_environment(python: Path) -> None:
    """With pydantic alone, and what that needs; the client says which package it misses."""
    done = subprocess.run([python, "-I", "-c", USE_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    message, missing, modules = done.stdout.splitlines()
    assert message.startswith('{"chatbotId":"6f9619ff')
    assert missing == "client needs aio_pika"
    assert "pydantic" in modules.split()
    assert not {"service", "faststream", "aio_pika", "sqlalchemy", "sqlmodel", "fastapi", "httpx"} & set(
        modules.split()
    )


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Typed, with a version of its own, the client's library as an extra, and nothing but its own package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [told] = [name for name in names if name.endswith("dist-info/METADATA")]
        text = archive.read(told).decode()
    assert "whatsapp_qr_contracts/py.typed" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"whatsapp_qr_contracts"}
    assert f"Version: {metadata.version('whatsapp-qr-contracts')}" in text
    assert "Requires-Dist: aio-pika<11,>=9.5; extra == 'client'" in text

"""The bill of materials lists what is in the image: each locked package with its hashes, and what it says of itself."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy import sbom
from tests.servers import REPOSITORY

BILL = sbom.bill()
COMPONENTS: dict[str, dict[str, Any]] = {component["name"]: component for component in BILL["components"]}
OWN = "whatsapp-qr-contracts"
# Packages for another system than the one the tests run on: nothing is installed that could say its licence.
ELSEWHERE = {"colorama"}


def _locked() -> Iterator[tuple[str, str, set[str]]]:
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=\S)", text):
        name, _, rest = entry.partition("==")
        yield (
            name.partition("[")[0],
            re.split(r"[\s;]", rest, maxsplit=1)[0],
            set(re.findall(r"sha256:([0-9a-f]{64})", rest)),
        )


LOCKED = {name: (version, hashes) for name, version, hashes in _locked()}


def test_every_locked_package_is_listed() -> None:
    """And nothing else, but the contracts, which are built with the service."""
    assert len(LOCKED) > 50
    assert set(COMPONENTS) == {*LOCKED, OWN}
    assert BILL["metadata"]["component"]["name"] == "whatsapp-qr"
    assert BILL["metadata"]["component"]["version"]


@pytest.mark.parametrize("name", LOCKED)
def test_a_package_is_listed_with_its_version_and_hashes(name: str) -> None:
    """Those that the image is built with, so that a scanner looks for the right thing."""
    version, hashes = LOCKED[name]
    component = COMPONENTS[name]
    listed = {one["content"] for reference in component["externalReferences"] for one in reference.get("hashes", [])}
    assert component["version"] == version
    assert component["purl"] == f"pkg:pypi/{name}@{version}"
    assert listed == hashes
    assert hashes


def test_licences_are_known() -> None:
    """Of whatever is installed here, each as a name or an expression, never as a text."""
    silent = {name for name, component in COMPONENTS.items() if not component.get("licenses")}
    assert silent <= ELSEWHERE
    assert COMPONENTS[OWN]["licenses"] == [{"expression": "Apache-2.0"}]
    assert {"license": {"name": "MIT License"}} in COMPONENTS["aiosqlite"]["licenses"]


def test_it_is_valid_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the strict schema of CycloneDX; written twice, byte for byte."""
    written = []
    for name in ("one.json", "two.json"):
        monkeypatch.setattr(sys, "argv", ["sbom.py", str(tmp_path / "dist" / name)])
        assert sbom.main() == 0
        written.append((tmp_path / "dist" / name).read_text(encoding="utf-8"))
    assert written[0] == written[1]
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(written[0]) is None
    broken = json.loads(written[0])
    broken["components"][0]["licenses"] = ["MIT"]
    assert validator.validate_str(json.dumps(broken)) is not None


def test_a_generator_that_fails_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bill is written that lacks what could not be read."""
    monkeypatch.setattr(sbom, "_LOCKED", "requirements no-such.lock")
    with pytest.raises(RuntimeError, match=r"no-such\.lock"):
        sbom.bill()

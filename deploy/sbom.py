"""Writes the bill of materials: what the image's Python environment is made of, as CycloneDX JSON.

python deploy/sbom.py [FILE]     (dist/sbom.json)

Packages, versions and hashes are those of requirements.lock; a licence is what the package itself says where it is
installed: so this runs in the environment of `make setup`. Two runs write the same bytes.
"""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
_OWN = ("whatsapp-qr-contracts",)  # in the image, though not in the lock
_LOCKED = (
    "requirements requirements.lock --pyproject=pyproject.toml --mc-type=application "
    "--spec-version=1.6 --output-format=JSON --output-reproducible --no-validate --output-file=-"
)
_LONGEST_NAME = 60  # some packages hold the whole text of their licence where its name belongs


def main() -> int:
    """Write the bill; return the exit status."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "dist" / "sbom.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def bill() -> dict[str, Any]:
    """Return the bill of materials.

    Raises:
        RuntimeError: the generator failed.
    """
    run = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-m", "cyclonedx_py", *_LOCKED.split()], cwd=REPOSITORY, capture_output=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"cyclonedx-py failed: {run.stderr.decode()}")
    generated: dict[str, Any] = json.loads(run.stdout)
    components = generated["components"]
    components += [
        {"bom-ref": name, "name": name, "version": metadata.version(name), "type": "library"} for name in _OWN
    ]
    for component in components:
        component.update(_described(component["name"]))
    return generated


def _described(name: str) -> dict[str, Any]:
    """Return what an installed package says of itself; of one for another system there is nothing to read."""
    try:
        own: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return {"description": "not for the system on which this bill was written"}
    said: dict[str, Any] = {"description": own.get("Summary"), "licenses": _licences(own)}
    return {word: value for word, value in said.items() if value}


def _licences(own: Any) -> list[dict[str, Any]]:
    if expression := own.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = [line for line in own.get_all("Classifier", []) if line.startswith("License ::")]
    names = [line.rpartition(" :: ")[2] for line in classifiers] or [own.get("License") or ""]
    return [{"license": {"name": name}} for name in names if 0 < len(name) <= _LONGEST_NAME]


if __name__ == "__main__":
    sys.exit(main())

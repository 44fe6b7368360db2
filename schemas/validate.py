"""Validates the documents of this folder with the official tools; exit status 1 where one has anything to say.

python schemas/validate.py
"""

import subprocess
import sys
from pathlib import Path

import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from schemas import node

FOLDER = Path(__file__).parent
OPENAPI = ("openapi.yaml", "gateway.openapi.yaml")


def main() -> int:
    """Validate all documents; return the exit status."""
    faults = [fault for name in OPENAPI for fault in openapi_faults(FOLDER / name)]
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if asyncapi_status(FOLDER / "asyncapi.yaml") or faults else 0


def openapi_faults(path: Path) -> list[str]:
    """Return what is wrong with an OpenAPI document."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not str(document.get("openapi", "")).startswith("3.1."):
        return [f"{path.name}: this is not OpenAPI 3.1"]
    errors = OpenAPIV31SpecValidator(document).iter_errors()
    return [f"{path.name}: {'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def asyncapi_status(path: Path) -> int:
    """Return the exit status of the AsyncAPI project's own parser, which says by itself what is wrong.

    Raises:
        RuntimeError, subprocess.CalledProcessError: it cannot be installed.
    """
    node.install(FOLDER)
    return subprocess.run([node.node(), FOLDER / "validate.mjs", path], check=False).returncode  # noqa: S603  # ours


if __name__ == "__main__":
    sys.exit(main())

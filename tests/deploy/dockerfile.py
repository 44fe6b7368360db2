"""Reads a Dockerfile and a .dockerignore, and knows this project's rules for them. Each rule returns its faults."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PINNED = re.compile(r"[^:@\s]+:[^:@\s]+@sha256:[0-9a-f]{64}")
LABELS = ("title", "description", "licenses", "version", "revision", "source")


class Instruction(NamedTuple):
    word: str
    text: str

    @property
    def mounts(self) -> list[dict[str, str]]:
        """The options of each --mount of a RUN."""
        found = re.findall(r"--mount=(\S+)", self.text)
        return [dict(option.partition("=")[::2] for option in mount.split(",")) for mount in found]

    @property
    def copied(self) -> list[str]:
        """What a COPY takes from the context; nothing where it takes it from another stage."""
        if self.word != "COPY" or "--from=" in self.text:
            return []
        return [word for word in self.text.split() if not word.startswith("--")][:-1]


@dataclass(frozen=True)
class Dockerfile:
    instructions: tuple[Instruction, ...]

    @classmethod
    def of(cls, text: str) -> "Dockerfile":
        lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        joined = re.sub(r"\\\n\s*", " ", lines)
        parted = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
        return cls(tuple(Instruction(word.upper(), text) for word, text in parted))

    def all(self, *words: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.word in words]

    @property
    def final(self) -> "Dockerfile":
        """The last stage alone."""
        last = max(place for place, one in enumerate(self.instructions) if one.word == "FROM")
        return Dockerfile(self.instructions[last:])

    @property
    def sources(self) -> list[str]:
        """What is taken from the context."""
        bound = [
            mount["source"]
            for run in self.all("RUN")
            for mount in run.mounts
            if mount.get("type") == "bind" and "from" not in mount
        ]
        return bound + [source for copy in self.all("COPY") for source in copy.copied]


def bases_are_pinned(file: Dockerfile) -> Iterator[str]:
    """Every base comes from an argument whose default has a tag for people and a digest for machines."""
    first = min(place for place, one in enumerate(file.instructions) if one.word == "FROM")
    arguments = dict(one.text.partition("=")[::2] for one in file.instructions[:first] if one.word == "ARG")
    for base in (one.text.split()[0] for one in file.all("FROM")):
        name = re.fullmatch(r"\$\{(\w+)\}", base)
        image = arguments.get(name[1], "") if name else base
        if not name or not PINNED.fullmatch(image) or ":latest@" in image:
            yield f"{base} is {image!r}: no image by digest that an argument replaces"


def the_account_is_a_number(file: Dockerfile) -> Iterator[str]:
    """Kubernetes cannot know that a name is not root."""
    users = [one.text for one in file.final.all("USER")]
    if users[-1:] != ["10001:10001"]:
        yield f"the last USER is {users[-1:]}"


def nothing_is_added_from_elsewhere(file: Dockerfile) -> Iterator[str]:
    """ADD unpacks and downloads, curl and wget download: without a hash."""
    yield from (f"ADD {one.text}" for one in file.all("ADD"))
    yield from (f"RUN {one.text}" for one in file.all("RUN") if re.search(r"\b(curl|wget|apt-get install)\b", one.text))


def installed_by_hash(file: Dockerfile) -> Iterator[str]:
    """Whatever comes from a registry is known by its hash, the build backend included; only our own wheels are not."""
    for run in file.all("RUN"):
        for command in re.findall(r"uv (?:pip install|build)[^&|;]*", run.text):
            if "--require-hashes" not in command and not ("--no-index" in command and "--no-deps" in command):
                yield command


def mounts_are_absolute(file: Dockerfile) -> Iterator[str]:
    """A relative target breaks buildah 1.28."""
    for run in file.all("RUN"):
        yield from (mount["target"] for mount in run.mounts if not mount.get("target", "/").startswith("/"))


def the_command_is_the_process(file: Dockerfile) -> Iterator[str]:
    """No shell stands between the runtime and the process, which would not pass a signal on."""
    entrypoints = [one.text for one in file.final.all("ENTRYPOINT")]
    if len(entrypoints) != 1 or not entrypoints[0].startswith("[") or json.loads(entrypoints[0]) != ["whatsapp-qr"]:
        yield f"ENTRYPOINT {entrypoints}"
    if [one.text for one in file.final.all("STOPSIGNAL")] != ["SIGTERM"]:
        yield "STOPSIGNAL is not SIGTERM"


def the_runtime_has_no_tools(file: Dockerfile) -> Iterator[str]:
    """The last stage takes one folder from the stage that builds, and neither uv nor sources."""
    copies = [one.text for one in file.final.all("COPY")]
    if copies != ["--from=build /opt/whatsapp-qr /opt/whatsapp-qr"]:
        yield f"COPY {copies}"
    yield from (one.text for one in file.final.all("RUN") if re.search(r"\b(uv|pip install|apt-get)\b", one.text))


def no_secret_is_baked_in(file: Dockerfile) -> Iterator[str]:
    """An argument and a variable can be read in the image by whoever has it."""
    for one in file.all("ARG", "ENV"):
        yield from re.findall(r"\w*(?:PASSWORD|SECRET|TOKEN|_KEY|_URL)\w*(?==|$)", one.text)


def it_says_what_it_is(file: Dockerfile) -> Iterator[str]:
    """With the labels of the OCI, and without a buffer between the log and its reader."""
    said = " ".join(one.text for one in file.final.all("LABEL"))
    yield from (name for name in LABELS if f"org.opencontainers.image.{name}=" not in said)
    variables = " ".join(one.text for one in file.final.all("ENV"))
    yield from (name for name in ("PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1") if name not in variables)


RULES: tuple[Callable[[Dockerfile], Iterator[str]], ...] = (
    bases_are_pinned,
    the_account_is_a_number,
    nothing_is_added_from_elsewhere,
    installed_by_hash,
    mounts_are_absolute,
    the_command_is_the_process,
    the_runtime_has_no_tools,
    no_secret_is_baked_in,
    it_says_what_it_is,
)


class Ignore:
    """A .dockerignore: the last line that matches a path or a folder above it decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self._lines = [(line.startswith("!"), _expression(line.lstrip("!").strip("/"))) for line in lines]

    def lets_in(self, path: str) -> bool:
        parts = path.split("/")
        ways = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        allowed = True
        for again, expression in self._lines:
            if any(expression.fullmatch(way) for way in ways):
                allowed = again
        return allowed

    def context(self, folder: Path) -> list[str]:
        """The files of a folder that a build sees."""
        files = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
        return sorted(path for file in files if self.lets_in(path := file.relative_to(folder).as_posix()))


def _expression(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern)
    for glob, expression in ((r"\*\*/", "(?:.*/)?"), (r"\*\*", ".*"), (r"\*", "[^/]*"), (r"\?", "[^/]")):
        escaped = escaped.replace(glob, expression)
    return re.compile(escaped)

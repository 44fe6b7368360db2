"""Whoever runs a command of the runbook has a broker user that may: by table; and what asks for more is noticed."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.allowed import ALLOWED, COMMANDS, EVERYTHING, GATEWAY, JOBS, NOTHING
from tests.deploy import compose
from tests.deploy.monitored import PAGES, command_lines

# What a command declares on the broker, and where it publishes. To see that something exists needs no right.
NEEDS = {
    "dead-letters list": (NOTHING, NOTHING),
    "dead-letters show": (NOTHING, NOTHING),
    "dead-letters discard": (NOTHING, NOTHING),
    "dead-letters replay": (NOTHING, {COMMANDS, GATEWAY, JOBS}),
    "messages cancel": (NOTHING, {COMMANDS}),
    "messages retry": (NOTHING, {COMMANDS}),
    "topology check": (NOTHING, NOTHING),
    "topology permissions": (NOTHING, NOTHING),
    "topology apply": (EVERYTHING, EVERYTHING),
}
# Who runs what the pages name without saying where: on Kubernetes, and in compose.
ANYWHERE = ("session-consumer", "operator")
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of ours on a page, with each role that may have to run it."""
    for line in command_lines(text, "whatsapp-qr"):
        yield from ((role, line.removeprefix("whatsapp-qr ")) for role in ANYWHERE)
    for line in command_lines(text, "kubectl"):
        for role, command in re.findall(r"deploy/whatsapp-qr-([\w-]+) -- whatsapp-qr (.+)", line):
            yield role, command
    for line in command_lines(text, "docker"):
        for role, command in re.findall(r"^docker compose run --rm ([\w-]+)(.*)", line):
            yield role, command.strip() or " ".join(compose.ONE_SHOTS[role])


def _refused(text: str) -> list[str]:
    """Return what a page asks of a user that may not."""
    found = []
    for role, command in _runs(text):
        declares, publishes = NEEDS[" ".join(shlex.split(command)[:2])]
        configured, written, _ = ALLOWED[f"whatsapp-qr-{role}"]
        if not (declares <= configured and publishes <= written):
            found.append(f"whatsapp-qr-{role} may not: {command}")
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_asks_nothing_that_rabbitmq_refuses(name: str) -> None:
    """Each command is known, and its user has the rights that it needs (tests/integration tries those on a broker)."""
    assert _refused(TEXTS[name]) == []


def test_the_pages_use_the_table() -> None:
    """Commands are found in blocks, in sentences and in the index' table, for each way to run them."""
    runs = {run for text in TEXTS.values() for run in _runs(text)}
    assert {role for role, _ in runs} == {*ANYWHERE, "topology"}
    assert {" ".join(shlex.split(command)[:2]) for _, command in runs} == set(NEEDS)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("whatsapp-qr topology apply", "whatsapp-qr-session-consumer may not: topology apply"),
        ("docker compose run --rm operator topology apply", "whatsapp-qr-operator may not: topology apply"),
        (
            "kubectl exec deploy/whatsapp-qr-outbound-consumer -- whatsapp-qr messages retry ID",
            "whatsapp-qr-outbound-consumer may not: messages retry ID",
        ),
    ],
)
def test_what_would_be_refused_is_noticed(line: str, fault: str) -> None:
    """In a sentence and in a block."""
    assert fault in _refused(f"Run `{line}`.")
    assert fault in _refused(f"```sh\n{line}\n```\n")


def test_compose_has_the_services_that_the_index_names() -> None:
    """Each `docker compose` line of the table is about one of its services."""
    lines = command_lines(TEXTS["README"], "docker compose")
    named = {re.sub(r"^docker compose \w+(?: --\S+)* ?", "", line).partition(" ")[0] for line in lines} - {""}
    assert named == {"operator", "topology", "rabbitmq", "postgres", "outbound-consumer"}
    assert named <= set(compose.read()["services"])


def test_a_command_that_nobody_weighed_is_noticed() -> None:
    """A new one has to be put into the table first."""
    with pytest.raises(KeyError):
        _refused("Run `whatsapp-qr topology undo`.")

"""The runbook: a page for each alert, with commands that exist; and that a wrong one is noticed."""

import asyncio
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import typer

from deploy.monitoring import generate, known
from service import cli
from service.persistence import migrations
from tests.deploy.monitored import PAGES, REPOSITORY, alerts, blocks, command_lines, page_faults
from tests.servers import Broker, ServerError

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"
_USAGE_ERROR = typer.BadParameter.__bases__[0]
KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
RULES = generate.rules()
METRICS = known.known(RULES)
INDEX = (PAGES / "README.md").read_text(encoding="utf-8")
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
ALERTS = {name: text for name, text in TEXTS.items() if name != "README"}
"""The pages of the alerts."""


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    """The pages are those of the alerts, and the index lists each once, with its severity."""
    assert set(ALERTS) == set(alerts(RULES))
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", INDEX, flags=re.MULTILINE)
    assert {(name, name, alert["labels"]["severity"]) for name, alert in alerts(RULES).items()} == set(listed)
    assert len(listed) == len(alerts(RULES))


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_a_page_says_what_it_has_to(name: str) -> None:
    """Each page has all sections, queries about metrics that exist, links that lead somewhere, names of the code."""
    assert page_faults(name, ALERTS[name], METRICS) == []


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("## What to do", "## To do", "the sections are"),
        ("sum by (reason)", "sum by (reason", "unclosed"),
        ("whatsapp_qr_dead_letters_total", "whatsapp_qr_deaths_total", "there is no metric"),
        ("`handler_failed`", "`handler_fell`", "nobody says handler_fell"),
        ("(WhatsappQrUnroutable.md)", "(Unroutable.md)", "Unroutable.md does not exist"),
        ("(WhatsappQrUnroutable.md)", "(README.md#nowhere)", "README.md#nowhere does not exist"),
        ("# WhatsappQrDeadLetters", "# Dead letters", "is not its title"),
        ("kubectl ", "kube ", "does not say how to look"),
        ("kubectl logs -l app", "kubectl logs deploy/app", "shows one pod of several"),
    ],
)
def test_a_wrong_page_is_noticed(right: str, wrong: str, fault: str) -> None:
    """A page without a section, with an unknown metric, link or name, or with a query that does not parse, is told."""
    name = "WhatsappQrDeadLetters"
    assert right in ALERTS[name]
    assert fault in "\n".join(page_faults(name, ALERTS[name].replace(right, wrong), METRICS))


def _understood(line: str) -> bool:
    """Say whether `whatsapp-qr` has this command with these options."""
    arguments = shlex.split(line.rsplit(" -- ", maxsplit=1)[-1])[1:]
    command: Any = typer.main.get_command(cli.app)
    context = None
    try:
        while hasattr(command, "commands"):
            context = command.make_context(command.name, arguments[:1], parent=context)
            _, command, arguments = command.resolve_command(context, arguments)
        command.make_context(command.name, arguments, parent=context)
    except _USAGE_ERROR:
        return False
    return True


def _service_lines() -> list[str]:
    lines = [line for text in TEXTS.values() for line in command_lines(text, "whatsapp-qr")]
    inside = [line for text in TEXTS.values() for line in command_lines(text, "kubectl") if "-- whatsapp-qr" in line]
    return sorted({*lines, *inside})


def test_the_services_commands_exist() -> None:
    """Each `whatsapp-qr` line of the runbook is a command that the program understands."""
    assert len(_service_lines()) > 10
    assert [line for line in _service_lines() if not _understood(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "whatsapp-qr dead-letters revive ID",
        "whatsapp-qr dead-letters list --colour red",
        "whatsapp-qr dead-letters show",
        "whatsapp-qr letters list",
        "whatsapp-qr messages retry",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    """A command, an option or an argument that the program does not have, or misses, is told."""
    assert not _understood(line)


# What kubectl says of a line that it would carry out.
_ANSWERS = ("was refused", "connection refused", "no current context is set")


def _kubectl_takes(line: str, folder: Path) -> bool:
    """Say whether kubectl understands a line: where no cluster answers, it speaks of that only if it does."""
    words = shlex.split(line.partition(" | ")[0])[1:]
    at = words.index("--") if "--" in words else len(words)
    command = [KUBECTL, *words[:at], "--server=http://127.0.0.1:1", f"--cache-dir={folder}", *words[at:]]
    environment = {"HOME": str(folder), "KUBECONFIG": ""}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    return any(answer in run.stderr for answer in _ANSWERS)


def _kubectl_lines() -> list[str]:
    return sorted({line for text in TEXTS.values() for line in command_lines(text, "kubectl") if line.count(" ") > 1})


def _unknown(line: str) -> list[str]:
    """Return what a kubectl line names that is not deployed."""
    roles = {command.name for command in typer.main.get_command(cli.app).commands.values()}  # type: ignore[attr-defined]
    found = [name for name in re.findall(r"deploy/whatsapp-qr-([\w-]+)", line) if name not in roles]
    found += [name for name in re.findall(r"component=([\w-]+)", line) if name not in roles]
    written = "".join(path.read_text(encoding="utf-8") for path in KUBERNETES.rglob("*.yaml"))
    named = re.findall(r"(?:job/|job )(whatsapp-qr-[\w-]+)", line)
    named += re.findall(r"exec (whatsapp-qr-\w+)(?:-server)?-\d", line)  # a pod of an operator's cluster
    return found + [name for name in named if not re.search(rf"(?:name|value): {name}(?![\w-])", written)]


def test_the_clusters_commands_exist(tmp_path: Path) -> None:
    """Each `kubectl` line of the runbook is one that kubectl would carry out, and names what is deployed."""
    assert len(_kubectl_lines()) > 10
    assert [line for line in _kubectl_lines() if not _kubectl_takes(line, tmp_path)] == []
    assert [name for line in _kubectl_lines() for name in _unknown(line)] == []


@pytest.mark.parametrize(
    "line", ["kubectl get pods --colour", "kubectl gett pods", "kubectl exec deploy/x", "kubectl apply -k deploy/x"]
)
def test_a_wrong_kubectl_line_is_noticed(line: str, tmp_path: Path) -> None:
    """A verb, an option or a folder that does not exist, or a command that is missing, is told."""
    assert not _kubectl_takes(line, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "logs deploy/whatsapp-qr-sender",
        "logs job/whatsapp-qr-migration",
        "logs -l a/component=sender",
        "exec whatsapp-qr-broker-server-0 -- rabbitmqctl status",
        "exec whatsapp-qr-database-1 -- psql",
    ],
)
def test_a_wrong_name_is_noticed(words: str) -> None:
    """A deployment, a job, a component or a pod that does not exist is told."""
    assert _unknown(f"kubectl {words}")


async def test_the_sql_can_be_run_and_only_reads(postgres_database: str) -> None:
    """Each SQL statement of the runbook runs on the present schema, in a transaction that cannot write."""
    await asyncio.to_thread(migrations.upgrade, postgres_database)
    statements = [statement for text in TEXTS.values() for statement in blocks(text, "sql")]
    assert statements
    connection = await asyncpg.connect(postgres_database.replace("+asyncpg", ""))
    try:
        async with connection.transaction(readonly=True):
            for statement in statements:
                await connection.fetch(statement)
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.fetch(statements[0].replace("FROM ", "FROM no_"))
    finally:
        await connection.close()


async def test_the_brokers_commands_exist(shared_broker: Broker) -> None:
    """Each `rabbitmqctl` line of the runbook runs on a real node."""
    lines = {line for text in ALERTS.values() for line in command_lines(text, "rabbitmqctl")}
    assert lines
    for line in sorted(lines):
        await shared_broker.ctl(*shlex.split(line)[1:])
    with pytest.raises(ServerError):
        await shared_broker.ctl("list_queues", "--vhost", "/", "name", "colour")

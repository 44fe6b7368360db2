"""What prepare.py makes is kept, hangs together, and lets in whom it should and nobody else."""

import json
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import AMQPConnectionError

from deploy.compose import prepare
from service.operating import rights
from service.settings import Settings
from tests.deploy import compose
from tests.servers import Broker

STACK = compose.read()
RIGHTS = json.loads(prepare.RIGHTS.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a clone has it, after prepare.py."""
    shutil.copy(compose.FOLDER / ".env.example", tmp_path)
    prepare.prepare(tmp_path, RIGHTS)
    return tmp_path


def _kept(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (folder / "secrets").iterdir()}


def test_there_is_a_file_for_each_secret(folder: Path) -> None:
    """Whatever the stack mounts; in a folder for nobody else, readable to the accounts in the containers."""
    assert set(STACK["secrets"]) <= set(_kept(folder))
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / "secrets").iterdir()} == {0o444}
    assert (folder / ".env").read_text() == (folder / ".env.example").read_text()


def test_what_exists_is_kept(folder: Path) -> None:
    """A second run changes no secret and no setting, though it salts the passwords of the broker anew."""
    (folder / ".env").write_text("HTTP_PORT=9000\n")
    before = _kept(folder)
    prepare.prepare(folder, RIGHTS)
    after = _kept(folder)
    assert before.pop("broker_definitions") != after.pop("broker_definitions")
    assert after == before
    assert (folder / ".env").read_text() == "HTTP_PORT=9000\n"


def test_a_secret_that_was_deleted_is_made_anew(folder: Path) -> None:
    """With all that is made of it, and nothing else."""
    before = _kept(folder)
    for name in ("api_keys", "database_url"):
        (folder / "secrets" / name).unlink()
    prepare.prepare(folder, RIGHTS)
    after = _kept(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"api_keys", "database_url", "postgres_passwords", "broker_definitions"}


@pytest.mark.parametrize("written", ["AMQP_PORT=5673", "AMQP_PORT='5673'", "AMQP_PORT=1\nAMQP_PORT=5673 # free"])
def test_clients_find_the_broker_where_it_is_published(
    written: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the port of .env, unless a variable says another; under the password that they had. Containers do not care."""
    before = _kept(folder)
    (folder / ".env").write_text(f"{written}\n")
    for port in ("5673", "5674", "5672"):
        if port != "5673":
            monkeypatch.setenv("AMQP_PORT", port if port == "5674" else "")
        prepare.prepare(folder, RIGHTS)
        after = _kept(folder)
        for user in ("ai_worker", "event_subscriber"):
            assert after[f"amqp_url_{user}"] == before[f"amqp_url_{user}"].replace(":5672/", f":{port}/")
        assert after["amqp_url_ingress"] == before["amqp_url_ingress"]


def test_what_is_written_by_hand_stays(folder: Path) -> None:
    """A broker elsewhere is not moved to this machine."""
    elsewhere = folder / "secrets" / "amqp_url_ai_worker"
    elsewhere.unlink()
    elsewhere.write_text("amqp://ai-worker:secret@broker.example:5679/")
    prepare.prepare(folder, RIGHTS)
    assert elsewhere.read_text() == "amqp://ai-worker:secret@broker.example:5679/"


@pytest.mark.parametrize(
    "name", [name for name, service in STACK["services"].items() if "SECRETS_DIR" in service.get("environment", {})]
)
def test_every_container_reads_its_settings(
    name: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its files and its environment: the process would start with them."""
    service, mounted = STACK["services"][name], tmp_path_factory.mktemp("run")
    for one in service["secrets"]:
        shutil.copy(folder / "secrets" / one["source"], mounted / one["target"])
    for variable, value in {**service["environment"], "SECRETS_DIR": str(mounted)}.items():
        monkeypatch.setenv(variable, str(value))
    settings = Settings()
    if name in compose.ROLES:
        assert settings.amqp_url.startswith(f"amqp://whatsapp-qr-{name}:")
        assert "@postgres:5432/" in settings.database_url
        assert not settings.declare_topology
    assert bool(settings.api_keys) == (name == "ingress")
    assert bool(settings.webhook_secret) == (name in {"ingress", "simulator"})


def test_the_users_are_those_of_the_topology(folder: Path) -> None:
    """One for each process, and the administrator; each may do what `rights` says."""
    definitions = json.loads(_kept(folder)["broker_definitions"])
    expected = {one.user for one in rights.users()} | {prepare.ADMINISTRATOR}
    assert {user["name"] for user in definitions["users"]} == expected
    assert all(user["password_hash"] for user in definitions["users"])
    assert definitions["permissions"][:-1] == RIGHTS["permissions"]


@pytest.fixture
async def node() -> AsyncIterator[Broker]:
    broker = Broker()
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


async def test_a_real_broker_lets_them_in(node: Broker, folder: Path) -> None:
    """Each with the password in its AMQP_URL, and not with another's."""
    kept = _kept(folder)
    await node.ctl("eval", _imported(json.loads(kept["broker_definitions"])))
    urls = {name: url for name, url in kept.items() if name.startswith(prepare.AMQP_URL)}
    assert len(urls) == len(RIGHTS["users"])
    for url in urls.values():
        user, password = url.removeprefix("amqp://").partition("@")[0].split(":")
        connection = await aio_pika.connect(f"amqp://{user}:{password}@127.0.0.1:{node.port}/")
        await connection.close()
        with pytest.raises(AMQPConnectionError):
            await aio_pika.connect(f"amqp://{user}:{kept['api_keys']}@127.0.0.1:{node.port}/")


def _imported(definitions: dict[str, Any]) -> str:
    text = json.dumps(json.dumps(definitions))
    return f"ok = rabbit_definitions:import_raw(<<{text}>>)."

"""The image is really built and really run: read-only, without rights, as its account. Opt-in: make imagetest."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.building import ACCOUNT, Image
from tests.servers import free_ports

pytestmark = pytest.mark.image

LABELS = {"VERSION": "1.2.3", "REVISION": "0123abc", "SOURCE": "https://example.com/whatsapp-qr"}
CONSUMERS = ("session-consumer", "conversation-consumer", "outbound-consumer")
TOOLS = ("uv", "uvx", "pip", "pip3", "gcc", "make", "curl", "wget", "git")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    built = Image()
    try:
        built.build(**LABELS)
        yield built
    finally:
        built.close()


def _output(image: Image, *words: str, **settings: str) -> str:
    ended = subprocess.run(
        image.command(*words, settings=settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_it_says_what_it_is(image: Image) -> None:
    """Account, command, signal and labels are in its configuration, and no secret is."""
    configuration = image.configuration
    assert configuration["User"] == f"{ACCOUNT}:{ACCOUNT}"
    assert configuration["Entrypoint"] == ["whatsapp-qr"]
    assert configuration["StopSignal"] == "SIGTERM"
    assert "Cmd" not in configuration
    labels = configuration["Labels"]
    assert {labels[f"org.opencontainers.image.{name.lower()}"] for name in LABELS} == set(LABELS.values())
    assert not [one for one in configuration["Env"] if "SECRET" in one or "KEY" in one]


def test_it_holds_what_runs_and_nothing_else(image: Image) -> None:
    """Both packages, not as links into a source folder, compiled; no tool, no source, no test."""
    [packages] = (image.files / "opt" / "whatsapp-qr" / "lib").glob("python3*/site-packages")
    modules = sorted((packages / "service").rglob("*.py"))
    assert len(modules) > 50
    assert [
        module for module in modules if not list((module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"))
    ] == []
    assert (packages / "service" / "ingress" / "asyncapi" / "asyncapi.yaml").is_file()
    assert (packages / "whatsapp_qr_contracts" / "message.py").is_file()
    assert list(packages.glob("*whatsapp*.pth")) == []
    folders = [image.files / folder for folder in ("usr/bin", "usr/local/bin", "bin", "opt/whatsapp-qr/bin")]
    assert [folder / tool for folder in folders for tool in TOOLS if (folder / tool).exists()] == []
    assert not (image.files / "source").exists()
    assert list((image.files / "app").iterdir()) == []


def test_its_account_owns_nothing(image: Image) -> None:
    """Whoever takes the process over cannot change what it runs."""
    for given in (f"-uid {ACCOUNT}", f"-gid {ACCOUNT}", "-perm -002 ! -type l ! -perm -1000"):
        find = ["find", str(image.files), "-xdev", *given.split()]
        assert subprocess.run(find, capture_output=True, text=True, check=True).stdout == ""


def test_it_says_how_it_is_used(image: Image) -> None:
    """Without an argument too: every role is listed."""
    shown = _output(image, "--help")
    for command in ("ingress", *CONSUMERS, "migrate", "topology"):
        assert command in shown


@pytest.fixture
def secrets(image: Image, clean_broker: str, postgres_database: str) -> Iterator[Path]:
    """A folder of files, as a cluster mounts it: the broker, the database, a key."""
    folder = image.files.parent / "secrets"
    folder.mkdir()
    files = {"AMQP_URL": clean_broker, "DATABASE_URL": postgres_database, "API_KEYS": "0123456789abcdef0123"}
    for name, content in files.items():
        (folder / name).write_text(content)
    yield folder
    shutil.rmtree(folder)


async def test_every_role_works_in_it(image: Image, secrets: Path) -> None:
    """Migration and topology run once; then all four are alive and ready, and end with status 0 when told to."""
    common = {"SECRETS_DIR": "/run/secrets", "DECLARE_TOPOLOGY": "false"}
    for once in (("migrate",), ("topology", "apply")):
        command = image.command(*once, settings=common, secrets=secrets)
        ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    for role in ("ingress", *CONSUMERS):
        port, internal = free_ports(2)
        ports = (
            {"HTTP_PORT": str(port), "INTERNAL_PORT": str(internal)}
            if role == "ingress"
            else {"HEALTH_PORT": str(port)}
        )
        with image.running(role, settings=common | ports, secrets=secrets) as process:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                for path in ("/livez", "/readyz"):
                    while (status := await _status(client, path)) != 200:
                        assert process.alive(), process.log
                        assert status in {None, 503}
                        await asyncio.sleep(0.1)
            assert await asyncio.to_thread(process.stop, signal.SIGTERM) == 0, process.log


async def _status(client: httpx.AsyncClient, path: str) -> int | None:
    try:
        return (await client.get(path)).status_code
    except httpx.TransportError:
        return None

"""Real RabbitMQ and PostgreSQL servers for tests: containers where a Docker engine answers, else private nodes.

Ports lie below the range for outgoing connections, so that nothing takes the port of a server that is stopped for a
while; not even a client that, by chance, connects to itself.
"""

import asyncio
import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import asyncpg

REPOSITORY = Path(__file__).parents[1]
LOCAL = REPOSITORY / "deploy" / "local"
START_TIMEOUT = 90
STOP_TIMEOUT = 45
PROBE_TIMEOUT = 30

Probe = Callable[[int], Awaitable[bool]]


class ServerError(RuntimeError):
    """A test cannot get the server that it needs."""


_GIVEN: set[int] = set()  # whoever was given a port may not listen on it yet


def free_ports(count: int) -> list[int]:
    """Find that many ports in a row that nobody uses. Each of several test processes looks in a range of its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    while True:
        first = random.randrange(20_000 + worker * 3_000, 22_900 + worker * 3_000)
        ports = list(range(first, first + count))
        if not _GIVEN.intersection(ports) and all(_is_free(port) for port in ports):
            _GIVEN.update(ports)
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def speaks_amqp(port: int) -> bool:
    """Tell whether a broker answers the protocol header on that port."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"AMQP\x00\x00\x09\x01")
            answer = await reader.read(1)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except OSError:
        return False
    return answer == b"\x01"


async def speaks_postgres(port: int) -> bool:
    """Tell whether PostgreSQL takes a connection on that port."""
    try:
        connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", timeout=PROBE_TIMEOUT)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close()
    return True


class Server(Protocol):
    """Something that runs on a port and keeps its data from stop to start."""

    port: int

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def kill(self) -> None: ...
    async def run(self, *command: str) -> str: ...
    async def close(self) -> None: ...


class PrivateServer:
    """A server run by a script of deploy/local, with its data in a folder of its own."""

    def __init__(self, script: str, probe: Probe, *, ports: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="whatsapp-qr-"))
        self.folder.chmod(0o755)  # PostgreSQL may run as another user
        self.ports = free_ports(ports)
        self.port = self.ports[0]
        self._command = [str(LOCAL / script), str(self.folder / "server"), *map(str, self.ports)]
        self._probe = probe
        self._log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT
        while not await self._probe(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
                raise ServerError(f"{self._command[0]} did not start a server for the tests:\n{tail}")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop the server cleanly; nothing of it stays but its data."""
        if self._process is not None:
            self._process.terminate()
            await self._ended()

    async def kill(self) -> None:
        """End the script and everything it started as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._ended()

    async def _ended(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    async def run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(self.folder / "server" / command[0]),
            *command[1:],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise ServerError(f"{command[0]} failed: {output.decode()}")
        return output.decode()

    async def close(self) -> None:
        """Stop the server and forget its data."""
        try:
            await self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


class ContainerServer:
    """A server in a container, on a port of this machine that stays the same from stop to start."""

    def __init__(self, image: str, inner_port: int, probe: Probe, **environment: str) -> None:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 (slow, and seldom needed)

        self.port = free_ports(1)[0]
        self._probe = probe
        self._container: Any = DockerContainer(image).with_bind_ports(inner_port, self.port)
        for name, value in environment.items():
            self._container.with_env(name, value)
        self._created = False

    async def start(self) -> None:
        await asyncio.to_thread(self._container.get_wrapped_container().start if self._created else self._create)
        deadline = time.monotonic() + START_TIMEOUT
        while not await self._probe(self.port):
            if time.monotonic() > deadline:
                raise ServerError(f"{self._container.image} did not answer on port {self.port}")
            await asyncio.sleep(0.2)

    def _create(self) -> None:
        self._container.start()
        self._created = True

    async def stop(self) -> None:
        await asyncio.to_thread(self._container.get_wrapped_container().stop, timeout=STOP_TIMEOUT)

    async def kill(self) -> None:
        """End everything in the container as a power cut would."""
        container = self._container.get_wrapped_container()
        await asyncio.to_thread(container.kill)
        await asyncio.to_thread(container.wait)

    async def run(self, *command: str) -> str:
        status, output = await asyncio.to_thread(self._container.exec, list(command))
        if status:
            raise ServerError(f"{command[0]} failed: {output.decode()}")
        return str(output.decode())

    async def close(self) -> None:
        await asyncio.to_thread(self._container.stop)


@functools.cache
def docker_answers() -> bool:
    """Tell whether a Docker engine really answers."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "version", "--format", "{{.Server.Version}}"]  # exits 0 only if the engine answered
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Broker:
    """A RabbitMQ that a test may stop and start; `url` names the virtual host in use."""

    _POOL = 12
    _ARGUMENTS = "-rabbit max_message_size 1048576"  # in a container; a private node has it in its rabbitmq.conf

    def __init__(self) -> None:
        self._server: Server = (
            ContainerServer("rabbitmq:4", 5672, speaks_amqp, RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=self._ARGUMENTS)
            if docker_answers()
            else PrivateServer("rabbitmq.sh", speaks_amqp, ports=3)
        )
        self.port = self._server.port
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._fresh: list[str] = []
        self._used: list[str] = []

    async def start(self) -> None:
        """Start on the same port with the same data, and wait until it answers."""
        await self._server.start()

    async def stop(self) -> None:
        """Stop cleanly, keeping the data."""
        await self._server.stop()

    async def kill(self) -> None:
        """Kill -9 of everything it runs, keeping what is on the disk."""
        await self._server.kill()

    async def keep_declarations(self) -> None:
        """Write what was declared to the disk: RabbitMQ 3.10 does that by itself only after some seconds."""
        await self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()], ok.")

    async def answers(self) -> bool:
        return await speaks_amqp(self.port)

    async def renew(self) -> str:
        """Move on to a virtual host that nobody has used: an empty broker. Return its URL."""
        if not self._fresh:
            await self._exchange_vhosts()
        vhost = self._fresh.pop()
        self._used.append(vhost)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"
        return self.url

    async def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this broker."""
        return await self._server.run("rabbitmqctl", *arguments)

    async def _exchange_vhosts(self) -> None:
        # One rabbitmqctl takes half a second, whatever it does: so a dozen at once, and the used ones go.
        self._fresh = [f"test-{uuid.uuid4().hex[:12]}" for _ in range(self._POOL)]
        used, self._used = self._used, []
        await self.ctl(
            "eval",
            f"""lists:foreach(fun(V) -> catch rabbit_vhost:delete(V, <<"tests">>) end, {_binaries(used)}),
            lists:foreach(fun(V) ->
                rabbit_vhost:add(V, <<"tests">>),
                ok = rabbit_auth_backend_internal:set_permissions(
                    <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
            end, {_binaries(self._fresh)}).""",
        )

    async def close(self) -> None:
        await self._server.close()


def _binaries(names: list[str]) -> str:
    return "[" + ", ".join(f'<<"{name}">>' for name in names) + "]"


class Postgres:
    """A PostgreSQL that a test may stop and start."""

    def __init__(self) -> None:
        self._server: Server = (
            ContainerServer("postgres:17", 5432, speaks_postgres, POSTGRES_HOST_AUTH_METHOD="trust")
            if docker_answers()
            else PrivateServer("postgres.sh", speaks_postgres)
        )
        self.port = self._server.port
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    async def start(self) -> None:
        """Start on the same port with the same data, and wait until it answers."""
        await self._server.start()

    async def stop(self) -> None:
        """Stop at once but cleanly, cutting its clients off and keeping the data."""
        await self._server.stop()

    async def kill(self) -> None:
        """Kill -9 of everything it runs, keeping what is on the disk."""
        await self._server.kill()

    async def answers(self) -> bool:
        return await speaks_postgres(self.port)

    async def create_database(self, *, template: str = "template1") -> str:
        """Create a database, empty unless another is copied, and return its SQLAlchemy URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"

    async def drop_database(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        await self._execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def close(self) -> None:
        await self._server.close()

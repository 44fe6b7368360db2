"""The private RabbitMQ of a run: how it can be started on this machine, and on which ports."""

import asyncio
import os
import shutil
import subprocess
import zlib
from pathlib import Path

import aio_pika
from aio_pika.exceptions import AMQPError

from service.errors import ConfigurationError
from service.local.ports import is_free

_DEPLOY = Path(__file__).parents[2] / "deploy" / "local"
_NODE = _DEPLOY / "rabbitmq.sh"
_CONTAINER = _DEPLOY / "rabbitmq-container.sh"
_SETUP = _DEPLOY / "setup.sh"
_FIRST_PORT = 5680  # the first of three in a row: AMQP, Erlang distribution, epmd

NO_BROKER = """There is no RabbitMQ 3.10 or later on this machine. One of these helps, then start again:
  - a running broker:    export AMQP_URL=amqp://user:password@host:5672/
  - an installed one:    sudo apt-get install rabbitmq-server   (a private node of it is started)
  - a Docker engine:     a container of rabbitmq:4 is started
  - being root:          rabbitmq-server is installed by apt-get"""


def choose_broker(folder: Path) -> tuple[list[str], int]:
    """Choose how RabbitMQ is started here, installing it if that is the only way; return the command and its port.

    Raises:
        ConfigurationError: no way works on this machine.
    """
    data = str(folder / "rabbitmq")
    if _works(_NODE, "--installed"):
        script = _NODE
    elif _works(_CONTAINER, "--usable"):
        script = _CONTAINER
        _works(script, "--remove", data)  # a killed run's container still holds the port
    elif os.geteuid() == 0 and shutil.which("apt-get") and _works(_SETUP, "rabbitmq", silent=False):
        script = _NODE
    else:
        raise ConfigurationError(NO_BROKER)
    ports = _free_ports(folder)
    return [str(script), data, *map(str, ports)], ports[0]


def require_broker(url: str) -> None:
    """Raise ConfigurationError if the user's own broker cannot be used."""
    try:
        asyncio.run(_visit(url))
    except (AMQPError, OSError, TimeoutError) as error:
        where, reason = url.rpartition("@")[2].removeprefix("amqp://"), str(error) or type(error).__name__
        raise ConfigurationError(
            f"RabbitMQ at {where} (AMQP_URL) cannot be used: {reason}. Is it running there, and are user, password and "
            "virtual host right? Without AMQP_URL a private broker is started"
        ) from error


async def _visit(url: str) -> None:
    async with asyncio.timeout(10):
        await (await aio_pika.connect(url)).close()


def _works(script: Path, *arguments: str, silent: bool = True) -> bool:
    if not script.exists():  # installed from a wheel, without the repository around it
        return False
    return subprocess.run([script, *arguments], check=False, capture_output=silent).returncode == 0  # noqa: S603


def _free_ports(folder: Path) -> list[int]:
    """Return the ports of the last run, or the next free ones."""
    memory = folder / "rabbitmq.port"
    known = memory.read_text() if memory.exists() else ""
    # Two clones that start at the same time must not both find the first ports free.
    first = int(known) if known.isdigit() else _FIRST_PORT + 3 * (zlib.crc32(str(folder).encode()) % 30)
    while not all(is_free("127.0.0.1", port) for port in range(first, first + 3)):
        first += 3
    memory.write_text(str(first))
    return list(range(first, first + 3))

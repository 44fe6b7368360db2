"""The private RabbitMQ node of a run: whether this machine has one, and its ports."""

import subprocess
from pathlib import Path

from service.errors import ConfigurationError
from service.local.ports import is_free

RABBITMQ_SCRIPT = Path(__file__).parents[2] / "deploy" / "local" / "rabbitmq.sh"
RABBITMQ_PORT = 5680  # the first of three in a row: AMQP, Erlang distribution, epmd

NO_BROKER = """There is no RabbitMQ 3.10 or later on this machine. One of these helps:
  - a running broker:    export AMQP_URL=amqp://user:password@host:5672/
  - an installed one:    apt-get install rabbitmq-server   (a private node of it is started)
  - one in a container:  docker run -d -p 127.0.0.1:5672:5672 rabbitmq:4; export AMQP_URL=amqp://127.0.0.1/"""


def choose_broker_ports(folder: Path) -> list[int]:
    """Choose the private node's ports: those of the last run, or the next ones that are free.

    Raises:
        ConfigurationError: there is no usable RabbitMQ on this machine.
    """
    if not RABBITMQ_SCRIPT.exists() or subprocess.run([RABBITMQ_SCRIPT, "--installed"], check=False).returncode:  # noqa: S603
        raise ConfigurationError(NO_BROKER)
    memory = folder / "rabbitmq.port"
    first = int(memory.read_text()) if memory.exists() else RABBITMQ_PORT
    while not all(is_free("127.0.0.1", port) for port in range(first, first + 3)):
        first += 3
    memory.write_text(str(first))
    return list(range(first, first + 3))

"""Which RabbitMQ `whatsapp-qr up` starts: an installed one, else a container, else one that it installs, else none."""

import os
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.local import broker
from tests.servers import free_ports


class Machine:
    """The scripts of deploy/local on a machine with and without a broker: stand-ins that say what they were asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked = folder / "asked"
        for name, script in {"_NODE": "node", "_CONTAINER": "container", "_SETUP": "setup"}.items():
            monkeypatch.setattr(broker, name, folder / script)
            self.has(script, usable=False)
        monkeypatch.setattr(broker, "_FIRST_PORT", free_ports(6)[0])
        monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def has(self, script: str, *, usable: bool) -> None:
        path = self.folder / script
        path.write_text(f'#!/bin/sh\necho "{script} $*" >>"{self.asked}"\nexit {0 if usable else 1}\n')
        path.chmod(0o755)

    def chosen(self) -> str:
        command, port = broker.choose_broker(self.folder)
        assert command[1:3] == [str(self.folder / "rabbitmq"), str(port)]
        return Path(command[0]).name


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_an_installed_broker_is_taken_first(machine: Machine) -> None:
    """Docker is not even asked where rabbitmq-server is installed."""
    machine.has("node", usable=True)
    machine.has("container", usable=True)
    assert machine.chosen() == "node"
    assert machine.asked.read_text() == "node --installed\n"


def test_docker_comes_second_and_ends_what_a_killed_run_left(machine: Machine) -> None:
    """The leftover is ended before the port is chosen: it would hold the port of the last run."""
    machine.has("container", usable=True)
    assert machine.chosen() == "container"
    assert f"container --remove {machine.folder / 'rabbitmq'}\n" in machine.asked.read_text()


def test_root_installs_it_as_the_third_way(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else works."""
    machine.has("setup", usable=True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert machine.chosen() == "node"
    assert "setup rabbitmq\n" in machine.asked.read_text()


def test_nobody_else_installs_anything(machine: Machine) -> None:
    """The sentence lists every way, and apt-get is not run."""
    machine.has("setup", usable=True)
    with pytest.raises(ConfigurationError) as error:
        machine.chosen()
    for way in ("AMQP_URL", "apt-get install rabbitmq-server", "Docker", "root"):
        assert way in error.value.detail
    assert "setup" not in machine.asked.read_text()


def test_an_installation_that_fails_is_an_error_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get without a network, say."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigurationError, match="There is no RabbitMQ"):
        machine.chosen()


def test_the_port_of_the_last_run_is_kept_while_it_is_free(machine: Machine) -> None:
    """Clients that remember the address find the broker again."""
    machine.has("node", usable=True)
    first = broker.choose_broker(machine.folder)
    assert broker.choose_broker(machine.folder) == first

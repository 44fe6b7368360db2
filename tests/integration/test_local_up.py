"""`whatsapp-qr up` with real processes: it starts, survives being killed, and leaves nothing running."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.local.supervision import supervisor_log
from tests.servers import free_ports

SECONDS = 120
READY = "Try it in a second terminal"


class Up:
    """A run of `whatsapp-qr up` in a folder of its own, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        http, simulator, health, *_ = self.ports = free_ports(6)
        self.url = f"http://127.0.0.1:{http}"
        own = {"AMQP_URL", "DATABASE_URL", "WHATSAPP_QR_SERVICE_URL", "CALLBACK_URL", "API_KEYS", "ECHO_BOT"}
        self.environment = {name: value for name, value in os.environ.items() if name not in own} | {
            "HTTP_PORT": str(http),
            "SIMULATOR_PORT": str(simulator),
            "HEALTH_PORT": str(health),
        }
        self._output = folder / "output"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> "subprocess.Popen[bytes]":
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 3 * SECONDS
        while len(self.commands) < 3:
            assert process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    @property
    def commands(self) -> list[str]:
        """The commands to try that it prints."""
        return [line.strip() for line in self.output.partition(READY)[2].splitlines()[1:]]

    @property
    def output(self) -> str:
        return self._output.read_text()

    def left_running(self) -> list[psutil.Process]:
        """Find the processes that run in the folder or were started for it."""
        left = []
        for process in psutil.process_iter():
            try:
                known = str(self.folder) in " ".join([process.cwd(), *process.cmdline()])
                if known and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
            except psutil.Error:
                continue
        return left


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    run = Up(tmp_path)
    yield run
    for process in run.left_running():
        process.kill()
    for started in run.started:
        started.wait()


def test_it_starts_and_stops_in_order_and_starts_again_after_a_kill(up: Up) -> None:
    """Everything answers; a kill -9 of all supervising processes is cleaned up; SIGTERM ends all with status 0."""
    killed = up.start()
    up.wait_until_ready(killed)
    assert httpx.get(f"{up.url}/readyz", timeout=SECONDS).status_code == 200
    supervisor = int((up.folder / ".local" / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    killed.kill()
    killed.wait()
    left = {process.pid for process in up.left_running()}
    assert left

    process = up.start()
    up.wait_until_ready(process)
    assert "an earlier run had left" in up.output
    assert not left & {process.pid for process in up.left_running()}
    assert httpx.get(f"{up.url}/readyz", timeout=SECONDS).status_code == 200
    process.terminate()

    assert process.wait(SECONDS) == 0, up.output
    assert "SIGKILL" not in supervisor_log(up.folder / ".local").read_text(), "something did not end by itself"
    assert up.left_running() == []
    assert not (up.folder / ".local" / "up.lock").exists()


def test_the_printed_commands_lead_to_an_answered_message(up: Up) -> None:
    """Pasted as they stand, they link a chatbot, and the echo bot answers a customer; a second run kept the chatbot."""
    for run in (1, 2):
        process = up.start()
        up.wait_until_ready(process)
        script = "set -e\n" + "\n".join(up.commands[:3] if run == 1 else [up.commands[0], up.commands[2]])
        shown = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr
        answer = json.loads(shown.stdout[shown.stdout.rindex('{"success"') :])
        assert answer["answers"] == ["Hola"], shown.stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0, up.output
        assert up.left_running() == []


def test_the_echo_bot_can_be_left_out(up: Up) -> None:
    """ECHO_BOT=off: `incoming-messages` is left to the user's own worker."""
    up.environment["ECHO_BOT"] = "off"
    process = up.start()
    up.wait_until_ready(process)
    assert not (up.folder / ".local" / "run" / "echo-bot.pid").exists()
    process.terminate()
    assert process.wait(SECONDS) == 0, up.output


def test_a_part_that_dies_is_started_again(up: Up) -> None:
    """A killed consumer is restarted as a new process."""
    process = up.start()
    up.wait_until_ready(process)
    pid_file = up.folder / ".local" / "run" / "outbound-consumer.pid"
    before = pid_file.read_text()
    os.kill(int(before), signal.SIGKILL)

    deadline = time.monotonic() + SECONDS
    while pid_file.read_text() in {"", before}:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0, up.output


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("AMQP_URL", "amqp://guest:secret@127.0.0.1:1/", "RabbitMQ at 127.0.0.1:1/ (AMQP_URL) cannot be used"),
        ("DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/nope", "127.0.0.1:1/nope (DATABASE_URL) cannot be used"),
        ("DATABASE_URL", "sqlite:///damaged.db", "damaged.db (DATABASE_URL) cannot be used: file is not a database"),
    ],
)
def test_a_server_that_cannot_be_used_is_a_sentence(up: Up, variable: str, value: str, sentence: str) -> None:
    """It names the place, without the password, and nothing is left running."""
    (up.folder / "damaged.db").write_text("garbage " * 1000)
    up.environment[variable] = value
    process = up.start()
    assert process.wait(SECONDS) == 2
    assert sentence in up.output
    assert "secret" not in up.output
    assert "Traceback" not in up.output
    assert up.left_running() == []


def test_a_port_in_use_is_a_sentence(up: Up) -> None:
    """Nothing is started, and the sentence names port and setting."""
    with socket.create_server(("127.0.0.1", up.ports[0])):
        process = up.start()
        assert process.wait(SECONDS) == 2
    assert "HTTP_PORT" in up.output
    assert str(up.ports[0]) in up.output
    assert "Traceback" not in up.output
    assert up.left_running() == []

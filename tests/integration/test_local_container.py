"""The broker in a container. Without a Docker engine a stand-in for its client runs the private node instead."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers import LOCAL, docker_answers, free_ports, speaks_amqp
from tests.system import eventually

# What the script uses of Docker, with its meaning: `run` stays in the foreground until `stop` or `rm --force`.
STAND_IN = """#!/bin/bash
set -eu
state={state}
case "$1" in
version) echo 28 ;;
run)
    while [ $# -gt 0 ]; do
        case "$1" in
        --name) name=$2 ;;
        --publish) port=${{2#127.0.0.1:}}; port=${{port%:5672}} ;;
        esac
        shift
    done
    [ ! -e "$state/$name" ] || {{ echo "the name is in use" >&2; exit 125; }}
    setsid {node} "$state/data" "$port" >"$state/log" 2>&1 &
    echo $! >"$state/$name"
    wait $!
    rm -f "$state/$name" ;;
stop | rm)
    name=${{!#}}
    [ -e "$state/$name" ] || exit 1
    kill -TERM "$(cat "$state/$name")"
    tail --pid="$(cat "$state/$name")" -f /dev/null
    rm -f "$state/$name" ;;
*) echo "docker $* is not known here" >&2; exit 2 ;;
esac
"""


class Container:
    """One rabbitmq-container.sh and the folder that it works for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(3)[0]
        self.script = str(LOCAL / "rabbitmq-container.sh")
        self.environment = dict(os.environ)
        self.processes: list[subprocess.Popen[bytes]] = []
        if not docker_answers():
            (folder / "bin").mkdir()
            (folder / "state").mkdir()
            docker = folder / "bin" / "docker"
            docker.write_text(STAND_IN.format(state=folder / "state", node=LOCAL / "rabbitmq.sh"))
            docker.chmod(0o755)
            self.environment["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"

    def run(self, *arguments: str) -> int:
        return subprocess.run([self.script, *arguments], env=self.environment, check=False).returncode

    async def start(self) -> "subprocess.Popen[bytes]":
        command = [self.script, str(self.folder / "rabbitmq"), str(self.port)]
        process = subprocess.Popen(command, env=self.environment, start_new_session=True)
        self.processes.append(process)
        await eventually(lambda: speaks_amqp(self.port), seconds=120)
        return process

    async def stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)


@pytest.fixture
async def container(tmp_path: Path) -> AsyncIterator[Container]:
    container = Container(tmp_path)
    yield container
    await asyncio.to_thread(container.run, "--remove", str(container.folder / "rabbitmq"))
    for process in container.processes:
        process.wait(30)


async def test_it_runs_until_it_is_told_to_stop(container: Container) -> None:
    """SIGTERM to the script ends broker and container."""
    assert container.run("--usable") == 0
    process = await container.start()
    await container.stop(process)
    assert not await speaks_amqp(container.port)


async def test_the_next_start_ends_what_a_kill_left_running(container: Container) -> None:
    """A kill -9 of the script and its client leaves the container; nobody has to clean up by hand."""
    killed = await container.start()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert await speaks_amqp(container.port)
    assert container.run("--remove", str(container.folder / "rabbitmq")) == 0
    assert not await speaks_amqp(container.port)

    process = await container.start()
    await container.stop(process)
    assert not await speaks_amqp(container.port)


def test_without_docker_it_is_not_usable(tmp_path: Path) -> None:
    """Neither without the client nor with one whose engine is away."""
    (tmp_path / "timeout").symlink_to("/usr/bin/timeout")
    usable = [str(LOCAL / "rabbitmq-container.sh"), "--usable"]
    environment = {"PATH": str(tmp_path)}
    assert subprocess.run(usable, env=environment, check=False).returncode != 0
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    assert subprocess.run(usable, env=environment, check=False).returncode != 0
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 0\n")
    assert subprocess.run(usable, env=environment, check=False).returncode == 0

"""supervisord: its configuration and its process."""

import contextlib
import os
import pwd
import shlex
import subprocess
import sys
from pathlib import Path

from service.errors import ConfigurationError
from service.local.programs import CONSUMERS, Program
from service.settings import Settings

# supervisord stops group by group, from the last to the first, and the programs of a group together.
GROUPS = {"broker": ["rabbitmq"], "gateway": ["simulator"], "service": ["ingress", *CONSUMERS], "worker": ["echo-bot"]}
STOP_TIMEOUT = 60.0


def start_supervisor(settings: Settings, programs: list[Program], folder: Path) -> "subprocess.Popen[bytes]":
    """Start supervisord, which starts the programs."""
    config = _write_config(programs, folder)
    command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)]
    # In its own session: Ctrl-C reaches only this process, which then stops the parts in order.
    return subprocess.Popen(command, env=_environment(settings), start_new_session=True)  # noqa: S603


def require_alive(supervisor: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Raise ConfigurationError if supervisord has ended by itself."""
    if supervisor.poll() is not None:
        raise ConfigurationError(f"supervisord ended by itself; see {supervisor_log(folder)}")


def stop_supervisor(supervisor: "subprocess.Popen[bytes]") -> None:
    """Let supervisord stop the programs, in order, and wait for it for at most a minute."""
    supervisor.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(STOP_TIMEOUT)


def supervisor_log(folder: Path) -> Path:
    """Return the file in which supervisord logs starts and ends of programs."""
    return folder / "log" / "supervisord.log"


def program_log(program: Program, folder: Path) -> Path:
    """Return the file with a program's output."""
    return folder / "log" / f"{program.name}.log"


def _environment(settings: Settings) -> dict[str, str]:
    names = ("amqp_url", "database_url", "whatsapp_qr_service_url", "callback_url")
    return {**os.environ, **{name.upper(): str(getattr(settings, name)) for name in names}}


def _write_config(programs: list[Program], folder: Path) -> Path:
    (folder / "log").mkdir(exist_ok=True)
    (folder / "run").mkdir(exist_ok=True)
    supervisor_log(folder).unlink(missing_ok=True)
    lines = [
        "[supervisord]",
        "nodaemon = true",
        "silent = true",
        f"logfile = {_escaped(supervisor_log(folder))}",
        f"pidfile = {_escaped(folder / 'supervisord.pid')}",
        f"user = {pwd.getpwuid(os.getuid()).pw_name}" if os.getuid() == 0 else "",
    ]
    for program in programs:
        lines += _program_section(program, folder)
    present = {program.name for program in programs}
    for priority, (name, members) in enumerate(GROUPS.items(), start=1):
        if present.issuperset(members):
            lines += [f"[group:{name}]", f"programs = {','.join(members)}", f"priority = {priority}"]
    path = folder / "supervisord.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def _program_section(program: Program, folder: Path) -> list[str]:
    # The shell writes the pid file by which the next run finds the processes that a killed supervisord leaves.
    pid_file = folder / "run" / f"{program.name}.pid"
    # All others wait for the broker: beside five interpreters of the same priority it would start a fifth later.
    nice = [] if program.name == "rabbitmq" else ["nice", "-n", "10"]
    start = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(pid_file), *nice, *program.command]
    return [
        f"[program:{program.name}]",
        f"command = {_escaped(shlex.join(start))}",
        f'environment = {program.port_setting}="{program.port}"' if program.port and program.name != "rabbitmq" else "",
        f"stdout_logfile = {_escaped(program_log(program, folder))}",
        "redirect_stderr = true",
        "stdout_logfile_maxbytes = 10MB",
        "stdout_logfile_backups = 1",
        "autorestart = true",
        "startretries = 1000000",
        f"stopwaitsecs = {program.grace}",
        "killasgroup = true",
    ]


def _escaped(value: object) -> str:
    return str(value).replace("%", "%%")

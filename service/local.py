"""`whatsapp-qr up`: the whole service on one machine, every part a process of its own under supervisord.

All that it makes lies in `.local/` of the current folder: data, logs, pid files. Stopping it, by whatever signal,
stops ingress and consumers first and the broker last.
"""

import contextlib
import fcntl
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.errors import ConfigurationError
from service.settings import Settings

RABBITMQ_SCRIPT = Path(__file__).parents[1] / "deploy" / "local" / "rabbitmq.sh"
RABBITMQ_PORT = 5680  # the first of three in a row: AMQP, Erlang distribution, epmd
CONSUMERS = ("session-consumer", "conversation-consumer", "outbound-consumer")
GROUPS = {"broker": ["rabbitmq"], "gateway": ["simulator"], "service": ["ingress", *CONSUMERS]}  # stopped from the last
START_TIMEOUT = 90.0
STOP_TIMEOUT = 60.0
ORPHAN_TIMEOUT = 15.0
LEAST_FREE_DISK = 300_000_000

NO_BROKER = """There is no RabbitMQ 3.10 or later on this machine. One of these helps:
  - a running broker:    export AMQP_URL=amqp://user:password@host:5672/
  - an installed one:    apt-get install rabbitmq-server   (a private node of it is started)
  - one in a container:  docker run -d -p 127.0.0.1:5672:5672 rabbitmq:4; export AMQP_URL=amqp://127.0.0.1/"""


@dataclass(frozen=True)
class Program:
    """One process: how it is started and where it answers."""

    name: str
    command: list[str]
    host: str
    port: int
    port_setting: str  # the variable that chooses the port
    grace: int = 30  # seconds it has to finish

    @property
    def url(self) -> str:
        """Where it answers, for a client on this machine."""
        return f"http://{_reachable(self.host)}:{self.port}"


def up(settings: Settings, migrate: Callable[[Settings], None]) -> None:
    """Start everything, wait until it is ready, run until a signal comes, stop everything."""
    folder = Path.cwd() / ".local"
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with _only_one(folder):
        _end_leftovers(folder)
        programs = _programs(settings, folder)
        _require_free_ports(programs)
        settings = _pointed_at(programs, settings)
        _say("Preparing the database")
        migrate(settings)
        if not stop.is_set():
            _run(settings, programs, folder, stop)


def _run(settings: Settings, programs: list[Program], folder: Path, stop: threading.Event) -> None:
    config = _write_config(programs, folder)
    command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)]
    # A session of its own: Ctrl-C reaches this process alone, which then stops the parts in order.
    supervisor = subprocess.Popen(command, env=_environment(settings), start_new_session=True)  # noqa: S603
    try:
        started = time.monotonic()
        _wait_until_ready(programs, folder, supervisor, stop)
        if not stop.is_set():
            _say_what_runs(settings, programs, time.monotonic() - started)
        while not stop.wait(0.5):
            _require_alive(supervisor, folder)
    finally:
        _say("Stopping")
        supervisor.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(STOP_TIMEOUT)
        _end_leftovers(folder)
    _say("Stopped; the data stays in .local/")


# What is started


def _programs(settings: Settings, folder: Path) -> list[Program]:
    """List what runs here, in the order in which it is started."""
    programs = []
    if "amqp_url" not in settings.model_fields_set:
        ports = _broker_ports(folder)
        command = [str(RABBITMQ_SCRIPT), str(folder / "rabbitmq"), *map(str, ports)]
        programs.append(Program("rabbitmq", command, "127.0.0.1", ports[0], "AMQP_URL", grace=10))

    def server(name: str, host: str, port: int, port_setting: str, grace: int = 30) -> Program:
        return Program(name, [sys.executable, "-m", "service.cli", name], host, port, port_setting, grace)

    if "whatsapp_qr_service_url" not in settings.model_fields_set:
        programs.append(server("simulator", "127.0.0.1", settings.simulator_port, "SIMULATOR_PORT", grace=3))
    programs.append(server("ingress", settings.http_host, settings.http_port, "HTTP_PORT"))
    for number, name in enumerate(CONSUMERS, start=1):
        programs.append(server(name, settings.http_host, settings.health_port + number, "HEALTH_PORT"))
    return programs


def _broker_ports(folder: Path) -> list[int]:
    """Choose the private node's ports: those of the last run, or the next ones that are free."""
    if not RABBITMQ_SCRIPT.exists() or subprocess.run([RABBITMQ_SCRIPT, "--installed"], check=False).returncode:  # noqa: S603
        raise ConfigurationError(NO_BROKER)
    memory = folder / "rabbitmq.port"
    first = int(memory.read_text()) if memory.exists() else RABBITMQ_PORT
    while not all(_is_free("127.0.0.1", port) for port in range(first, first + 3)):
        first += 3
    memory.write_text(str(first))
    return list(range(first, first + 3))


def _pointed_at(programs: list[Program], settings: Settings) -> Settings:
    """Point the settings that the user left open at what runs here."""
    urls = {program.name: program.url for program in programs}
    local = {"callback_url": urls["ingress"]} if "callback_url" not in settings.model_fields_set else {}
    if "simulator" in urls:
        local["whatsapp_qr_service_url"] = urls["simulator"]
    if "rabbitmq" in urls:
        local["amqp_url"] = urls["rabbitmq"].replace("http://", "amqp://guest:guest@") + "/"
    return settings.model_copy(update=local)


def _environment(settings: Settings) -> dict[str, str]:
    names = ("amqp_url", "database_url", "whatsapp_qr_service_url", "callback_url")
    return {**os.environ, **{name.upper(): str(getattr(settings, name)) for name in names}}


def _write_config(programs: list[Program], folder: Path) -> Path:
    logs, pids = folder / "log", folder / "run"
    logs.mkdir(exist_ok=True)
    pids.mkdir(exist_ok=True)
    (logs / "supervisord.log").unlink(missing_ok=True)
    sections = [
        "[supervisord]",
        "nodaemon = true",
        "silent = true",
        f"logfile = {_escaped(logs / 'supervisord.log')}",
        f"pidfile = {_escaped(folder / 'supervisord.pid')}",
        f"user = {pwd.getpwuid(os.getuid()).pw_name}" if os.getuid() == 0 else "",
    ]
    for program in programs:
        # The shell writes the pid file by which the next run finds what a killed supervisord leaves behind.
        start = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(pids / f"{program.name}.pid"), *program.command]
        sections += [
            f"[program:{program.name}]",
            f"command = {_escaped(shlex.join(start))}",
            f'environment = {program.port_setting}="{program.port}"' if program.name != "rabbitmq" else "",
            f"stdout_logfile = {_escaped(logs / program.name)}.log",
            "redirect_stderr = true",
            "stdout_logfile_maxbytes = 10MB",
            "stdout_logfile_backups = 1",
            "autorestart = true",
            "startretries = 1000000",
            f"stopwaitsecs = {program.grace}",
            "killasgroup = true",
        ]
    # supervisord stops group by group, the highest priority first, and the programs of a group together.
    service = [program.name for program in programs if program.grace == Program.grace]
    for name, members, priority in (
        ("service", service, 3),
        ("gateway", ["simulator"], 2),
        ("broker", ["rabbitmq"], 1),
    ):
        if set(members) <= {program.name for program in programs}:
            sections += [f"[group:{name}]", f"programs = {','.join(members)}", f"priority = {priority}"]
    path = folder / "supervisord.conf"
    path.write_text("\n".join(sections) + "\n")
    return path


def _escaped(value: object) -> str:
    return str(value).replace("%", "%%")


# Whether it runs


def _wait_until_ready(
    programs: list[Program], folder: Path, supervisor: "subprocess.Popen[bytes]", stop: threading.Event
) -> None:
    _say("Starting " + ", ".join(program.name for program in programs))
    waiting = list(programs)
    deadline = time.monotonic() + START_TIMEOUT
    with httpx.Client(timeout=3, trust_env=False) as client:
        while waiting and not stop.wait(0.2):
            _require_alive(supervisor, folder)
            failed = _given_up(programs, folder) or (waiting[0] if time.monotonic() > deadline else None)
            if failed:
                raise ConfigurationError(_failure(failed, folder))
            for program in [program for program in waiting if _is_ready(program, client)]:
                waiting.remove(program)
                _say(f"  {program.name} is ready")


def _is_ready(program: Program, client: httpx.Client) -> bool:
    if program.name == "rabbitmq":
        return not _is_free(program.host, program.port)
    try:
        if program.name == "simulator":  # a gateway has no health page: any answer will do
            return client.get(program.url).status_code < httpx.codes.INTERNAL_SERVER_ERROR
        return all(client.get(program.url + path).status_code == httpx.codes.OK for path in ("/livez", "/readyz"))
    except httpx.HTTPError:
        return False


def _require_alive(supervisor: "subprocess.Popen[bytes]", folder: Path) -> None:
    if supervisor.poll() is not None:
        raise ConfigurationError(f"supervisord ended by itself; see {folder / 'log' / 'supervisord.log'}")


def _given_up(programs: list[Program], folder: Path) -> Program | None:
    """Find a program that ended saying that it cannot start like this (exit status 2, or 78 from a script)."""
    log = folder / "log" / "supervisord.log"
    ended = re.findall(r"exited: (\S+) \(exit status (?:2|78);", log.read_text() if log.exists() else "")
    return next((program for program in programs if program.name in ended), None)


def _failure(program: Program, folder: Path) -> str:
    log = folder / "log" / f"{program.name}.log"
    lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
    return "\n  ".join([f"{program.name} did not become ready. The end of {log}:", *lines])


def _say_what_runs(settings: Settings, programs: list[Program], seconds: float) -> None:
    places = {program.name: program.url for program in programs}
    places["ingress"] += "   (API documentation: /docs)"
    places["rabbitmq"] = settings.amqp_url if "rabbitmq" in places else _without_password(settings.amqp_url)
    if "simulator" not in places:
        places["gateway"] = _without_password(settings.whatsapp_qr_service_url)
    places |= {"database": _without_password(settings.database_url), "logs": ".local/log/"}
    _say(f"Ready after {seconds:.0f} s; Ctrl-C stops everything.")
    for name, place in places.items():
        _say(f"  {name:22} {place}")


def _without_password(url: str) -> str:
    return re.sub(r"://([^:/@]*):[^/@]*@", r"://\1:***@", url)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


# One run at a time, on ports of its own


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep a second run out of this folder; a killed one holds no lock."""
    folder.mkdir(exist_ok=True)
    if shutil.disk_usage(folder).free < LEAST_FREE_DISK:
        raise ConfigurationError(
            f"The disk of {folder} has less than {LEAST_FREE_DISK // 1_000_000} MB left: free some"
        )
    path = folder / "up.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"It already runs in {folder.parent}: stop that first") from error
        yield
        path.unlink(missing_ok=True)


def _require_free_ports(programs: list[Program]) -> None:
    with contextlib.ExitStack() as held:  # all at once, so that two programs on one port are found too
        for program in programs:
            try:
                held.enter_context(_listener(program.host, program.port))
            except OSError as error:
                sentence = (
                    f"{program.host}:{program.port} ({program.name}) is not free: {os.strerror(error.errno or 0)}. "
                )
                raise ConfigurationError(sentence + f"End what uses it or set {program.port_setting}") from error


def _is_free(host: str, port: int) -> bool:
    try:
        _listener(host, port).close()
    except OSError:
        return False
    return True


def _listener(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _reachable(host: str) -> str:
    """Turn an address to listen on into one to call."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
    return local.get(host) or (f"[{host}]" if ":" in host else host)


# What a killed run left behind


def _end_leftovers(folder: Path) -> None:
    """End what is still running of an earlier run: known by its pid file, believed by its command line."""
    supervisor = {folder / "supervisord.pid": str(folder / "supervisord.conf")}
    parts = {path: f"service.cli {path.stem}" for path in (folder / "run").glob("*.pid")}
    parts[folder / "run" / "rabbitmq.pid"] = str(folder / "rabbitmq")
    node = {folder / "rabbitmq" / "rabbitmq.pid": "-whatsapp_qr_node", folder / "rabbitmq" / "epmd.pid": "epmd -port"}
    _end(supervisor, STOP_TIMEOUT)
    _end(parts, ORPHAN_TIMEOUT)
    _end(node, ORPHAN_TIMEOUT)


def _end(marks: dict[Path, str], patience: float) -> None:
    running = {pid for path, mark in marks.items() if (pid := _read_pid(path)) and mark in _command_line(pid)}
    before = {pid: _command_line(pid) for pid in running}
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while running and time.monotonic() < deadline:
            running = {pid for pid in running if _command_line(pid) == before[pid]}
            time.sleep(0.1)
    for path in marks:
        path.unlink(missing_ok=True)


def _read_pid(path: Path) -> int:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else 0


def _command_line(pid: int) -> str:
    """Read the command line of a running process; empty for none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if Path("/proc/self").exists():
        return ""
    answer = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return answer.stdout.strip()

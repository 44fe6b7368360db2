"""The programs to start on this machine, their addresses, and the settings that follow."""

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError
from service.local.broker import choose_broker
from service.local.ports import listener, reachable
from service.loopback import is_loopback
from service.settings import Settings

CONSUMERS = ("session-consumer", "conversation-consumer", "outbound-consumer")
ECHO_BOT = Path(__file__).parents[2] / "contracts" / "examples" / "echo_bot.py"


@dataclass(frozen=True, eq=False)
class Program:
    """One process: its command and its address."""

    name: str
    command: list[str]
    host: str = ""
    port: int = 0  # 0: it does not listen
    port_setting: str = ""  # the variable that chooses the port
    grace: int = 30  # seconds it has to finish
    health: tuple[str, ...] = ("/livez", "/readyz")  # these answer 200 once it is ready; if empty, the port is in use

    @property
    def url(self) -> str:
        """Its base URL, for a client on this machine."""
        return f"http://{reachable(self.host)}:{self.port}"


def choose_programs(settings: Settings, folder: Path) -> list[Program]:
    """List the programs of this run, in the order in which they are started."""
    programs = []
    if "amqp_url" not in settings.model_fields_set:
        programs.append(_rabbitmq(folder))
    if "whatsapp_qr_service_url" not in settings.model_fields_set:
        port = settings.simulator_port
        _require_callbacks_let_in(settings)
        programs.append(
            Program(
                "simulator", _command("simulator"), "127.0.0.1", port, "SIMULATOR_PORT", grace=3, health=("/health",)
            )
        )
    programs.append(Program("ingress", _command("ingress"), settings.http_host, settings.http_port, "HTTP_PORT"))
    for number, name in enumerate(CONSUMERS, start=1):
        programs.append(Program(name, _command(name), settings.http_host, settings.health_port + number, "HEALTH_PORT"))
    if settings.echo_bot and ECHO_BOT.exists():
        programs.append(Program("echo-bot", [sys.executable, str(ECHO_BOT)], grace=10))
    return programs


def _require_callbacks_let_in(settings: Settings) -> None:
    """Check the credentials: the simulator calls the ingress from and at its address; only loopback needs none."""
    local = settings.http_host in {"0.0.0.0", "::"} or is_loopback(settings.http_host)  # noqa: S104
    if not (local or settings.webhook_token or settings.webhook_secret):
        raise ConfigurationError(
            f"HTTP_HOST={settings.http_host}: the ingress would refuse the simulator's callbacks from there. Set "
            "WEBHOOK_SECRET=whsec_$(openssl rand -base64 32), or HTTP_HOST=0.0.0.0"
        )


def _rabbitmq(folder: Path) -> Program:
    command, port = choose_broker(folder)
    return Program("rabbitmq", command, "127.0.0.1", port, "AMQP_URL", grace=10, health=())


def _command(name: str) -> list[str]:
    return [sys.executable, "-m", "service.cli", name]


def require_free_ports(programs: list[Program]) -> None:
    """Listen on every port once, at the same time, so that two programs on one port are detected too."""
    with contextlib.ExitStack() as held:
        for program in filter(_listens, programs):
            try:
                held.enter_context(listener(program.host, program.port))
            except OSError as error:
                sentence = (
                    f"{program.host}:{program.port} ({program.name}) is not free: {os.strerror(error.errno or 0)}. "
                )
                consumers = " (the consumers take the three ports after it)" if program.name in CONSUMERS else ""
                remedy = f"Stop the program that uses it, or set {program.port_setting}{consumers}"
                raise ConfigurationError(sentence + remedy) from error


def _listens(program: Program) -> bool:
    return program.port > 0


def pointed_at(programs: list[Program], settings: Settings) -> Settings:
    """Point the settings that the user did not set at the programs of this run."""
    urls = {program.name: program.url for program in filter(_listens, programs)}
    local = {}
    if "callback_url" not in settings.model_fields_set:
        port = settings.internal_port or settings.http_port
        local["callback_url"] = f"http://{reachable(settings.http_host)}:{port}"
    if "simulator" in urls:
        local["whatsapp_qr_service_url"] = urls["simulator"]
    if "rabbitmq" in urls:
        local["amqp_url"] = urls["rabbitmq"].replace("http://", "amqp://guest:guest@")
    return settings.model_copy(update=local)

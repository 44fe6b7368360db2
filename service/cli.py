"""The `whatsapp-qr` command: one subcommand per process, and those of an operator."""

import gc
import os
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import typer

from service.errors import ConfigurationError
from service.operating import commands

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from service.settings import Settings

KEEP_ALIVE = 75  # seconds; a callback that meets a connection being closed is lost, so callers should close first
# Seconds that requests in flight have when the process is told to stop; /init and /disconnect wait for up to 10.
GRACE = 5
INGRESS_GRACE = 13

app = typer.Typer(
    help="Link chatbots to WhatsApp by QR code; send and receive their messages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def ingress() -> None:
    """Take REST calls and webhooks; publish them as commands and gateway events."""
    settings = read_settings()
    from service import apps

    serve(apps.ingress_app(settings), settings.http_host, settings.http_port, "HTTP_PORT", grace=INGRESS_GRACE)


@app.command()
def session_consumer() -> None:
    """Run the state machine of the sessions."""
    settings = read_settings()
    from service import apps

    serve(apps.session_consumer_app(settings), settings.http_host, settings.health_port, "HEALTH_PORT")


@app.command()
def conversation_consumer() -> None:
    """Create conversations, store messages, hand them to the workers."""
    settings = read_settings()
    from service import apps

    serve(apps.conversation_consumer_app(settings), settings.http_host, settings.health_port, "HEALTH_PORT")


@app.command()
def outbound_consumer() -> None:
    """Send messages through the gateway, in order per session."""
    settings = read_settings()
    from service import apps

    serve(apps.outbound_consumer_app(settings), settings.http_host, settings.health_port, "HEALTH_PORT")


@app.command()
def simulator() -> None:
    """Play the WhatsApp gateway, with simulated phones."""
    settings = read_settings()
    from service import apps

    serve(apps.simulator_app(settings), "127.0.0.1", settings.simulator_port, "SIMULATOR_PORT")


@app.command()
def migrate() -> None:
    """Bring the database to the present schema."""
    settings = read_settings()
    from service import apps

    apps.migrate(settings)


@app.command()
def up() -> None:
    """Run everything on this machine, with a private RabbitMQ and the simulator unless others are set."""
    settings = read_settings()
    from service import apps, local

    gc.enable()
    apps.require_keys(settings)
    local.up(settings, apps.migrate)


def read_settings() -> "Settings":
    """Read the settings from the environment and set logging up; say which one is wrong."""
    from pydantic import ValidationError

    from service import logs
    from service.settings import Settings

    try:
        settings = Settings()
    except ValidationError as error:
        raise ConfigurationError(
            "\n".join(_sentence(str(fault["loc"][0]), fault, Settings.model_fields) for fault in error.errors())
        ) from error

    logs.configure(settings.log_format, settings.log_level)
    return settings


def _sentence(name: str, fault: "ErrorDetails", fields: "dict[str, FieldInfo]") -> str:
    secret = "SecretStr" in str(fields[name].annotation)
    shown = "not usable" if secret else _masked(fault["input"])
    default = "not set" if secret else fields[name].default
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{name.upper()} is {shown}: {reason}.\n  Meaning: {fields[name].description} (default: {default})"


def _masked(value: object) -> str:
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", repr(value))


def serve(asgi: Any, host: str, port: int, variable: str, *, grace: int = GRACE) -> None:
    """Serve an application until a signal comes; then the process ends with status 0."""
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # without the repetition of the address
        sentence = f"Cannot listen on {host}:{port}: {reason}. End what uses it or set {variable}"
        raise ConfigurationError(sentence) from error
    config = uvicorn.Config(
        asgi,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=KEEP_ALIVE,
        proxy_headers=False,  # who calls is decided by the socket, never by a header
    )
    gc.freeze()
    gc.enable()
    server = uvicorn.Server(config)
    # uvicorn raises the signal again, once it has shut down, for whoever handled it before: that ends here, with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    with listener:
        server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(1)


app.add_typer(commands.dead_letters(read_settings), name="dead-letters")
app.add_typer(commands.messages(read_settings), name="messages")


def main() -> None:
    """Run the command; a wrong configuration is one sentence and exit status 2."""
    gc.disable()  # importing makes no garbage, and looking for it is a seventh of the start
    try:
        app()
    except ConfigurationError as error:
        sys.stderr.write(f"whatsapp-qr: {error.detail}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

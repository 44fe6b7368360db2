"""The `whatsapp-qr` command: one subcommand per process, and the operator's subcommands."""

import contextlib
import gc
import os
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.errors import ConfigurationError
from service.operating import commands, topology

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from service.settings import Settings

KEEP_ALIVE = 75  # seconds; a callback on a connection that is being closed is lost, so callers should close first
# Seconds for requests in flight when the process is stopped; /init and /disconnect wait for up to 10.
GRACE = 5
INGRESS_GRACE = 13

Repartition = Annotated[
    bool, typer.Option(help="Change the number of partitions to PARTITIONS; all consumers have to be stopped")
]

app = typer.Typer(
    help="Link chatbots to WhatsApp by QR code; send and receive their messages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def ingress() -> None:
    """Accept REST calls and webhooks; publish them as commands and gateway events."""
    settings = read_settings("ingress")
    from service import apps

    ports = {"HTTP_PORT": settings.http_port}
    if settings.internal_port is not None:
        ports["INTERNAL_PORT"] = settings.internal_port
    asgi = apps.ingress_app(settings)
    serve(asgi, settings.http_host, ports, grace=INGRESS_GRACE, end=asgi.state.streams.end)


@app.command()
def session_consumer() -> None:
    """Run the state machine of the sessions."""
    settings = read_settings("session-consumer")
    from service import apps

    serve(apps.session_consumer_app(settings), settings.http_host, {"HEALTH_PORT": settings.health_port})


@app.command()
def conversation_consumer() -> None:
    """Create conversations, store messages, pass them to the workers."""
    settings = read_settings("conversation-consumer")
    from service import apps

    serve(apps.conversation_consumer_app(settings), settings.http_host, {"HEALTH_PORT": settings.health_port})


@app.command()
def outbound_consumer() -> None:
    """Send messages through the gateway, in order per session."""
    settings = read_settings("outbound-consumer")
    from service import apps

    serve(apps.outbound_consumer_app(settings), settings.http_host, {"HEALTH_PORT": settings.health_port})


@app.command()
def simulator() -> None:
    """Simulate the WhatsApp gateway, with phones."""
    settings = read_settings()
    from service import apps

    serve(apps.simulator_app(settings), settings.simulator_host, {"SIMULATOR_PORT": settings.simulator_port})


@app.command()
def migrate(*, repartition: Repartition = False) -> None:
    """Bring the database to the present schema, and store the number of partitions in a new one."""
    settings = read_settings()
    from service import apps

    apps.migrate(settings, repartition=repartition)


@app.command()
def up() -> None:
    """Run everything on this machine, with a private RabbitMQ and the simulator unless others are set."""
    settings = read_settings()
    from service import apps, local

    gc.enable()
    apps.require_keys(settings)
    local.up(settings, apps.migrate)


def read_settings(role: str | None = None) -> "Settings":
    """Read the settings from the environment; configure logging, and tracing for a role; report invalid settings."""
    from pydantic import ValidationError

    from service import logs, privacy
    from service.contradictions import contradictions
    from service.secret_files import files_of
    from service.settings import Settings

    try:
        settings = Settings()
    except ValidationError as error:
        files = files_of(Settings.model_fields)
        sentences = (
            _sentence(name, fault, Settings.model_fields[name], files.get(name))
            for fault in error.errors()
            if (name := str(fault["loc"][0]))
        )
        raise ConfigurationError("\n".join(sentences)) from error

    if wrong := list(contradictions(settings)):
        raise ConfigurationError("\n".join(wrong))
    logs.configure(settings.log_format, settings.log_level)
    privacy.configure(settings.log_hash_key.get_secret_value() if settings.log_hash_key else None)
    if role is not None:
        from service import exporting

        exporting.start(role, settings.otel_exporter_otlp_endpoint)
    return settings


def _sentence(name: str, fault: "ErrorDetails", field: "FieldInfo", file: "Path | None") -> str:
    secret = "SecretStr" in str(field.annotation)
    where = f" (the file {file})" if file else ""
    shown = "not usable" if secret or file else _masked(fault["input"])
    default = "not set" if secret or field.default is None else field.default
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{name.upper()}{where} is {shown}: {reason}.\n  Meaning: {field.description} (default: {default})"


def _masked(value: object) -> str:
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", repr(value))


def serve(
    asgi: Any, host: str, ports: "Mapping[str, int]", *, grace: int = GRACE, end: "Callable[[], None]" = lambda: None
) -> None:
    """Serve an application until a signal comes; then the process ends with status 0.

    Args:
        asgi: the application.
        host: the address to listen on.
        ports: the ports to listen on, by the setting that chooses each.
        grace: seconds for requests in flight after the signal.
        end: is called after the signal, to end streams.
    """
    import uvicorn

    from service import exporting

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            end()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        asgi,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=KEEP_ALIVE,
        proxy_headers=False,  # a client's address is taken from the socket, never from a header
    )
    gc.freeze()
    gc.enable()
    server = Server(config)
    # After its shutdown uvicorn raises the signal again for the earlier handler: this one then ends the process with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    with contextlib.ExitStack() as held:
        server.run(sockets=[held.enter_context(_listener(host, port, variable)) for variable, port in ports.items()])
    exporting.stop()
    ending = getattr(asgi.state, "ending", None)
    if ending is not None and ending.reason:
        raise ConfigurationError(ending.reason)
    if not server.started:
        raise typer.Exit(1)


def _listener(host: str, port: int, variable: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # without the repetition of the address
        sentence = f"Cannot listen on {host}:{port}: {reason}. Stop the program that uses it, or set {variable}"
        raise ConfigurationError(sentence) from error


app.add_typer(commands.dead_letters(read_settings), name="dead-letters")
app.add_typer(commands.messages(read_settings), name="messages")
app.add_typer(topology.topology(read_settings), name="topology")


def main() -> None:
    """Run the command; a wrong configuration is reported in one sentence, with exit status 2."""
    gc.disable()  # imports make no garbage, and collection would take a seventh of the start time
    try:
        app()
    except ConfigurationError as error:
        sys.stderr.write(f"whatsapp-qr: {error.detail}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

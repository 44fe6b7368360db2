"""What the code knows that manifests name: commands, settings, paths, metrics."""

import functools
from typing import Annotated, Any

import promql_parser
import typer
from fastapi import FastAPI
from prometheus_client import REGISTRY
from pydantic import Field, TypeAdapter, ValidationError
from starlette.routing import Route

from service import apps, cli, metrics
from service.settings import Settings

assert metrics  # importing it registers what is collected below
CALLBACKS = ("/whatsapp-qr/webhook", "/whatsapp-qr/incoming")


def is_command(arguments: list[str]) -> bool:
    """Say whether `whatsapp-qr ARGUMENTS` is a command, with options that it has, that needs no more."""
    command: Any = _commands()
    options = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    for argument in arguments:
        if not argument.startswith("--"):
            command = getattr(command, "commands", {}).get(argument)
    if command is None or hasattr(command, "commands"):
        return False
    known = {option for one in command.params for option in one.opts}
    return options <= known and not any(one.required for one in command.params)


@functools.cache
def _commands() -> Any:
    return typer.main.get_command(cli.app)


def is_setting(name: str, value: str | None) -> bool:
    """Say whether a variable is a setting that takes this value."""
    field = Settings.model_fields.get(name.lower())
    if field is None or name != name.upper():
        return False
    try:
        TypeAdapter(Annotated[field.annotation, *field.metadata, Field()]).validate_python(value)
    except ValidationError:
        return False
    return True


def secret_settings() -> set[str]:
    """Return the variables that hold a secret, or a URL with one."""
    fields = Settings.model_fields
    return {name.upper() for name in fields if "SecretStr" in str(fields[name].annotation)} | {
        "AMQP_URL",
        "DATABASE_URL",
        "MANAGEMENT_URL",
    }


@functools.cache
def paths(role: str) -> frozenset[str]:
    """Return what a process serves."""
    settings = Settings(database_url="postgresql://host/database", amqp_url="amqp://host/")
    build: Any = getattr(apps, f"{role.replace('-', '_')}_app")
    app = build(settings)
    if isinstance(app, FastAPI):
        return frozenset([*app.openapi()["paths"], *(route.path for route in app.routes if isinstance(route, Route))])
    return frozenset(route.path for route in app.routes)


def rest_paths() -> frozenset[str]:
    """Return the paths of the ingress with examples in the place of parameters."""
    return frozenset(path.replace("{", "a-").replace("}", "") for path in paths("ingress"))


def metrics_in(expression: str) -> set[str]:
    """Return the names of the series that a PromQL expression reads."""
    return set(_names(promql_parser.parse(expression)))


def known_metrics() -> set[str]:
    """Return the names of the series that our processes show."""
    names = set()
    for family in REGISTRY.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def _names(expression: Any) -> list[str]:
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression.name]
    parts = [getattr(expression, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    parts += list(getattr(expression, "args", None) or [])
    return [name for part in parts if part is not None for name in _names(part)]

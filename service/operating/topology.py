"""The subcommand `topology` of `whatsapp-qr`: the broker's objects and permissions. It only translates.

Exit status: 0 done, no differences; 1 differences, or the broker is unavailable; 2 wrong usage.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.operating.commands import Json, ReadSettings, fail, print_lines, run

if TYPE_CHECKING:
    from service.operating.comparing import Difference
    from service.settings import Settings

Passwords = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Folder with one password file per user: the hashes are included"),
]
Wait = Annotated[
    float,
    typer.Option(min=0, help="Seconds to retry while RabbitMQ or its user is not available yet"),
]


def topology(read_settings: ReadSettings) -> typer.Typer:
    """Return the subcommand."""
    app = typer.Typer(help="The broker's exchanges, queues, bindings and permissions.", no_args_is_help=True)

    @app.command()
    def apply(*, wait: Wait = 0.0) -> None:
        """Declare all exchanges, queues and bindings. It is idempotent, and deletes nothing."""
        settings = read_settings()
        run(_declare(settings, wait))
        print_lines([f"everything is declared, for PARTITIONS={settings.partitions}"])

    @app.command()
    def check() -> None:
        """Report differences; with MANAGEMENT_URL, bindings and superfluous queues too. Changes nothing."""
        settings = read_settings()
        found, well = run(_looked_at(settings))
        print_lines([f"{one.what}\n  {one.remedy}" for one in found])
        if found:
            fail(f"{len(found)} of exchanges, queues, bindings and settings are not as they should be")
        print_lines([f"for PARTITIONS={settings.partitions} all exchanges and queues are {well}"])

    @app.command()
    def permissions(*, as_json: Json = False) -> None:
        """Print the broker's users and the names that each may configure, write to and read from."""
        from service.operating import rights

        for one in rights.users():
            columns = one.permission | ({"tags": " ".join(one.tags)} if one.tags else {})
            lines = [one.user, f"  {one.purpose}", *(f"  {name:<9}  {text}" for name, text in columns.items())]
            print_lines([json.dumps({"user": one.user, **columns})] if as_json else lines)

    @app.command()
    def definitions(*, passwords: Passwords = None, vhost: str = "/") -> None:
        """Print users and permissions in the format of `rabbitmqctl import_definitions`."""
        from service.operating import rights

        print_lines([json.dumps(rights.definitions(_read(passwords), vhost=vhost), indent=2)])

    return app


async def _declare(settings: "Settings", wait: float) -> None:
    from service.operating.comparing import apply

    await apply(settings.amqp_url, settings.partitions, wait=wait)


async def _looked_at(settings: "Settings") -> "tuple[list[Difference], str]":
    """Return the differences, and a description of the state if there are none."""
    from service.operating.comparing import compare, compare_size
    from service.operating.management import differences, look

    compared = await compare(settings.amqp_url, settings.partitions)
    found = [*compared.differences, *await compare_size(settings.amqp_url)]
    well = "as they should be" if compared.complete else "there; only a user that may declare can compare properties"
    if settings.management_url is None:
        return found, f"{well}; bindings and superfluous queues were not compared: set MANAGEMENT_URL"
    listed = await look(settings.management_url, settings.amqp_url)
    return [*found, *differences(listed, settings.partitions)], f"{well}, with all their bindings"


def _read(folder: Path | None) -> Mapping[str, str]:
    if folder is None:
        return {}
    from service.operating import rights

    files = ((one.user, folder / one.user) for one in rights.users())
    return {user: file.read_text(encoding="utf-8").strip() for user, file in files if file.is_file()}

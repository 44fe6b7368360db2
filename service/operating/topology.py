"""The subcommand `topology` of `whatsapp-qr`: what must exist on the broker, and who may use it. It only translates.

Exit status: 0 done, nothing differs; 1 something differs, or the broker is away; 2 wrong usage.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.operating.commands import Json, ReadSettings, fail, print_lines, run

if TYPE_CHECKING:
    from service.messaging.comparing import Difference
    from service.settings import Settings

Passwords = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, help="Folder with a file per user, its password: their hashes are put in"
    ),
]


def topology(read_settings: ReadSettings) -> typer.Typer:
    """Return the subcommand."""
    app = typer.Typer(help="What must exist on the broker, and who may use it.", no_args_is_help=True)

    @app.command()
    def apply() -> None:
        """Declare all exchanges, queues and bindings. Doing it again changes nothing; nothing is ever deleted."""
        settings = read_settings()
        run(_declare(settings))
        print_lines([f"everything is declared, for PARTITIONS={settings.partitions}"])

    @app.command()
    def check() -> None:
        """Say what is not as it should be; with MANAGEMENT_URL bindings and left-overs too. Changes nothing."""
        settings = read_settings()
        found = run(_differences(settings))
        print_lines([f"{one.what}\n  {one.remedy}" for one in found])
        if found:
            fail(f"{len(found)} of exchanges, queues and bindings are not as they should be")
        more = "" if settings.management_url else "; bindings and left-overs were not compared: set MANAGEMENT_URL"
        print_lines([f"exchanges and queues are as they should be, for PARTITIONS={settings.partitions}{more}"])

    @app.command()
    def permissions(*, as_json: Json = False) -> None:
        """Print the broker's users and what each may configure, write to and read from."""
        from service.messaging import rights

        for one in rights.users():
            columns = one.permission | ({"tags": " ".join(one.tags)} if one.tags else {})
            lines = [one.user, f"  {one.purpose}", *(f"  {name:<9}  {text}" for name, text in columns.items())]
            print_lines([json.dumps({"user": one.user, **columns})] if as_json else lines)

    @app.command()
    def definitions(*, passwords: Passwords = None, vhost: str = "/") -> None:
        """Print users and permissions as `rabbitmqctl import_definitions` takes them."""
        from service.messaging import rights

        print_lines([json.dumps(rights.definitions(_read(passwords), vhost=vhost), indent=2)])

    return app


async def _declare(settings: "Settings") -> None:
    from service.messaging.comparing import apply

    await apply(settings.amqp_url, settings.partitions)


async def _differences(settings: "Settings") -> "list[Difference]":
    from service.messaging.comparing import compare

    if settings.management_url is None:
        return await compare(settings.amqp_url, settings.partitions)
    from service.messaging.management import differences, look

    return differences(await look(settings.management_url, settings.amqp_url), settings.partitions)


def _read(folder: Path | None) -> Mapping[str, str]:
    if folder is None:
        return {}
    from service.messaging import rights

    files = ((one.user, folder / one.user) for one in rights.users())
    return {user: file.read_text(encoding="utf-8").strip() for user, file in files if file.is_file()}

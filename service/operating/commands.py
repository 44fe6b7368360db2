"""The subcommands `dead-letters` and `messages` of `whatsapp-qr`. They only translate.

Exit status: 0 done; 1 something failed, was not found, or a part is unavailable; 2 wrong usage.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from service.errors import BrokerUnavailable, DatabaseUnavailable, Rejected

if TYPE_CHECKING:
    from service.operating.dead_letters import DeadLetters, Result, Selection
    from service.operating.messages import Messages
    from service.settings import Settings
    from whatsapp_qr_contracts.commands import MessageCommand

T = TypeVar("T")
ReadSettings = Callable[[], "Settings"]

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids, or their beginnings")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Id, or its beginning")]
Reason = Annotated[str | None, typer.Option(help="Only those with this reason")]
All = Annotated[bool, typer.Option("--all", help="All of them")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the intended actions")]
Json = Annotated[bool, typer.Option("--json", help="JSON, one object per line")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many, the newest")]
Secrets = Annotated[bool, typer.Option("--secrets", help="Show QR codes too: with one, anyone can link the account")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask")]


def dead_letters(read_settings: ReadSettings) -> typer.Typer:
    """Return the subcommand `dead-letters`."""
    app = typer.Typer(help="Messages that could not be processed: list, show, replay, discard.", no_args_is_help=True)
    _add_looking(app, read_settings)
    _add_acting(app, read_settings)
    return app


def _add_looking(app: typer.Typer, read_settings: ReadSettings) -> None:
    @app.command("list")
    def list_(*, reason: Reason = None, limit: Limit = 50, as_json: Json = False) -> None:
        """List dead letters, the newest first, without their content."""
        from service.operating import showing

        async def newest(desk: "DeadLetters") -> list[str]:
            rows = await desk.newest(reason=reason, limit=limit)
            return [json.dumps(showing.summary(row)) for row in rows] if as_json else showing.table(rows)

        print_lines(run(_with_dead_letters(read_settings, newest)))

    @app.command()
    def show(dead_letter: Id, *, as_json: Json = False, secrets: Secrets = False) -> None:
        """Show one with its body, which contains texts of customers and callers."""
        from service.operating import showing

        async def one(desk: "DeadLetters") -> list[str]:
            row = await desk.one(dead_letter)
            if as_json:
                return [json.dumps(showing.everything(row, secrets=secrets))]
            return showing.described(row, secrets=secrets)

        print_lines(run(_with_dead_letters(read_settings, one)))


def _add_acting(app: typer.Typer, read_settings: ReadSettings) -> None:
    @app.command()
    def replay(
        ids: Ids = None,
        *,
        reason: Reason = None,
        every: All = False,
        dry_run: DryRun = False,
        as_json: Json = False,
    ) -> None:
        """Publish messages again as they were, to their origin; by reason or all: those not replayed yet."""
        selection = _selection(ids, reason, every=every)
        _report_each(read_settings, lambda desk: desk.replay(selection, dry_run=dry_run), as_json=as_json)

    @app.command()
    def discard(
        ids: Ids = None,
        *,
        reason: Reason = None,
        every: All = False,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: Json = False,
    ) -> None:
        """Delete dead letters permanently, even replayed ones."""
        selection = _selection(ids, reason, every=every)
        if every and not (yes or dry_run):
            typer.confirm("Delete all dead letters permanently?", abort=True, err=True)
        _report_each(read_settings, lambda desk: desk.discard(selection, dry_run=dry_run), as_json=as_json)


def messages(read_settings: ReadSettings) -> typer.Typer:
    """Return the subcommand `messages`."""
    app = typer.Typer(help="Single messages to customers.", no_args_is_help=True)

    @app.command()
    def retry(message: Id) -> None:
        """Send a FAILED message again, behind all that wait now."""
        from whatsapp_qr_contracts.commands import RetryMessage

        _carry_out(read_settings, RetryMessage, message, "waits to be sent again")

    @app.command()
    def cancel(message: Id) -> None:
        """Cancel a message that still waits."""
        from whatsapp_qr_contracts.commands import CancelMessage

        _carry_out(read_settings, CancelMessage, message, "is cancelled")

    return app


def _selection(ids: list[str] | None, reason: str | None, *, every: bool) -> "Selection":
    from service.operating.dead_letters import Selection

    if sum(map(bool, (ids, reason, every))) != 1:
        raise typer.BadParameter("give one of: ids, --reason, or --all")
    return Selection(tuple(ids or ()), reason)


def _report_each(
    read_settings: ReadSettings, act: Callable[["DeadLetters"], "AsyncIterator[Result]"], *, as_json: bool
) -> None:
    async def each(desk: "DeadLetters") -> int:
        failures = 0
        async for result in act(desk):
            failures += result.failed
            sentence = f"{result.id}  {result.outcome}" + (f"  {result.detail}" if result.detail else "")
            print_lines([json.dumps(asdict(result)) if as_json else sentence])
        return failures

    if run(_with_dead_letters(read_settings, each)):
        raise typer.Exit(1)


def _carry_out(read_settings: ReadSettings, kind: "type[MessageCommand]", prefix: str, done: str) -> None:
    from service.operating.dead_letters import find
    from service.persistence.tables import MessageRow

    async def carry_out(desk: "Messages") -> str | None:
        message_id = await find(desk.database, MessageRow, prefix)
        return str(message_id) if await desk.carry_out(kind, message_id) else None

    message_id = run(_with_messages(read_settings, carry_out))
    if message_id is None:
        fail("the command waits in its queue: is the conversation consumer running?")
    print_lines([f"{message_id} {done}"])


async def _with_dead_letters(read_settings: ReadSettings, work: Callable[["DeadLetters"], Awaitable[T]]) -> T:
    from service.operating.dead_letters import DeadLetters
    from service.operating.replaying import Replayer

    settings = read_settings()
    replayer = Replayer(settings.amqp_url, settings.partitions)
    async with _parts(settings) as (database, publisher), replayer:
        return await work(DeadLetters(database, publisher, replayer))


async def _with_messages(read_settings: ReadSettings, work: Callable[["Messages"], Awaitable[T]]) -> T:
    from service.operating.messages import Messages

    async with _parts(read_settings()) as (database, publisher):
        return await work(Messages(database, publisher))


@asynccontextmanager
async def _parts(settings: "Settings") -> AsyncIterator[tuple[Any, Any]]:
    from service.messaging.publishing import Publisher
    from service.persistence.database import Database

    database, publisher = Database(settings.database_url), Publisher(settings.amqp_url, settings.partitions)
    try:
        yield database, publisher
    finally:
        await publisher.close()
        await database.close()


def run(work: Awaitable[T]) -> T:
    """Run the work; if it fails, print a sentence and end with status 1."""

    async def done() -> T:
        return await work

    try:
        return asyncio.run(done())
    except Rejected as error:
        fail(error.detail)
    except DatabaseUnavailable as error:
        fail(f"{error.detail}. Is DATABASE_URL right, the database running and migrated (whatsapp-qr migrate)?")
    except BrokerUnavailable as error:
        fail(error.detail if error.refused else f"{error.detail}. Is AMQP_URL right and RabbitMQ running?")


def fail(sentence: str) -> NoReturn:
    """Print the reason of a failure, and end with status 1."""
    typer.echo(f"whatsapp-qr: {sentence}", err=True)
    raise typer.Exit(1)


def print_lines(lines: list[str]) -> None:
    """Print lines."""
    for line in lines:
        typer.echo(line)

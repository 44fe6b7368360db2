"""The schema's history. `upgrade` brings a database to its end; doing it again changes nothing."""

import re
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, ProgrammingError, SQLAlchemyError

from service.errors import ConfigurationError
from service.persistence.schema import head

log = structlog.get_logger()

# One migration at a time, whoever starts it: the key of PostgreSQL's advisory lock.
LOCK_KEY = 0x57_41_51_52
LOCK_SECONDS = 10
_UNKNOWN = re.compile(r"identified by '([0-9]+)'")
# What PostgreSQL says, by SQLSTATE, and what helps. A migration happens wholly or not at all.
_REMEDIES = {
    "42501": "Run it as the user who owns the tables; nothing was changed",
    "55P03": "Something uses a table for long; nothing was changed: run it again, when less is going on",
    "3D000": "Create it first, for example with createdb",
}


def configuration(url: str) -> Config:
    """Return Alembic's configuration for a database."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config


def upgrade(url: str) -> None:
    """Bring the database to the present schema; a SQLite file is made where there is none.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, OSError: the database is away or damaged.
    """
    command.upgrade(configuration(url), "head")


def upgrade_or_explain(url: str) -> None:
    """Do the same for somebody at a terminal. A database of a newer version is left as it is: this one runs with it.

    Raises:
        ConfigurationError: the database cannot be used; the sentence names it, without the password, and a remedy.
    """
    where = url.rpartition("@")[2].rpartition("///")[2]
    try:
        upgrade(url)
    except CommandError as error:
        if (found := _UNKNOWN.search(str(error))) is None:
            raise
        if found[1] < head():
            raise ConfigurationError(
                f"The database {where} (DATABASE_URL) has the schema {found[1]}, too old for this version. Bring it to"
                " 0004 first, as docs/operations.md says (From before 0.1.0), or start afresh without it"
            ) from error
        log.warning("schema_is_newer", found=found[1], known=head())
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().rstrip(".")
        message = f"The database {where} (DATABASE_URL) cannot be used: {reason}. {_remedy(url, error)}"
        raise ConfigurationError(message) from error


def _remedy(url: str, error: SQLAlchemyError | OSError) -> str:
    if url.startswith("sqlite"):
        return "Restore it from a backup, or start afresh by moving it away"
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else getattr(error, "sqlstate", None)
    if state in _REMEDIES:
        return _REMEDIES[state]
    if isinstance(error, ProgrammingError):
        return "Something is there that no migration made, or is missing; nothing was changed. Compare it with a backup"
    return "Is PostgreSQL running there, and does it let this user in?"

"""The migrations of the schema. `upgrade` brings a database to the newest; it is idempotent."""

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

# One migration at a time, regardless of the process: the key of PostgreSQL's advisory lock.
LOCK_KEY = 0x57_41_51_52
LOCK_SECONDS = 10
_UNKNOWN = re.compile(r"identified by '([0-9]+)'")
# Remedies by PostgreSQL's SQLSTATE. A migration is applied completely or not at all.
_REMEDIES = {
    "42501": "Run it as the user that owns the tables; nothing was changed",
    "55P03": "Another transaction uses a table for too long; nothing was changed: run it again when there is less load",
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
    """Bring the database to the present schema; a missing SQLite file is created.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable or damaged.
    """
    command.upgrade(configuration(url), "head")


def upgrade_or_explain(url: str) -> None:
    """Do the same for a user at a terminal. A database of a newer version stays unchanged: this version runs with it.

    Raises:
        ConfigurationError: the database cannot be used; the message names it, without the password, and a remedy.
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
                " 0004 first, as described in docs/operations.md (From before 0.1.0), or start without it"
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
        return (
            "An object exists that no migration created, or one is missing; nothing was changed. Compare with a backup"
        )
    return "Is PostgreSQL running there, and may this user connect?"

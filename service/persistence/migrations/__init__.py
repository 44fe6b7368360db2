"""The schema's history. `upgrade` brings a database to its end; doing it again changes nothing."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import SQLAlchemyError

from service.errors import ConfigurationError

# One migration at a time, whoever starts it: the key of PostgreSQL's advisory lock.
LOCK_KEY = 0x57_41_51_52


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
    """Do the same for somebody at a terminal.

    Raises:
        ConfigurationError: the database cannot be used; the sentence names it, without the password, and a remedy.
    """
    try:
        upgrade(url)
    except (SQLAlchemyError, OSError) as error:
        where = url.rpartition("@")[2].rpartition("///")[2]
        reason = str(getattr(error, "orig", None) or error).strip().rstrip(".")
        if url.startswith("sqlite"):
            remedy = "Restore it from a backup, or start afresh by moving it away"
        elif "does not exist" in reason:
            remedy = "Create it first, for example with createdb"
        else:
            remedy = "Is PostgreSQL running there, and does it let this user in?"
        message = f"The database {where} (DATABASE_URL) cannot be used: {reason}. {remedy}"
        raise ConfigurationError(message) from error

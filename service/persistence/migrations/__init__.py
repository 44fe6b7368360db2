"""The schema's history. `upgrade` brings a database to its end; doing it again changes nothing."""

from pathlib import Path

from alembic import command
from alembic.config import Config

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

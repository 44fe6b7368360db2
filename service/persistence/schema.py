"""Checks whether the database has the schema of this version, or a newer one: migrations only add (expand)."""

import time
from functools import cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.errors import DatabaseUnavailable
from service.persistence.database import Database

_GOOD_SECONDS = 30.0
_LOOK_SECONDS = 2.0


@cache
def head() -> str:
    """Return the revision of this version, from the names of the migration files, without loading Alembic."""
    versions = Path(__file__).parent / "migrations" / "versions"
    return max(file.name.partition("_")[0] for file in versions.glob("[0-9]*_*.py"))


class Schema:
    """The schema of a database; a good result is cached for half a minute."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._good_until = float("-inf")

    async def fault(self) -> str:
        """Return the fault and its remedy, in a sentence; empty if there is none."""
        if time.monotonic() < self._good_until:
            return ""
        try:
            found = await self._database.read(_revision, seconds=_LOOK_SECONDS)
        except DatabaseUnavailable as error:
            return error.detail
        if found < head():
            return f"the database has the schema {found or '(none)'}, not {head()}: run whatsapp-qr migrate"
        self._good_until = time.monotonic() + _GOOD_SECONDS
        return ""


async def _revision(tx: AsyncSession) -> str:
    return str((await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar() or "")

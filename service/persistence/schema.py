"""Whether the database has the schema that this version needs. A newer one does too: migrations only add (expand)."""

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
    """Return the revision that this version needs. The names of the files say it, without the weight of Alembic."""
    versions = Path(__file__).parent / "migrations" / "versions"
    return max(file.name.partition("_")[0] for file in versions.glob("[0-9]*_*.py"))


class Schema:
    """The schema of a database; that it is as it should be is believed for half a minute."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._good_until = float("-inf")

    async def fault(self) -> str:
        """Return what is wrong with it and what to do, in a sentence; empty where nothing is."""
        if time.monotonic() < self._good_until:
            return ""
        try:
            found = await self._database.read(_revision, seconds=_LOOK_SECONDS)
        except DatabaseUnavailable as error:
            return error.detail
        if found < head():
            return f"the database has the schema {found or 'of nobody'}, not {head()}: run whatsapp-qr migrate"
        self._good_until = time.monotonic() + _GOOD_SECONDS
        return ""


async def _revision(tx: AsyncSession) -> str:
    return str((await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar() or "")

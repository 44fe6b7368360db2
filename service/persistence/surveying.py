"""Stored sessions, for the comparison with the gateway's, read in pages: there may be very many.

The conditions of the partial indexes are literals, not bound parameters: otherwise the indexes are not used.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

from sqlalchemy import ColumnElement, TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from service.domain.reconciling import Stored
from service.persistence.database import Database, clock
from service.persistence.sweeping import tried_in_vain
from service.persistence.tables import ENDED, LIVE, SessionRow

PAGE = 500
_RECENTLY = timedelta(days=1)

Condition = ColumnElement[bool] | TextClause


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A stored session, for the comparison with the gateway's."""

    session_id: str
    chatbot_id: UUID
    version: int
    stored: Stored


@dataclass(slots=True)
class Survey:
    """The sessions that were found."""

    sessions: list[Surveyed]
    in_vain: dict[str, UUID]
    """By session: the first message of its lane, if sending it was tried and has not succeeded."""


async def survey(database: Database, names: Collection[str] | None) -> Survey:
    """Return the sessions that are wanted or not DISCONNECTED, and those of these names, if they exist.

    If `names` is None: instead of those, the sessions that have ended within the last day.
    """
    found = Survey([], {})
    await _read_all(database, found, _live)
    if names is None:
        await _read_all(database, found, _ended)
    others = sorted(set(names or ()) - {one.session_id for one in found.sessions})
    for first in range(0, len(others), PAGE):
        await _read(database, found, partial(_named, names=others[first : first + PAGE]))
    return found


async def _read_all(database: Database, found: Survey, page_after: Callable[..., Awaitable[list[Surveyed]]]) -> None:
    page = await _read(database, found, partial(page_after, after=""))
    while len(page) == PAGE:
        page = await _read(database, found, partial(page_after, after=page[-1].session_id))


async def _read(
    database: Database, found: Survey, read: Callable[[AsyncSession], Awaitable[list[Surveyed]]]
) -> list[Surveyed]:
    async def work(tx: AsyncSession) -> tuple[list[Surveyed], dict[str, UUID]]:
        page = await read(tx)
        return page, await tried_in_vain(tx, [one.session_id for one in page])

    page, in_vain = await database.read(work)
    found.sessions += page
    found.in_vain |= in_vain
    return page


async def _live(tx: AsyncSession, *, after: str) -> list[Surveyed]:
    return await _page(tx, text(f"({LIVE})"), col(SessionRow.session_id) > after)


async def _ended(tx: AsyncSession, *, after: str) -> list[Surveyed]:
    since = select(clock(tx, -_RECENTLY)).scalar_subquery()
    return await _page(tx, text(ENDED), col(SessionRow.moved_at) >= since, col(SessionRow.session_id) > after)


async def _named(tx: AsyncSession, *, names: Collection[str]) -> list[Surveyed]:
    return await _page(tx, col(SessionRow.session_id).in_(names))


async def _page(tx: AsyncSession, *where: Condition) -> list[Surveyed]:
    row = SessionRow
    query = select(
        col(row.session_id),
        col(row.chatbot_id),
        col(row.version),
        col(row.status),
        col(row.wanted),
        col(row.moved_at),
        col(row.status_reason),
        col(row.phone_number),
        col(row.qr_code),
        clock(tx),
    ).where(*where)
    return [
        Surveyed(session_id, chatbot_id, version, Stored(status, wanted, (at - moved_at).total_seconds(), *more))
        for session_id, chatbot_id, version, status, wanted, moved_at, *more, at in await tx.execute(
            query.order_by(col(row.session_id)).limit(PAGE)
        )
    ]

"""Pages: walking them by cursor shows every row once, in the order that is promised."""

import base64
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Rejected
from service.persistence import reading
from service.persistence.database import Database
from service.persistence.reading import Place, cursor_of, place_of
from service.persistence.tables import ConversationRow
from tests.component.rows import a_session, all_of, change, enqueue, receive

AT = datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 200])
async def test_walking_the_messages_shows_each_once_oldest_first(database: Database, limit: int) -> None:
    """Through the cursor as text, also where several messages have the same time."""
    session = await a_session(database)
    stored = [await receive(database, session, f"A{n}") for n in range(4)]
    await enqueue(database, session)
    for one in stored[1:3]:
        await change(database, one, created_at=stored[0].created_at)
    shown, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        assert pages < 10
        after = place_of(cursor)
        rows, end = await database.read(
            lambda tx, after=after: reading.messages_page(tx, stored[0].conversation_id, limit=limit, after=after)
        )
        assert len(rows) <= limit
        shown, cursor, pages = [*shown, *rows], cursor_of(end), pages + 1
    assert len({row.id for row in shown}) == len(shown) == 5
    assert [row.created_at for row in shown] == sorted(row.created_at for row in shown)
    assert pages == -(-5 // limit)


async def test_walking_the_conversations_shows_each_once_newest_first(database: Database) -> None:
    """Of one chatbot alone; a page that is exactly full and the last has no next cursor."""
    session, other = await a_session(database), await a_session(database)
    for n in range(6):
        stored = await receive(database, session, f"A{n}", **{"from": f"549110000000{n}"})
        if n in {2, 3}:
            [conversation] = await all_of(database, ConversationRow, id=stored.conversation_id)
            await change(database, conversation, last_message_at=AT)
    await receive(database, other, "A1")
    shown, after, pages = [], None, 0
    while pages == 0 or after:
        assert pages < 10
        rows, after = await database.read(
            lambda tx, after=after: reading.conversations_page(tx, session.chatbot_id, limit=3, after=after)
        )
        shown, pages = [*shown, *rows], pages + 1
    assert pages == 2
    assert len({row.id for row in shown}) == len(shown) == 6
    assert [row.last_message_at for row in shown] == sorted((row.last_message_at for row in shown), reverse=True)


async def test_an_empty_page_has_no_cursor(database: Database) -> None:
    """Of a chatbot that nobody knows, and of a conversation that nobody knows."""
    page = await database.read(lambda tx: reading.conversations_page(tx, uuid4(), limit=5, after=None))
    assert page == await database.read(lambda tx: reading.messages_page(tx, uuid4(), limit=5, after=None)) == ([], None)


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_is_its_place(at: datetime, row_id: UUID) -> None:
    """To the microsecond; it needs no escaping in a URL, and never more than the 200 characters that are accepted."""
    cursor = cursor_of((at, row_id))
    assert cursor is not None
    assert place_of(cursor) == (at, row_id)
    assert len(cursor) <= 200


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "zzz", "é", "%%%%", "AAAA"),
        *map(encoded, ("", "null", "1", "{}", "[]", "[1, 2]", '["2026-01-01T00:00:00+00:00"]', "[" * 60)),
        *map(encoded, (f'["soon", "{UUID(int=1)}"]', f'[["a"], "{UUID(int=1)}"]')),
        encoded('["2026-01-01T00:00:00+00:00", "x"]'),
        *map(encoded, ('{"a": 1, "b": 2}', '["2026-01-01T00:00:00+00:00", 7]')),
    ],
)
def test_a_cursor_that_no_page_gave_is_refused(cursor: str) -> None:
    """With a sentence, never with a traceback."""
    with pytest.raises(Rejected) as caught:
        place_of(cursor)
    assert caught.value.code == "invalid_cursor"


@pytest.mark.parametrize("at", ["2026-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_an_invented_place_breaks_nothing(database: Database, at: str) -> None:
    """A time without zone or at the end of all times: refused or answered, by both databases."""
    session = await a_session(database)
    try:
        place: Place | None = place_of(encoded(f'["{at}", "{uuid4()}"]'))
    except Rejected:
        return
    rows, _ = await database.read(lambda tx: reading.conversations_page(tx, session.chatbot_id, limit=5, after=place))
    assert rows == await all_of(database, type(session), chatbot_id=uuid4())

"""The dead letters' table on both databases: one row per message, every death counted once, nothing refused."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from service.domain.dead_letters import DeadLetter, Original
from service.errors import Rejected
from service.operating.dead_letters import find
from service.persistence import dead_letters
from service.persistence.database import Database
from service.persistence.dead_letters import DeadLetters
from service.persistence.tables import DeadLetterRow, now
from tests.component.rows import all_of, change

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def a_death(message_id: str = "m", body: bytes = b"no json", **fields: Any) -> DeadLetter:
    original = Original(
        body=body,
        exchange=fields.pop("exchange", "whatsapp-qr.commands"),
        routing_key=fields.pop("routing_key", "message.send.0"),
        properties={"messageId": message_id, "type": "message.send"} | fields.pop("properties", {}),
        headers=fields.pop("headers", {"h": 1}),
    )
    defaults: dict[str, Any] = {
        "reason": "invalid_json",
        "detail": "why",
        "source": "whatsapp-qr.conversations",
        "death_id": "first",
        "redelivered": False,
        "died_at": AT,
    }
    return DeadLetter(original, **(defaults | fields))


@pytest.fixture
def store(database: Database) -> DeadLetters:
    return DeadLetters(database)


async def test_a_dead_letter_is_kept_as_it_was(database: Database, store: DeadLetters) -> None:
    """Its bytes, properties, headers, origin, reason and time; the original can be taken out again."""
    death = a_death(properties={"contentType": "text/plain", "expiration": 5.0}, headers={"a": {"$bytes": "AA=="}})
    await store.keep(death)
    [row] = await all_of(database, DeadLetterRow)
    assert (row.id, row.reason, row.detail, row.source) == (death.id, "invalid_json", "why", death.source)
    assert (row.message_id, row.type, row.attempts, row.died_at) == ("m", "message.send", 1, AT)
    assert (row.replayed_at, row.burial) == (None, "first")
    assert dead_letters.original_of(row) == death.original


async def test_a_repetition_does_not_count(database: Database, store: DeadLetters) -> None:
    """A dead letter that is delivered again, also at the same time in two processes, is one death of one message."""
    await asyncio.gather(*(store.keep(replace(a_death(), redelivered=bool(n))) for n in range(4)))
    [row] = await all_of(database, DeadLetterRow)
    assert row.attempts == 1


async def test_a_message_that_dies_again_stays_one_row(database: Database, store: DeadLetters) -> None:
    """The row counts it, says why it died last, and waits for a replay again."""
    await store.keep(a_death())
    [row] = await all_of(database, DeadLetterRow)
    await database.transact(lambda tx: dead_letters.mark_replayed(tx, row, now()))
    await store.keep(a_death(death_id="second", reason="handler_failed", detail="else", headers={}))
    [row] = await all_of(database, DeadLetterRow)
    assert (row.attempts, row.reason, row.detail, row.replayed_at) == (2, "handler_failed", "else", None)
    assert row.burial == "second"
    assert row.headers == {}


async def test_a_death_during_a_replay_is_not_hidden(database: Database, store: DeadLetters) -> None:
    """A message that has died again before its replay is noted is not noted as replayed."""
    await store.keep(a_death())
    [seen] = await all_of(database, DeadLetterRow)
    await store.keep(a_death(death_id="second"))
    await database.transact(lambda tx: dead_letters.mark_replayed(tx, seen, now()))
    [row] = await all_of(database, DeadLetterRow)
    assert (row.attempts, row.replayed_at) == (2, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"message_id": "nul\x00", "detail": "\x00", "reason": "a\x00b", "source": "\x00"},
        {"headers": {"nul\x00": "\x00"}, "properties": {"type": "\x00", "correlationId": "\x00"}},
        {"exchange": "\x00", "routing_key": "\x00"},
        {"message_id": "m" * 300, "reason": "r" * 300, "source": "s" * 300, "death_id": "b" * 300},
        {"detail": "\ud83d", "reason": "\ud83d"},
        {"body": bytes(range(256)) * 1000},
        {"body": b""},
        {"headers": {"deep": "x" * 100_000}, "detail": "d" * 100_000},
        {"headers": {"no json": object()}},
        {"headers": {"nan": float("nan")}},
    ],
)
async def test_nothing_is_refused(database: Database, store: DeadLetters, fields: dict[str, Any]) -> None:
    """Whatever a dead letter holds it is stored, and the next one too; texts for people are cut, bytes never."""
    death = a_death(**fields)
    await store.keep(death)
    await store.keep(a_death("next"))
    rows = {row.id: row for row in await all_of(database, DeadLetterRow)}
    assert len(rows) == 2
    row = rows[death.id]
    assert row.body == death.original.body
    assert all(len(text) <= 255 for text in (row.reason, row.source, row.message_id))
    again = dead_letters.original_of(row)
    assert (again.exchange, again.routing_key) == (death.original.exchange, death.original.routing_key)
    assert again.properties == death.original.properties


@pytest.mark.parametrize(
    "fields",
    [
        {"death_id": "b\x00"},
        {"properties": {"priority": float("nan"), "correlationId": "c"}},
        {"properties": {"timestamp": object(), "correlationId": "c"}},
        {"message_id": "half \ud800"},
    ],
)
async def test_what_is_refused_of_a_forged_one_is_left_out(
    database: Database, store: DeadLetters, fields: dict[str, Any]
) -> None:
    """Its bytes are kept, with the ids by which people look for it; a repetition does not count."""
    death = a_death(**fields)
    for _ in range(2):
        await store.keep(death)
    [row] = await all_of(database, DeadLetterRow)
    assert (row.body, row.type, row.attempts) == (death.original.body, "message.send", 1)
    assert row.message_id.startswith(death.original.text("messageId")[:1])
    assert row.correlation_id == death.original.text("correlationId")


async def test_ids_may_be_shortened(database: Database, store: DeadLetters) -> None:
    """A beginning of an id stands for it where it is the only one; what stands for nothing is said."""
    await store.keep(a_death())
    [row] = await all_of(database, DeadLetterRow)
    for prefix in (str(row.id), row.id.hex, row.id.hex[:8].upper(), str(row.id)[:10], row.id.hex[:1]):
        assert await find(database, DeadLetterRow, prefix) == row.id
    other = f"{(int(row.id.hex[0], 16) + 1) % 16:x}"
    for bad in (other, "", "-", "xyz", "0" * 33, "%"):
        with pytest.raises(Rejected) as refused:
            await find(database, DeadLetterRow, bad)
        assert refused.value.code == "unknown_id"
    for number in range(17):
        await store.keep(a_death(f"m{number}"))
    ids = [found.id.hex[0] for found in await all_of(database, DeadLetterRow)]
    twice = next(digit for digit in ids if ids.count(digit) > 1)
    with pytest.raises(Rejected) as refused:
        await find(database, DeadLetterRow, twice)
    assert refused.value.code == "ambiguous_id"


async def test_lists_are_in_order(database: Database, store: DeadLetters) -> None:
    """The newest first for people; in the order of the deaths for a replay, without what was replayed."""
    for day in (2, 1, 3):
        await store.keep(a_death(f"m{day}", died_at=AT.replace(day=day), reason="odd" if day % 2 else "even"))
    newest = await database.read(lambda tx: dead_letters.newest(tx, reason=None, limit=2))
    assert [row.message_id for row in newest] == ["m3", "m2"]
    odd = await database.read(lambda tx: dead_letters.newest(tx, reason="odd", limit=9))
    assert [row.message_id for row in odd] == ["m3", "m1"]
    await change(database, newest[1], replayed_at=AT)
    until = partial(dead_letters.ids_with, reason=None, until=AT.replace(day=3))
    waiting = await database.read(partial(until, waiting=True))
    assert waiting == [(row.died_at, row.id) for row in odd[::-1]]
    assert await database.read(partial(until, waiting=True, after=waiting[0])) == waiting[1:]
    assert len(await database.read(partial(until, waiting=False))) == 3
    assert len(await database.read(partial(until, waiting=False, until=AT.replace(day=2)))) == 2

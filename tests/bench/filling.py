"""Fills a migrated database with very many rows, in a few statements that both databases understand."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Integer, bindparam, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.domain.identities import key_hash
from service.persistence.columns import UtcDateTime
from service.persistence.database import on_sqlite
from service.persistence.records import table_of
from service.persistence.tables import ConversationRow, LaneRow, SessionRow


@dataclass(frozen=True)
class Rows:
    """How many.

    Args:
        messages: all of them; what is neither parked nor waiting has been read.
        sessions: all of them, with a lane and a conversation each.
        live: the first of them are CONNECTED.
        parked: messages that wait in the lane of the first session.
        waiting: messages that wait in the lane of each live session besides.
    """

    messages: int
    sessions: int
    live: int
    parked: int
    waiting: int = 2


_NUMBERS = "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < :last)"
_CHATBOTS = "INSERT INTO chatbots (id, registered_at) {numbers} SELECT {chatbot}, :at FROM numbers"
_SESSIONS = """
INSERT INTO sessions (id, chatbot_id, session_id, status, wanted, version, told_version, correlation_id, key_hash,
 lane_end, moved_at, created_at, updated_at)
{numbers} SELECT {session}, {chatbot}, {name},
 CASE WHEN i <= :live THEN 'CONNECTED' ELSE 'DISCONNECTED' END, i <= :live, 1, 1, '', i, :messages,
 CASE WHEN i % 100 = 0 THEN :at ELSE :old END, :at, :at FROM numbers
"""
_LANES = """
INSERT INTO lanes (session_id, key_hash, wake_at, deferrals)
{numbers} SELECT {name}, i, CASE WHEN i <= :live AND :waiting > 0 THEN :at END,
 CASE WHEN i % 100 = 0 THEN 1 ELSE 0 END FROM numbers
"""
_CONVERSATIONS = """
INSERT INTO conversations (id, chatbot_id, channel, external_user_id, status, last_message_at, sequence_end, version,
 told_version, correlation_id, key_hash, changed_at, created_at)
{numbers} SELECT {conversation}, {chatbot}, 'WHATSAPP_QR', '549', 'ACTIVE', :at, 0, 1, 1, '', i, :at, :at
FROM numbers
"""
_MESSAGES = """
INSERT INTO messages (id, conversation_id, chatbot_id, session_id, role, content, delivery_status, whatsapp_message_id,
 key_hash, correlation_id, caller_metadata, external_user_id, lane_number, attempts, version, told_version, handed_over,
 expires_at, changed_at, created_at)
{numbers}, placed(n, i) AS (SELECT i, CASE WHEN i <= :parked THEN 1 ELSE 1 + i % :live END FROM numbers)
SELECT {message}, {conversation}, {chatbot}, {name}, 'ASSISTANT', 'hello',
 CASE WHEN n <= :parked + :waiting * :live THEN 'PENDING' ELSE 'READ' END, 'W' || n, i, 'c', '{{}}', '549', n, 0, 1, 1,
 true, CASE WHEN n <= :parked + :waiting * :live THEN :soon END, :old, :old FROM placed
"""
_SESSION_ID = "'session_00000000-0000-0000-0000-' || {} || '_1700000000000'"
_FIRST_IDS = {"chatbot": 0, "session": 10_000_000, "conversation": 20_000_000, "message": 100_000_000}


def chatbot_of(number: int) -> str:
    """Return the id of the chatbot of a session, by its number from 1."""
    return str(UUID(int=number))


def session_of(number: int) -> str:
    """Return the public id of a session, by its number from 1."""
    return f"session_{chatbot_of(number)}_1700000000000"


async def fill(tx: AsyncSession, rows: Rows) -> None:
    """Store the rows, with statistics where the database keeps some by itself."""
    sqlite = on_sqlite(tx)
    number = "printf('%032x', {} + {})" if sqlite else "CAST(lpad(to_hex({} + {}), 32, '0') AS uuid)"
    parts = {name: number.format("n" if name == "message" else "i", first) for name, first in _FIRST_IDS.items()}
    parts["name"] = _SESSION_ID.format("printf('%012x', i)" if sqlite else "lpad(to_hex(i), 12, '0')")
    at = datetime.now(UTC)
    moments = {"at": at, "old": at - timedelta(days=2), "soon": at + timedelta(hours=1)}
    numbers = {"live": rows.live, "messages": rows.messages, "parked": rows.parked, "waiting": rows.waiting}
    for pattern in (_CHATBOTS, _SESSIONS, _LANES, _CONVERSATIONS, _MESSAGES):
        statement = pattern.format(numbers=_NUMBERS, **parts)
        given = moments | numbers | {"last": rows.messages if pattern is _MESSAGES else rows.sessions}
        used = [
            bindparam(name, value, UtcDateTime() if name in moments else Integer())
            for name, value in given.items()
            if f":{name}" in statement
        ]
        await tx.execute(text(statement).bindparams(*used))
    await _hash_keys(tx, rows.sessions)
    if not sqlite:
        await tx.execute(text("ANALYZE"))


async def _hash_keys(tx: AsyncSession, sessions: int) -> None:
    """Give rows the hash of their chatbot's key, which SQL cannot compute: it says who tells and sends them."""
    of = {session_of(number): chatbot_of(number) for number in range(1, sessions + 1)}
    given = [{"name": name, "chatbot": UUID(chatbot), "hash": key_hash(chatbot)} for name, chatbot in of.items()]
    connection = await tx.connection()
    by_name = "session_id", "name"
    found_by = ((SessionRow, *by_name), (LaneRow, *by_name), (ConversationRow, "chatbot_id", "chatbot"))
    for row, column, key in found_by:
        statement = update(table_of(row)).where(table_of(row).c[column] == bindparam(key))
        parameters = [{key: one[key], "hash": one["hash"]} for one in given]
        await connection.execute(statement.values(key_hash=bindparam("hash")), parameters)

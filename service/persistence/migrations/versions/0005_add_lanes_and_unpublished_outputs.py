"""Rows record their unpublished outputs, per destination; lanes have their own rows.

It needs a full stop: processes of the previous version must not run during or after it.
"""

from uuid import uuid5
from zlib import crc32

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_HASHED = ("sessions", "commands", "conversations", "messages")
_UNTOLD = "told_version < version"
# Name, table, columns and condition of the partial indexes.
_INDEXES = (
    ("sessions_untold", "sessions", "session_id", _UNTOLD),
    ("commands_untold", "commands", "created_at", _UNTOLD),
    ("conversations_untold", "conversations", "chatbot_id", _UNTOLD),
    ("messages_untold", "messages", "conversation_id created_at", _UNTOLD),
    ("messages_to_hand_over", "messages", "conversation_id sequence", "NOT handed_over AND role = 'USER'"),
    ("messages_to_enqueue", "messages", "session_id lane_number", "NOT handed_over AND role = 'ASSISTANT'"),
    ("messages_expiring", "messages", "expires_at", "delivery_status = 'PENDING' AND expires_at IS NOT NULL"),
    ("lanes_awake", "lanes", "wake_at", "wake_at IS NOT NULL"),
)


def upgrade() -> None:
    for table in _HASHED:
        op.add_column(table, sa.Column("key_hash", sa.BigInteger(), nullable=False, server_default="0"))
    for table in ("sessions", "conversations"):
        op.add_column(table, sa.Column("correlation_id", sa.String(), nullable=False, server_default=""))
    for table in ("commands", "conversations", "messages"):
        for column in ("version", "told_version"):
            op.add_column(table, sa.Column(column, sa.Integer(), nullable=False, server_default="1"))
    op.add_column("messages", sa.Column("handed_over", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_table(
        "lanes",
        sa.Column("session_id", sa.Text(), primary_key=True),
        sa.Column("key_hash", sa.BigInteger(), nullable=False, server_default="0"),
        *(sa.Column(name, _TIME) for name in ("wake_at", "not_before", "claimed_until")),
        sa.Column("claim", sa.Uuid()),
        sa.Column("claimed_message", sa.Uuid()),
        sa.Column("deferrals", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Float()),
        sa.Column("tokens_at", _TIME),
    )
    _hash_keys()
    _bring_over()
    for name in ("sessions_unannounced", "conversations_unannounced", "messages_unannounced", "messages_expiring"):
        op.drop_index(name)
    op.alter_column("sessions", "announced_version", new_column_name="told_version")
    op.drop_column("conversations", "announced")
    for column in ("announced", "claim", "claimed_until", "not_before"):
        op.drop_column("messages", column)
    op.drop_column("sessions", "drain_at")
    for name, table, columns, condition in _INDEXES:
        where = sa.text(condition)
        op.create_index(name, table, columns.split(), sqlite_where=where, postgresql_where=where)


def _hash_keys() -> None:
    connection = op.get_bind()
    for table in ("sessions", "commands"):
        columns = sa.table(table, sa.column("chatbot_id", sa.Uuid()), sa.column("key_hash"))
        for (chatbot_id,) in connection.execute(sa.select(columns.c.chatbot_id).distinct()).all():
            hashed = columns.update().where(columns.c.chatbot_id == chatbot_id)
            connection.execute(hashed.values(key_hash=crc32(str(chatbot_id).encode())))
    for table in ("conversations", "messages"):
        op.execute(
            f"UPDATE {table} SET key_hash = (SELECT key_hash FROM sessions WHERE sessions.chatbot_id ="  # noqa: S608
            f" {table}.chatbot_id) WHERE chatbot_id IN (SELECT chatbot_id FROM sessions)"
        )


def _bring_over() -> None:
    """Turn unfinished work into unpublished outputs: with the same ids as before."""
    op.execute("UPDATE messages SET told_version = 0 WHERE NOT announced")
    no = sa.false().compile(dialect=op.get_bind().dialect)
    op.execute(f"UPDATE messages SET handed_over = {no} WHERE NOT announced AND role = 'USER'")  # noqa: S608
    # Every lane with waiting messages becomes due; if its first message may be being sent, only after its claim ends.
    op.execute(
        "INSERT INTO lanes (session_id, key_hash, wake_at, claimed_until, claimed_message, claim, deferrals)"
        " SELECT s.session_id, s.key_hash, CASE WHEN m.id IS NOT NULL THEN COALESCE(m.claimed_until, CURRENT_TIMESTAMP)"
        " END, m.claimed_until, CASE WHEN m.claimed_until IS NOT NULL THEN m.id END, m.claim, 0"
        " FROM sessions s LEFT JOIN messages m ON m.session_id = s.session_id AND m.delivery_status = 'PENDING'"
        " AND m.lane_number = (SELECT min(first.lane_number) FROM messages first"
        " WHERE first.session_id = s.session_id AND first.delivery_status = 'PENDING')"
    )
    op.execute(
        "UPDATE conversations SET told_version = 0, correlation_id = COALESCE((SELECT correlation_id FROM messages"
        " WHERE conversation_id = conversations.id ORDER BY created_at, id LIMIT 1), '') WHERE NOT announced"
    )
    _bring_over_outcomes()


def _bring_over_outcomes() -> None:
    """Add the new fields to events that answered commands, and to unannounced sessions the ids of their commands."""
    connection = op.get_bind()
    commands = sa.table(
        "commands", sa.column("chatbot_id", sa.Uuid()), sa.column("command_id"), sa.column("outcome", sa.JSON())
    )
    causes = {}
    for row in connection.execute(sa.select(commands)).all():
        if not row.outcome:
            continue
        causes[row.outcome["message_id"]] = row.command_id
        if row.outcome["name"] in {"message.cancelled", "message.queued"}:
            outcome = row.outcome | {"body": row.outcome["body"] | {"version": 1}}
            this = (commands.c.chatbot_id == row.chatbot_id, commands.c.command_id == row.command_id)
            connection.execute(commands.update().where(*this).values(outcome=outcome))
    sessions = sa.table("sessions", sa.column("id", sa.Uuid()), sa.column("version"), sa.column("correlation_id"))
    unannounced = sa.select(sessions).where(sa.text("announced_version < version"))
    for row in connection.execute(unannounced).all():
        cause = causes.get(str(uuid5(row.id, f"version {row.version}")), "")
        connection.execute(sessions.update().where(sessions.c.id == row.id).values(correlation_id=cause))

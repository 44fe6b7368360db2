"""Rows say what of them is untold, per destination; lanes have rows of their own.

Made for a full stop: processes of the version before must not run while or after it.
"""

from uuid import uuid5
from zlib import crc32

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_HASHED = ("sessions", "commands", "conversations", "messages")
_UNTOLD = "told_version < version"
_EXPIRING = "delivery_status = 'PENDING' AND expires_at IS NOT NULL"
_INDICES = (
    ("commands_untold", "commands", ["created_at"], "told = 0", "NOT told"),
    (
        "messages_to_hand_over",
        "messages",
        ["conversation_id", "sequence"],
        "handed_over = 0 AND role = 'USER'",
        "NOT handed_over AND role = 'USER'",
    ),
    (
        "messages_to_enqueue",
        "messages",
        ["session_id", "lane_number"],
        "handed_over = 0 AND role = 'ASSISTANT'",
        "NOT handed_over AND role = 'ASSISTANT'",
    ),
    ("messages_untold", "messages", ["conversation_id", "created_at"], _UNTOLD, _UNTOLD),
    ("messages_expiring", "messages", ["expires_at"], _EXPIRING, _EXPIRING),
)
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    for table in _HASHED:
        op.add_column(table, sa.Column("key_hash", sa.BigInteger(), nullable=False, server_default="0"))
    for table in ("sessions", "conversations"):
        op.add_column(table, sa.Column("correlation_id", sa.String(), nullable=False, server_default=""))
    op.add_column("commands", sa.Column("told", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("messages", sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("messages", sa.Column("told_version", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("messages", sa.Column("handed_over", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_table(
        "lanes",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("wake_at", _TIME, nullable=True),
        sa.Column("not_before", _TIME, nullable=True),
        sa.Column("claimed_until", _TIME, nullable=True),
        sa.Column("claim", sa.Uuid(), nullable=True),
        sa.Column("claimed_message", sa.Uuid(), nullable=True),
        sa.Column("deferrals", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=True),
        sa.Column("tokens_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("session_id"),
    )
    _awake = sa.text("wake_at IS NOT NULL")
    op.create_index("lanes_awake", "lanes", ["wake_at"], sqlite_where=_awake, postgresql_where=_awake)
    _hash_keys()
    _bring_over()
    op.drop_index("messages_unannounced", "messages")
    op.drop_index("messages_expiring", "messages")
    for name, table, columns, sqlite, postgresql in _INDICES:
        op.create_index(name, table, columns, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(postgresql))
    for column in ("announced", "claim", "claimed_until", "not_before"):
        op.drop_column("messages", column)
    op.drop_column("sessions", "drain_at")


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
    """Turn what was unfinished into what has still to be told: under the same ids as before."""
    op.execute("UPDATE messages SET told_version = 0 WHERE NOT announced")
    no = sa.false().compile(dialect=op.get_bind().dialect)
    op.execute(f"UPDATE messages SET handed_over = {no} WHERE NOT announced AND role = 'USER'")  # noqa: S608
    # Every lane in which something waits is looked at; one whose message may be on its way, once that is over.
    op.execute(
        "INSERT INTO lanes (session_id, key_hash, wake_at, claimed_until, claimed_message, claim, deferrals)"
        " SELECT session_id, key_hash, COALESCE(claimed_until, CURRENT_TIMESTAMP), claimed_until,"
        " CASE WHEN claimed_until IS NOT NULL THEN id END, claim, 0"
        " FROM messages WHERE delivery_status = 'PENDING' AND lane_number = (SELECT min(first.lane_number)"
        " FROM messages first WHERE first.session_id = messages.session_id AND first.delivery_status = 'PENDING')"
    )
    op.execute(
        "UPDATE conversations SET correlation_id = (SELECT correlation_id FROM messages"
        " WHERE conversation_id = conversations.id ORDER BY created_at, id LIMIT 1)"
        " WHERE id IN (SELECT conversation_id FROM messages) AND NOT announced"
    )
    _bring_over_outcomes()


def _bring_over_outcomes() -> None:
    """Give the events that answered commands what they have now, and unannounced sessions the commands behind them."""
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


def downgrade() -> None:
    for name, table, *_ in _INDICES:
        op.drop_index(name, table)
    for column in ("claimed_until", "not_before"):
        op.add_column("messages", sa.Column(column, _TIME, nullable=True))
    op.add_column("messages", sa.Column("claim", sa.Uuid(), nullable=True))
    op.add_column("messages", sa.Column("announced", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("sessions", sa.Column("drain_at", _TIME, nullable=True))
    done = "told_version >= version AND (handed_over OR role = 'ASSISTANT')"
    yes = sa.true().compile(dialect=op.get_bind().dialect)
    op.execute(f"UPDATE messages SET announced = {yes} WHERE {done}")  # noqa: S608
    sqlite, postgresql = sa.text("announced = 0"), sa.text("NOT announced")
    op.create_index(
        "messages_unannounced", "messages", ["session_id"], sqlite_where=sqlite, postgresql_where=postgresql
    )
    pending = sa.text("delivery_status = 'PENDING'")
    op.create_index("messages_expiring", "messages", ["expires_at"], sqlite_where=pending, postgresql_where=pending)
    op.drop_table("lanes")
    for column in ("version", "told_version", "handed_over"):
        op.drop_column("messages", column)
    op.drop_column("commands", "told")
    for table in ("sessions", "conversations"):
        op.drop_column(table, "correlation_id")
    for table in _HASHED:
        op.drop_column(table, "key_hash")

"""Leases, heartbeats and dead letters; since when work is unfinished, and how what is unfinished is found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


_WRITTEN_BY_THE_DATABASE = (("sessions", "moved_at"), ("conversations", "changed_at"), ("messages", "changed_at"))
_PENDING = "delivery_status = 'PENDING'"
_BEHIND = "announced_version < version"
_OF_THE_UNFINISHED = (
    ("sessions_unannounced", "sessions", "session_id", _BEHIND, _BEHIND),
    ("conversations_unannounced", "conversations", "chatbot_id", "announced = 0", "NOT announced"),
    ("messages_expiring", "messages", "expires_at", _PENDING, _PENDING),
)


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("duty", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("duty"),
    )
    op.create_table(
        "processes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("partitions", sa.JSON(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_processes_seen_at", "processes", ["seen_at"], unique=False)
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("exchange", sa.String(length=255), nullable=False),
        sa.Column("routing_key", sa.String(length=255), nullable=False),
        sa.Column("message_id", sa.String(length=255), nullable=False),
        sa.Column("correlation_id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("properties", sa.JSON(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("burial", sa.String(length=64), nullable=False),
        sa.Column("died_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_dead_letters_reason", "dead_letters", ["reason"], unique=False)
    # Rows that are there already are as old as can be: what they left unfinished is looked at first.
    for table, column in _WRITTEN_BY_THE_DATABASE:
        long_ago = sa.text("'1970-01-01 00:00:00.000000'")
        op.add_column(table, sa.Column(column, sa.DateTime(timezone=True), nullable=False, server_default=long_ago))
    # Not so the sessions: one that is CONNECTING now would be taken for one that hangs, and its pairing ended.
    op.execute("UPDATE sessions SET moved_at = CURRENT_TIMESTAMP")
    for name, table, column, sqlite, postgresql in _OF_THE_UNFINISHED:
        op.create_index(
            name, table, [column], unique=False, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(postgresql)
        )


def downgrade() -> None:
    for name, table, *_ in _OF_THE_UNFINISHED:
        op.drop_index(name, table)
    for table, column in _WRITTEN_BY_THE_DATABASE:
        op.drop_column(table, column)
    for table in ("dead_letters", "processes", "leases"):
        op.drop_table(table)

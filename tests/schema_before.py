"""Brings a database back to revision 0004, the schema of the processes before: a migration only goes forward."""

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.ext.asyncio import create_async_engine

_TIME = sa.DateTime(timezone=True)
_NEW_INDEXES = (
    *("sessions_untold", "commands_untold", "conversations_untold", "messages_untold", "messages_to_hand_over"),
    *("messages_to_enqueue", "messages_expiring", "lanes_awake", "sessions_live", "sessions_ended"),
)
_NEW_COLUMNS = {
    "messages": ("participant", "handed_over", "told_version", "version", "key_hash"),
    "conversations": ("told_version", "version", "correlation_id", "key_hash"),
    "commands": ("told_version", "version", "key_hash"),
    "sessions": ("correlation_id", "key_hash"),
}
_OLD_INDEXES = (
    ("sessions_unannounced", "sessions", "session_id", "announced_version < version"),
    ("conversations_unannounced", "conversations", "chatbot_id", "NOT announced"),
    ("messages_unannounced", "messages", "session_id", "NOT announced"),
    ("messages_expiring", "messages", "expires_at", "delivery_status = 'PENDING'"),
)


async def bring_back(url: str) -> None:
    """Make the schema that of revision 0004; what is told stays told."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(_bring_back)
    await engine.dispose()


def _bring_back(connection: sa.Connection) -> None:
    op = Operations(MigrationContext.configure(connection))
    for name in _NEW_INDEXES:
        op.drop_index(name)
    op.alter_column("sessions", "told_version", new_column_name="announced_version")
    for column in (sa.Column("claimed_until", _TIME), sa.Column("not_before", _TIME), sa.Column("claim", sa.Uuid())):
        op.add_column("messages", column)
    op.add_column("sessions", sa.Column("drain_at", _TIME))
    yes = sa.true().compile(dialect=connection.dialect)
    for table, more in (("messages", " AND (handed_over OR role = 'ASSISTANT')"), ("conversations", "")):
        op.add_column(table, sa.Column("announced", sa.Boolean(), nullable=False, server_default=sa.false()))
        op.execute(f"UPDATE {table} SET announced = {yes} WHERE told_version >= version{more}")  # noqa: S608
    op.drop_table("deployment")
    op.drop_table("lanes")
    for table, columns in _NEW_COLUMNS.items():
        for name in columns:
            op.drop_column(table, name)
    for name, table, columns, condition in _OLD_INDEXES:  # type: ignore[assignment]
        where = sa.text(condition)
        op.create_index(name, table, [columns], sqlite_where=where, postgresql_where=where)  # type: ignore[list-item]
    op.execute("UPDATE alembic_version SET version_num = '0004'")

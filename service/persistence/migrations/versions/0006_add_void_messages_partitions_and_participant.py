"""Messages that a change of number made void, the number of partitions, the writer in a group, sessions by page."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Name, column and condition of the partial indexes.
_INDEXES = (
    ("sessions_live", "session_id", "wanted OR status <> 'DISCONNECTED'"),
    ("sessions_ended", "moved_at", "NOT wanted AND status = 'DISCONNECTED'"),
)


def upgrade() -> None:
    op.add_column("messages", sa.Column("participant", sa.String()))
    op.add_column("lanes", sa.Column("void_to", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "deployment",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("partitions", sa.Integer(), nullable=False),
    )
    for name, column, condition in _INDEXES:
        where = sa.text(condition)
        op.create_index(name, "sessions", [column], sqlite_where=where, postgresql_where=where)

"""How the jobs on borrowed machines ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("work") as table:
        table.add_column(
            sa.Column("outcome", sa.String(length=16), nullable=False, server_default="")
        )
    with op.batch_alter_table("work") as table:
        table.alter_column("outcome", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("work") as table:
        table.drop_column("outcome")

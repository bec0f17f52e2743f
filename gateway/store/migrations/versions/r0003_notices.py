"""What machines pass on of being taken back by their provider; leases launched in batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("enrolments") as table:
        table.add_column(sa.Column("noticed", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("ends", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("leases") as table:
        table.add_column(
            sa.Column("batch", sa.String(length=64), nullable=False, server_default="")
        )
        table.add_column(sa.Column("place", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("leases") as table:
        table.alter_column("batch", server_default=None)
        table.alter_column("place", server_default=None)
        table.create_index("ix_leases_batch", ["batch"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("leases") as table:
        table.drop_index("ix_leases_batch")
        table.drop_column("place")
        table.drop_column("batch")
    with op.batch_alter_table("enrolments") as table:
        table.drop_column("ends")
        table.drop_column("noticed")

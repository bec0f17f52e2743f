"""What machines pass on of being taken back by their provider."""

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


def downgrade() -> None:
    with op.batch_alter_table("enrolments") as table:
        table.drop_column("ends")
        table.drop_column("noticed")

"""Accounts beside tenants, bills with their leases, the jobs on them, and flash requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A column that may not be empty needs a value for the rows there are: first the tenant's name.
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("account", sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE leases SET account = tenant")
    with op.batch_alter_table("leases") as table:
        table.alter_column("account", server_default=None)
    with op.batch_alter_table("ledger") as table:
        table.add_column(sa.Column("account", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("unit", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("flash", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("started", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("body", sa.Text(), nullable=False, server_default=""))
        table.drop_index("ix_ledger_tenant")
    op.execute("UPDATE ledger SET account = tenant")
    _fill_bodies()
    with op.batch_alter_table("ledger") as table:
        for name in ("account", "unit", "flash", "body"):
            table.alter_column(name, server_default=None)
        table.create_index("ix_ledger_account", ["account"], unique=False)
        table.create_index("ix_ledger_at", ["at"], unique=False)
        table.create_index("ix_ledger_flash", ["flash"], unique=False)
    op.create_table(
        "work",
        sa.Column("lease", sa.String(length=64), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("lease", "job", "started", name="pk_work"),
    )
    op.create_index("ix_work_ended", "work", ["ended"], unique=False)
    op.create_table(
        "flashes",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("asked", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends", sa.DateTime(timezone=True), nullable=False),
        sa.Column("max_cost", sa.String(length=40), nullable=True),
        sa.Column("cancelled", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_flashes"),
    )
    op.create_index("ix_flashes_ends", "flashes", ["ends"], unique=False)


def _fill_bodies() -> None:
    """What was settled and is still in the history is known in full."""
    op.execute(
        "UPDATE ledger SET body = COALESCE((SELECT leases.body FROM leases "
        "WHERE leases.id = ledger.lease), '')"
    )


def downgrade() -> None:
    op.drop_table("flashes")
    op.drop_table("work")
    with op.batch_alter_table("ledger") as table:
        table.drop_index("ix_ledger_account")
        table.drop_index("ix_ledger_at")
        table.drop_index("ix_ledger_flash")
        for name in ("account", "unit", "flash", "started", "body"):
            table.drop_column(name)
        table.create_index("ix_ledger_tenant", ["tenant"], unique=False)
    with op.batch_alter_table("leases") as table:
        table.drop_column("account")

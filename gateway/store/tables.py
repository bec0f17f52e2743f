"""The tables: what must survive a kill. Money is text (`Decimal`, lossless), instants are UTC.

A change here needs a revision in `migrations/versions` and a new `REVISION`; a test compares what
the revisions build with what is declared here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

REVISION = "0004"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)


class Money(TypeDecorator[Decimal]):
    """A `Decimal` as text: no database's idea of numbers comes between."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class Words(TypeDecorator[str]):
    """Text that others sent. A NUL is refused by PostgreSQL, and a lone surrogate by any encoder:
    both are replaced, since what a user or a machine says must not stop a transaction."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if "\0" in value:
            value = value.replace("\0", "\ufffd")
        return value if value.isascii() else value.encode("utf-8", "replace").decode()


class Instant(TypeDecorator[datetime]):
    """An aware `datetime` in UTC, to the microsecond; a naive one is a programming error."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value.isoformat()}: instants here are aware, in UTC")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


leases = Table(  # `body` is the whole lease; the columns beside it are what queries look at
    "leases",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("account", Text, nullable=False),  # whose budget pays: `burst.model.account_of`
    Column("state", String(16), nullable=False),
    Column("wanted", Instant, nullable=False),
    Column("ended", Instant),
    Column("reserved", Money, nullable=False),
    Column("drain_requested", Words, nullable=False),  # the operator's: the body has no say in it
    Column("batch", String(64), nullable=False),  # launched with others, or empty; and its place
    Column("place", Integer, nullable=False),
    Column("body", Text, nullable=False),  # JSON of `burst.model.Lease`
    Index("ix_leases_state", "state"),
    Index("ix_leases_batch", "batch"),
    Index("ix_leases_ended", "ended"),
)

events = Table(  # a lease's changes of state, and what else happened to it: the timeline
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("lease", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # state | drain | enrolled | report
    Column("state", String(16), nullable=False),  # after the event; empty where it is not a change
    Column("message", Words, nullable=False),
    Index("ix_events_lease", "lease"),
)

tokens = Table(  # one-time enrolment tokens: only the hash, so a read of the file enrols nobody
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256, hex
    Column("lease", String(64), nullable=False),
    Column("expires", Instant, nullable=False),
    Column("redeemed", Instant),
    Column("peer", Text),  # who redeemed it, for the log
    Column("nonce", Text, nullable=False),  # of the first to redeem; the same may repeat
    Index("ix_tokens_lease", "lease"),
)

enrolments = Table(  # written by the enrolment server, read by the burst loop: never one row shared
    "enrolments",
    metadata,
    Column("lease", String(64), primary_key=True),
    Column("at", Instant),  # when it fetched its bundle
    Column("heard", Instant, nullable=False),  # the last word from the machine
    Column("phase", Words, nullable=False),  # what the machine said it was doing
    Column("failure", Words, nullable=False),  # why joining failed, in the machine's words
    Column("noticed", Instant),  # when it passed on that its provider takes it back, or may
    Column("ends", Instant),  # when the provider ends it, where that was said
)

ledger = Table(  # money settled: one row a lease, written with the change to its final state
    "ledger",  # and never forgotten: the usage records of later years are made of it
    metadata,
    Column("lease", String(64), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("amount", Money, nullable=False),
    Column("unit", Text, nullable=False),  # empty: the site's currency
    Column("flash", Text, nullable=False),  # the request it was rented for
    Column("started", Instant),  # of the bill; unknown of leases settled before revision 0002
    Column("body", Text, nullable=False),  # JSON of the lease as it ended; empty as above
    Index("ix_ledger_account", "account"),
    Index("ix_ledger_at", "at"),
    Index("ix_ledger_flash", "flash"),
)

work = Table(  # which job ran on which borrowed machine: kept as long as the ledger
    "work",
    metadata,
    Column("lease", String(64), primary_key=True),
    Column("job", String(128), primary_key=True),
    Column("started", Instant, primary_key=True),
    Column("ended", Instant),
    Column("user", Words, nullable=False),
    Column("account", Words, nullable=False),  # the batch system's
    Column("name", Words, nullable=False),
    Column("cores", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),  # completed or failed; empty: not known
    Index("ix_work_ended", "ended"),
)

flashes = Table(  # operators' standing requests
    "flashes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("provider", Text, nullable=False),  # empty: any
    Column("cores", Integer, nullable=False),
    Column("asked", Instant, nullable=False),
    Column("ends", Instant, nullable=False),
    Column("max_cost", Money),
    Column("cancelled", Instant),
    Index("ix_flashes_ends", "ends"),
)

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

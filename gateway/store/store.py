"""What the gateway must remember, and each change of it as one transaction.

A process killed between two calls has made the first change whole and the second not at all; there
is no state in between. Every method may be called from any thread. The clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, insert, or_, select, update

from burst.model import Lease
from burst.money.limits import Bound
from gateway.store import tables as t
from gateway.store.accounts import Accounts, settle
from gateway.store.engine import open_engine, reading
from gateway.store.flashes import Flashes
from gateway.store.joins import Joins
from gateway.store.rows import lease_of, row_of
from gateway.store.timeline import FINAL, Event, add_event


class Store:
    """One database. `close()` it, or use it as a context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.joins = Joins(engine)
        self.accounts = Accounts(engine)
        self.flashes = Flashes(engine)

    @classmethod
    def open(cls, url: str) -> Store:
        """Open and, where needed, create or upgrade. Raises `gateway.store.engine.StoreError`."""
        return cls(open_engine(url))

    @property
    def engine(self) -> Engine:
        return self._engine

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- leases ------------------------------------------------------------------------------

    def lease(self, lease_id: str) -> Lease | None:
        with reading(self._engine) as c:
            row = c.execute(select(t.leases).where(t.leases.c.id == lease_id)).mappings().first()
        return None if row is None else lease_of(dict(row))

    def leases(self, ended_since: datetime | None = None) -> tuple[Lease, ...]:
        """The living ones and, if asked, those ended at or after `ended_since`; oldest first."""
        wanted: ColumnElement[bool] = t.leases.c.state.not_in(FINAL)
        if ended_since is not None:
            wanted = or_(wanted, t.leases.c.ended >= ended_since)
        query = select(t.leases).where(wanted).order_by(t.leases.c.wanted, t.leases.c.id)
        with reading(self._engine) as c:
            return tuple(lease_of(dict(row)) for row in c.execute(query).mappings())

    def all_leases(self) -> tuple[Lease, ...]:
        query = select(t.leases).order_by(t.leases.c.wanted, t.leases.c.id)
        with reading(self._engine) as c:
            return tuple(lease_of(dict(row)) for row in c.execute(query).mappings())

    def want(self, lease: Lease, at: datetime, *, bounds: Sequence[Bound]) -> bool:
        """Store a new lease if its reservation fits the account's money, in one transaction.

        Each bound is for what ended at or after its `since` and what is reserved now; without any,
        only what costs nothing fits. False: it does not fit, or the id is known; then nothing was
        stored.
        """
        with self._engine.begin() as c:
            if c.execute(select(t.leases.c.id).where(t.leases.c.id == lease.id)).first():
                return False
            if lease.reserved and not fits(c, lease.account, lease.reserved, bounds):
                return False
            c.execute(insert(t.leases).values(row_of(lease)))
            add_event(c, at, lease.id, "state", lease.state.value, "")
        return True

    def save(self, lease: Lease, at: datetime) -> bool:
        """Write the whole lease; with it, in one transaction, the event of a changed state and,
        when the lease ends, its cost into the ledger (once, however often this is repeated).

        An operator's drain request in the database is never overwritten by an older copy.
        Returns whether the state changed.
        """
        with self._engine.begin() as c:
            return _save(c, lease, at)

    def save_all(self, leases: Sequence[Lease], at: datetime) -> list[Lease]:
        """`save` for each, all in one transaction; returns those whose state changed."""
        with self._engine.begin() as c:
            return [lease for lease in leases if _save(c, lease, at)]

    def members(self, batch: str, place: int | None = None) -> tuple[Lease, ...]:
        """The leases of a batch, ended ones too, by their place in it; or the one at `place`."""
        query = select(t.leases).where(t.leases.c.batch == batch).order_by(t.leases.c.place)
        if place is not None:
            query = query.where(t.leases.c.place == place)
        with reading(self._engine) as c:
            return tuple(lease_of(dict(row)) for row in c.execute(query).mappings())

    def request_drain(self, lease_id: str, reason: str, at: datetime) -> bool:
        """Note an operator's wish to return the machine. False: no such living lease."""
        with self._engine.begin() as c:
            changed = c.execute(
                update(t.leases)
                .where(and_(t.leases.c.id == lease_id, t.leases.c.state.not_in(FINAL)))
                .values(drain_requested=reason)
            ).rowcount
            if changed:
                add_event(c, at, lease_id, "drain", "", reason)
        return bool(changed)

    def events(self, lease: str | None = None, after: int = 0, limit: int = 1000) -> list[Event]:
        """The timeline, oldest first: of one lease, or of all; at most `limit` after id `after`."""
        query = select(t.events).where(t.events.c.id > after).order_by(t.events.c.id).limit(limit)
        if lease is not None:
            query = query.where(t.events.c.lease == lease)
        with reading(self._engine) as c:
            return [Event(**row) for row in c.execute(query).mappings()]

    def latest_instant(self) -> datetime | None:
        """The latest instant in the timeline: it has passed, whatever a clock says now."""
        with reading(self._engine) as c:
            return c.execute(select(t.events.c.at).order_by(t.events.c.id.desc()).limit(1)).scalar()

    # -- money -------------------------------------------------------------------------------

    def spent(self, account: str, since: datetime) -> Decimal:
        """What the account's ended leases cost, of those that ended at or after `since`."""
        with reading(self._engine) as c:
            return _spent(c, account, since)

    def reserved(self, account: str) -> Decimal:
        """What is set aside for the account's living leases."""
        with reading(self._engine) as c:
            return _reserved(c, account)

    # -- the rest ---------------------------------------------------------------------------

    def note(self, key: str, value: str) -> None:
        """Keep one named text, such as the heartbeat."""
        with self._engine.begin() as c:
            if not c.execute(
                update(t.meta).where(t.meta.c.key == key).values(value=value)
            ).rowcount:
                c.execute(insert(t.meta).values(key=key, value=value))

    def notes(self) -> Mapping[str, str]:
        with reading(self._engine) as c:
            return {row.key: row.value for row in c.execute(select(t.meta))}

    def prune(self, before: datetime) -> int:
        """Forget leases that ended before `before`, and what hangs on them. Money stays."""
        with self._engine.begin() as c:
            old = select(t.leases.c.id).where(
                and_(t.leases.c.state.in_(FINAL), t.leases.c.ended < before)
            )
            c.execute(delete(t.events).where(t.events.c.lease.in_(old)))
            c.execute(delete(t.tokens).where(t.tokens.c.lease.in_(old)))
            c.execute(delete(t.enrolments).where(t.enrolments.c.lease.in_(old)))
            return c.execute(
                delete(t.leases).where(and_(t.leases.c.state.in_(FINAL), t.leases.c.ended < before))
            ).rowcount


def fits(c: Connection, account: str, amount: Decimal, bounds: Iterable[Bound]) -> bool:
    """Whether `amount` more may be reserved under every one of the bounds."""
    reserved = _reserved(c, account) + amount
    checked = [reserved + _spent(c, account, bound.since) <= bound.limit for bound in bounds]
    return bool(checked) and all(checked)


def _spent(c: Connection, account: str, since: datetime) -> Decimal:
    query = select(t.ledger.c.amount).where(
        and_(t.ledger.c.account == account, t.ledger.c.at >= since)
    )
    return sum(c.execute(query).scalars(), Decimal(0))


def _reserved(c: Connection, account: str) -> Decimal:
    query = select(t.leases.c.reserved).where(
        and_(t.leases.c.account == account, t.leases.c.state.not_in(FINAL))
    )
    return sum(c.execute(query).scalars(), Decimal(0))


def _save(c: Connection, lease: Lease, at: datetime) -> bool:
    row = row_of(lease)
    before = c.execute(
        select(t.leases.c.state, t.leases.c.drain_requested).where(t.leases.c.id == lease.id)
    ).first()
    if before is None:
        c.execute(insert(t.leases).values(row))
    else:
        row["drain_requested"] = before.drain_requested or lease.drain_requested
        c.execute(update(t.leases).where(t.leases.c.id == lease.id).values(row))
    changed = before is None or before.state != lease.state.value
    if changed:
        why = f"{lease.failure.kind.value}: {lease.failure.message}" if lease.failure else ""
        add_event(c, at, lease.id, "state", lease.state.value, why)
    if not lease.living:
        settle(c, lease, at)
    return bool(changed)

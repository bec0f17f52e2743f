"""What was spent on what: the ledger of ended leases, and the jobs that ran on borrowed machines.

Written once and never changed, but for the end of a job; kept when leases are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Engine, and_, insert, or_, select, update

from burst.model import Lease
from burst.money.usage import LeaseUse, Work
from burst.policy.money import accrued, billed_from
from gateway.store import tables as t
from gateway.store.engine import reading
from gateway.store.rows import lease_of
from gateway.store.timeline import FINAL

_DOCUMENT = TypeAdapter(Lease)


class Accounts:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def uses(self, now: datetime, since: datetime | None = None) -> list[LeaseUse]:
        """Every bill that reaches beyond `since`: of ended leases what was settled, of living
        ones what they have cost until `now`."""
        ended = select(t.ledger).order_by(t.ledger.c.at, t.ledger.c.lease)
        if since is not None:
            ended = ended.where(t.ledger.c.at >= since)
        living = select(t.leases).where(t.leases.c.state.not_in(FINAL)).order_by(t.leases.c.wanted)
        with reading(self._engine) as c:
            found = [_settled(row) for row in c.execute(ended).mappings()]
            leases = [lease_of(dict(row)) for row in c.execute(living).mappings()]
        running = (_running(lease, now) for lease in leases)
        return [*found, *(use for use in running if use is not None)]

    def spent_by_flash(self, flashes: Iterable[str]) -> dict[str, Decimal]:
        """What the ended leases of each of these flashes cost."""
        query = select(t.ledger.c.flash, t.ledger.c.amount).where(t.ledger.c.flash.in_([*flashes]))
        spent: dict[str, Decimal] = {}
        with reading(self._engine) as c:
            for flash, amount in c.execute(query):
                spent[flash] = spent.get(flash, Decimal(0)) + amount
        return spent

    def works(self, since: datetime | None = None) -> list[Work]:
        """The jobs that ran on borrowed machines; those that ended before `since` are left out."""
        query = select(t.work).order_by(t.work.c.started, t.work.c.job)
        if since is not None:
            query = query.where(or_(t.work.c.ended.is_(None), t.work.c.ended >= since))
        with reading(self._engine) as c:
            return [Work(**row) for row in c.execute(query).mappings()]

    def note_work(self, works: Iterable[Work]) -> None:
        """Insert or end; in one transaction. What has ended stays so."""
        with self._engine.begin() as c:
            for one in works:
                key = and_(
                    t.work.c.lease == one.lease,
                    t.work.c.job == one.job,
                    t.work.c.started == one.started,
                )
                known = c.execute(select(t.work.c.ended).where(key)).first()
                if known is None:
                    c.execute(insert(t.work).values(_values(one)))
                elif known.ended is None and one.ended is not None:
                    values = {"ended": one.ended, "outcome": one.outcome}
                    c.execute(update(t.work).where(key).values(values))


def settle(c: Connection, lease: Lease, at: datetime) -> None:
    """Book an ended lease's cost, once, however often this is repeated."""
    if c.execute(select(t.ledger.c.lease).where(t.ledger.c.lease == lease.id)).first() is None:
        c.execute(
            insert(t.ledger).values(
                lease=lease.id,
                tenant=lease.tenant,
                account=lease.account,
                at=lease.ended or at,
                amount=lease.cost,
                unit=lease.unit,
                flash=lease.flash,
                started=billed_from(lease),
                body=_DOCUMENT.dump_json(lease).decode(),
            )
        )


def _values(work: Work) -> dict[str, Any]:
    return {name: getattr(work, name) for name in Work.__dataclass_fields__}


def _settled(row: Any) -> LeaseUse:
    if not row["body"]:  # settled before the ledger knew more
        end = row["at"]
        return LeaseUse(
            lease=row["lease"],
            tenant=row["tenant"],
            pool="",
            provider="",
            type="",
            zone="",
            node="",
            cores=0,
            unit=row["unit"],
            price_per_hour=row["amount"] * 0,
            started=end,
            ended=end,
            until=end,
            amount=row["amount"],
        )
    lease = _DOCUMENT.validate_json(row["body"])
    end = lease.machine_ended or row["at"]
    start = min(row["started"] or billed_from(lease) or end, end)
    return _use(lease, start, end, end, row["amount"])


def _running(lease: Lease, now: datetime) -> LeaseUse | None:
    start = billed_from(lease)
    if start is None:
        return None
    end = max(lease.machine_ended or now, start)
    return _use(lease, start, None, end, accrued(lease, now))


def _use(
    lease: Lease, start: datetime, ended: datetime | None, until: datetime, amount: Decimal
) -> LeaseUse:
    return LeaseUse(
        lease=lease.id,
        tenant=lease.tenant,
        pool=lease.pool,
        provider=lease.provider,
        type=lease.type + (" (spot)" if lease.spot else ""),
        zone=lease.zone,
        node=lease.node,
        cores=lease.cores,
        unit=lease.unit,
        price_per_hour=lease.price_per_hour,
        started=start,
        ended=ended,
        until=until,
        amount=amount,
        outcome=lease.failure.kind.value if lease.failure else "",
    )

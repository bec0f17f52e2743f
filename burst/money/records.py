"""Usage records for other people's accounting: CSV and JSON rows, and one record a job for grids.

The rows are one for each job on each machine, and one for what of a machine nobody held, so that
their costs add up to the bill. The grid's records are one a job: its machines are added up.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from burst.money.usage import LeaseUse, Work, shares

COLUMNS = (
    "site",
    "tenant",
    "pool",
    "provider",
    "type",
    "zone",
    "lease",
    "node",
    "job",
    "name",
    "user",
    "account",
    "cores",
    "started",
    "ended",
    "wall_seconds",
    "cost",
    "unit",
    "outcome",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One job on one machine, or (`job` empty) what nobody held of it."""

    site: str
    tenant: str
    pool: str
    provider: str
    type: str
    zone: str
    lease: str
    node: str
    job: str
    name: str
    user: str
    account: str
    cores: int
    started: datetime
    ended: datetime
    wall_seconds: int
    cost: Decimal
    unit: str
    outcome: str = ""  # of the job: completed or failed, where the batch system said so


def rows(site: str, currency: str, uses: Sequence[LeaseUse], works: Sequence[Work]) -> list[Row]:
    """Of machines that were returned, by their end; the unit is told in words."""
    found: list[Row] = []
    for use in sorted(uses, key=lambda use: (use.until, use.lease)):
        if use.ended is None:
            continue
        bill: dict[tuple[str, datetime] | None, Decimal] = {}
        for share in shares([use], [work for work in works if work.lease == use.lease]):
            key = (share.job.job, share.job.started) if share.job else None
            bill[key] = bill.get(key, Decimal(0)) + share.amount
        mine = [work for work in works if work.lease == use.lease]
        for work in sorted(mine, key=lambda work: (work.started, work.job)):
            end = min(work.ended or use.ended, use.ended)
            cost = bill.get((work.job, work.started), Decimal(0))
            found.append(_row(site, currency, use, work, max(work.started, use.started), end, cost))
        found.append(
            _row(site, currency, use, None, use.started, use.ended, bill.get(None, Decimal(0)))
        )
    return found


def _row(
    site: str,
    currency: str,
    use: LeaseUse,
    work: Work | None,
    start: datetime,
    end: datetime,
    cost: Decimal,
) -> Row:
    return Row(
        site=site,
        tenant=use.tenant,
        pool=use.pool,
        provider=use.provider,
        type=use.type,
        zone=use.zone,
        lease=use.lease,
        node=use.node,
        job=work.job if work else "",
        name=work.name if work else "",
        user=work.user if work else "",
        account=work.account if work else "",
        cores=work.cores if work else use.cores,
        started=start,
        ended=max(end, start),
        wall_seconds=max(round((end - start).total_seconds()), 0),
        cost=cost,
        unit=use.unit or currency,
        outcome=work.outcome if work else "",
    )


def as_csv(found: Iterable[Row]) -> str:
    """RFC 4180, with a header; instants in ISO 8601, UTC."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in found:
        writer.writerow([_cell(getattr(row, column)) for column in COLUMNS])
    return out.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return instant(value)
    # A job's name is its user's: it breaks no line, and no spreadsheet takes it for a formula
    # (CWE-1236).
    text = "".join(each if each.isprintable() else "?" for each in str(value))
    return f"'{text}" if text[:1] in ("=", "+", "@") or text[:2] == "-=" else text


def instant(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job's whole run on borrowed machines."""

    site: str
    job: str
    name: str
    user: str
    account: str
    tenant: str
    pool: str
    provider: str
    nodes: tuple[str, ...]
    processors: int
    started: datetime
    ended: datetime
    charge: Decimal
    unit: str
    outcome: str = ""  # as of `Row`

    @property
    def wall_seconds(self) -> int:
        return max(round((self.ended - self.started).total_seconds()), 0)

    @property
    def held_seconds(self) -> int:
        """Core-seconds that were the job's, used or not."""
        return self.wall_seconds * self.processors


def job_records(found: Iterable[Row]) -> list[JobRecord]:
    """The rows that are jobs', one record for each job and start, in the order of their ends."""
    groups: dict[tuple[str, datetime, str], list[Row]] = {}
    for row in found:
        if row.job:
            groups.setdefault((row.job, row.started, row.tenant), []).append(row)
    records = [_record(group) for group in groups.values()]
    return sorted(records, key=lambda record: (record.ended, record.job))


def _record(group: Sequence[Row]) -> JobRecord:
    first = group[0]
    return JobRecord(
        site=first.site,
        job=first.job,
        name=first.name,
        user=first.user,
        account=first.account,
        tenant=first.tenant,
        pool=first.pool,
        provider=first.provider,
        nodes=tuple(row.node for row in group),
        processors=sum(row.cores for row in group),
        started=first.started,
        ended=max(row.ended for row in group),
        charge=sum((row.cost for row in group), Decimal(0)),
        unit=first.unit,
        outcome=next((row.outcome for row in group if row.outcome), ""),
    )

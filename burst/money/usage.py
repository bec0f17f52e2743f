"""What was used and what it cost: by machine, and by the jobs that ran on it.

A lease's bill is one amount from its launch to its end. Jobs share it by the core-seconds they
held; what no job held (boot, idle cores, the way out) is a share without a job. The shares of a
lease always add up to its bill, to the last millionth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

GRAIN = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """One machine's bill; `ended` is None while it runs, and then `amount` is until `until`."""

    lease: str
    tenant: str
    pool: str
    provider: str
    type: str
    zone: str
    node: str
    cores: int
    unit: str  # of the amount: empty for the site's currency
    price_per_hour: Decimal
    started: datetime
    ended: datetime | None
    until: datetime  # `ended`, or now
    amount: Decimal
    outcome: str = ""  # the class of its failure; empty if it ended as planned, or lives


@dataclass(frozen=True, slots=True)
class Work:
    """One job on one borrowed machine, from start to end; `ended` is None while it runs."""

    lease: str
    job: str
    started: datetime
    user: str
    account: str
    cores: int  # on this machine
    ended: datetime | None = None
    name: str = ""
    outcome: str = ""  # completed or failed, where the batch system said so


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a lease's bill: one job's on one day (UTC), or nobody's if `job` is None."""

    use: LeaseUse
    job: Work | None
    day: str  # 2026-03-01
    seconds: Decimal  # of the job, or of the machine
    core_hours: Decimal
    amount: Decimal


def shares(
    uses: Iterable[LeaseUse],
    works: Iterable[Work],
    since: datetime | None = None,
    before: datetime | None = None,
) -> Iterator[Share]:
    """Every share that falls into the window [since, before), cut at midnight UTC."""
    on: dict[str, list[Work]] = {}
    for work in works:
        on.setdefault(work.lease, []).append(work)
    for use in uses:
        for start, end in _days(use.started, max(use.until, use.started)):
            begin = max(start, since) if since else start
            stop = min(end, before) if before else end
            if stop > begin or (start == end and _inside(start, since, before)):
                yield from _of_interval(use, on.get(use.lease, ()), begin, stop)


def _inside(instant: datetime, since: datetime | None, before: datetime | None) -> bool:
    return (since is None or instant >= since) and (before is None or instant < before)


def _days(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if start == end:
        yield start, end
    while start < end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        yield start, min(midnight, end)
        start = midnight


def _of_interval(
    use: LeaseUse, works: Sequence[Work], begin: datetime, end: datetime
) -> Iterator[Share]:
    day = begin.strftime("%Y-%m-%d")
    bill = _bill_until(use, end) - _bill_until(use, begin) if end > begin else use.amount
    capacity = Decimal(max(use.cores, 1)) * _seconds(begin, end)
    held = [(work, _held(work, begin, end)) for work in works]
    total = sum((work.cores * seconds for work, seconds in held), Decimal(0))
    whole = max(capacity, total)  # an oversubscribed machine is shared by what was held
    left = bill
    for work, seconds in held:
        if not seconds:
            continue
        core_seconds = work.cores * seconds
        amount = (bill * core_seconds / whole).quantize(GRAIN, ROUND_FLOOR)
        left -= amount
        yield Share(use, work, day, seconds, core_seconds / 3600, amount)
    rest = max(capacity - total, Decimal(0))
    if left or rest:
        yield Share(use, None, day, _seconds(begin, end), rest / 3600, left)


def _bill_until(use: LeaseUse, instant: datetime) -> Decimal:
    """What of the amount falls before `instant`: in proportion, and all of it at the end."""
    whole = _seconds(use.started, use.until)
    if instant >= use.until or whole <= 0:
        return use.amount
    part = max(_seconds(use.started, instant), Decimal(0))
    return (use.amount * part / whole).quantize(GRAIN, ROUND_FLOOR)


def _held(work: Work, begin: datetime, end: datetime) -> Decimal:
    return max(_seconds(max(work.started, begin), min(work.ended or end, end)), Decimal(0))


def _seconds(start: datetime, end: datetime) -> Decimal:
    return Decimal((end - start) // timedelta(microseconds=1)) / 1_000_000


BY = ("tenant", "provider", "pool", "type", "day", "job", "user", "account", "lease")
NOBODY = "(no job)"


@dataclass(frozen=True, slots=True)
class Cost:
    """One line of a bill."""

    key: str
    unit: str  # empty for the site's currency
    amount: Decimal
    machine_hours: Decimal
    core_hours: Decimal  # held by jobs
    idle_core_hours: Decimal  # paid for, held by none
    leases: int
    jobs: int


def cost_by(by: str, found: Iterable[Share]) -> list[Cost]:
    """The shares added up by one of `BY`; the dearest first, days and jobs in order."""
    groups: dict[tuple[str, str], list[Share]] = {}
    for share in found:
        groups.setdefault((key_of(by, share), share.use.unit), []).append(share)
    costs = [_cost(key, unit, group) for (key, unit), group in groups.items()]
    if by in ("day", "job"):
        return sorted(costs, key=lambda cost: (cost.key == NOBODY, _natural(cost.key), cost.unit))
    return sorted(costs, key=lambda cost: (-cost.amount, cost.key, cost.unit))


def key_of(by: str, share: Share) -> str:
    """What the share is added to; `ValueError` for a word that is not in `BY`."""
    job = share.job
    values: Mapping[str, str] = {
        "tenant": share.use.tenant,
        "provider": share.use.provider,
        "pool": share.use.pool,
        "type": share.use.type,
        "day": share.day,
        "lease": share.use.lease,
        "job": job.job if job else NOBODY,
        "user": job.user if job else NOBODY,
        "account": (job.account or "(none)") if job else NOBODY,
    }
    if by not in values:
        raise ValueError(f"{by!r} is nothing to add up by; there is {', '.join(BY)}")
    return values[by]


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)


def _cost(key: str, unit: str, group: Sequence[Share]) -> Cost:
    held = sum((share.core_hours for share in group if share.job), Decimal(0))
    idle = sum((share.core_hours for share in group if not share.job), Decimal(0))
    per_core = sum((share.core_hours / max(share.use.cores, 1) for share in group), Decimal(0))
    return Cost(
        key=key,
        unit=unit,
        amount=sum((share.amount for share in group), Decimal(0)),
        machine_hours=per_core.quantize(GRAIN),
        core_hours=held.quantize(GRAIN),
        idle_core_hours=idle.quantize(GRAIN),
        leases=len({share.use.lease for share in group}),
        jobs=len({share.job.job for share in group if share.job}),
    )

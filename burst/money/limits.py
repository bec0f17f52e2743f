"""Hard and soft limits of an account, for calendar periods in UTC.

An account may have several: so much a month, and of it so much a day. What is reserved counts in
every period that is open, what was settled in the period in which its lease ended. A machine that
runs over midnight so counts in full on the second day, too: each period's own bill is never more
than what is counted for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from burst.model import Budget

Period = Literal["day", "week", "month", "year", "ever"]
EVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that may be spent and reserved in one period, and where nothing new is rented."""

    limit: Decimal
    period: Period = "month"
    soft: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit for what was settled at or after `since`: what the store checks."""

    limit: Decimal
    since: datetime


def since(period: Period, now: datetime) -> datetime:
    """The start of the period that `now` is in; a week begins on Monday (ISO 8601)."""
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)
        case "ever":
            return EVER


def until(period: Period, now: datetime) -> datetime | None:
    """The start of the next period; None if there is none."""
    start = since(period, now)
    match period:
        case "day":
            return start + timedelta(days=1)
        case "week":
            return start + timedelta(days=7)
        case "month":
            return (start + timedelta(days=32)).replace(day=1)
        case "year":
            return start.replace(year=start.year + 1)
        case "ever":
            return None


def bounds(limits: Iterable[Limit], now: datetime) -> tuple[Bound, ...]:
    return tuple(Bound(one.limit, since(one.period, now)) for one in limits)


def budgets(
    account: str,
    unit: str,
    limits: Iterable[Limit],
    spent: Callable[[datetime], Decimal],
    reserved: Decimal,
    now: datetime,
) -> tuple[Budget, ...]:
    """Each limit as it stands now; `spent` tells what was settled since an instant."""
    return tuple(
        Budget(
            tenant=account,
            limit=one.limit,
            spent=spent(since(one.period, now)),
            reserved=reserved,
            soft=one.soft,
            period=one.period,
            unit=unit,
        )
        for one in limits
    )


def tightest(budgets: Iterable[Budget]) -> Budget | None:
    """One budget that allows no more than each of them: the one with least free, with the
    soft limit that is reached first."""
    ordered = sorted(budgets, key=lambda one: one.free)
    if not ordered:
        return None
    least = ordered[0]
    rooms = [one.soft - one.spent - one.reserved for one in ordered if one.soft is not None]
    if not rooms:
        return least
    # `soft` is told on the scale of the tightest hard limit: only the room below it counts.
    soft = least.spent + least.reserved + min(rooms)
    return Budget(
        tenant=least.tenant,
        limit=least.limit,
        spent=least.spent,
        reserved=least.reserved,
        soft=min(soft, least.limit),
        period=least.period,
        unit=least.unit,
    )

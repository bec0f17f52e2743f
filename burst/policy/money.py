"""What a lease costs, what must be reserved for it, and what the rest of a budget still allows.

EC2 bills Linux instances by the second with a minimum of 60 s ("Amazon EC2 On-Demand Pricing",
aws.amazon.com/ec2/pricing/on-demand). We count from the accepted launch to the end that the
provider reports, or else to the moment we saw it: never less than the bill.

The rule that keeps a hard limit hard: at any time the reservation of a lease covers what it has
cost, the jobs running on its node up to their time limits, one more job of those routed there, and
the time it takes to return the machine. What cannot be covered is not routed; a lease that cannot
be covered at all is let go while it still can be. (Time limits must be enforced by the LRMS; a job
without one is taken to last `Policy.default_job_time`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal

from burst.model import Lease, Policy

MINIMUM_BILLED_SECONDS = 60
_HOUR = Decimal(3_600_000_000)  # microseconds
_GRAIN = Decimal("0.000001")


def price_of(price_per_hour: Decimal, time: timedelta) -> Decimal:
    """What `time` costs, rounded up to a millionth."""
    micros = (time.days * 86_400 + time.seconds) * 1_000_000 + time.microseconds
    return (price_per_hour * max(micros, 0) / _HOUR).quantize(_GRAIN, ROUND_CEILING)


def billed(price_per_hour: Decimal, start: datetime, end: datetime) -> Decimal:
    """The bill for a machine that ran from `start` to `end`: whole seconds, at least 60."""
    seconds = -((start - end) // timedelta(seconds=1))  # rounded up
    return price_of(price_per_hour, timedelta(seconds=max(seconds, MINIMUM_BILLED_SECONDS)))


def accrued(lease: Lease, now: datetime) -> Decimal:
    """What the lease has cost until `now` (or its end); the final figure once it has ended.

    A launch whose outcome is not known counts as a machine from when it was asked for.
    """
    if not lease.living:
        return lease.cost
    start = billed_from(lease)
    if start is None:
        return Decimal(0)
    return billed(lease.price_per_hour, start, lease.machine_ended or now)


def billed_from(lease: Lease) -> datetime | None:
    """From when the lease costs money; None while nothing was asked of anybody."""
    return lease.requested or (lease.attempted if lease.maybe_launched else None)


def first_reservation(price_per_hour: Decimal, longest_job: timedelta, policy: Policy) -> Decimal:
    """What is reserved before a launch: at least `reserve_hours`, and enough for the job."""
    whole_life = policy.expected_start_cost + longest_job + 2 * policy.return_time
    return max(
        step_of(price_per_hour, policy),
        price_of(price_per_hour, whole_life),
        price_of(price_per_hour, timedelta(seconds=MINIMUM_BILLED_SECONDS)),
    )


@dataclass(frozen=True, slots=True)
class Cover:
    """What a lease's reservation should be, and what it lacks when the budget cannot give it."""

    reserved: Decimal
    lacking: Decimal


def cover(
    lease: Lease,
    busy: timedelta,
    free: Decimal,
    now: datetime,
    policy: Policy,
    spare: timedelta | None = None,
) -> Cover:
    """The reservation that carries the lease through `busy` more time and its return.

    It moves in steps of `reserve_hours`, so that it is not written every round. With `spare`, time
    for a job that may yet start there, what exceeds both by more than two steps is given back.
    """
    spent = accrued(lease, now)
    need = price_of(lease.price_per_hour, busy + policy.return_time)
    least = max(spent + need, price_of(lease.price_per_hour, timedelta(seconds=60)))
    quantum = step_of(lease.price_per_hour, policy)
    if lease.reserved < least:
        target = min(least + quantum, lease.reserved + max(free, Decimal(0)))
        reserved = max(target, lease.reserved)
        return Cover(reserved, max(least - reserved, Decimal(0)))
    if spare is not None:
        enough = least + price_of(lease.price_per_hour, spare) + quantum
        if lease.reserved > enough + quantum:
            return Cover(enough, Decimal(0))
    return Cover(lease.reserved, Decimal(0))


def step_of(price_per_hour: Decimal, policy: Policy) -> Decimal:
    """By how much a reservation grows at a time."""
    return (price_per_hour * policy.reserve_hours).quantize(_GRAIN, ROUND_CEILING)


@dataclass(frozen=True, slots=True)
class Purse:
    """What one accepting lease still holds: its price, and the money not yet spoken for."""

    price_per_hour: Decimal
    rest: Decimal  # reserved, less accrued, less what its running jobs and its return need


def extra_for(purses: Sequence[Purse], limit: timedelta) -> Decimal:
    """What a budget must add so that *each* of these leases could take a job of this limit."""
    total = Decimal(0)
    for purse in purses:
        total += max(price_of(purse.price_per_hour, limit) - purse.rest, Decimal(0))
    return total


def affordable_limit(
    purses: Sequence[Purse], free: Decimal, limits: Sequence[timedelta]
) -> timedelta | None:
    """The longest of `limits` that every one of the leases could be given a job of.

    Every one, because the LRMS decides where a routed job starts, and may start several at once.
    None when not even the shortest fits. Bisection: the need grows with the limit.
    """
    ordered = sorted(set(limits))
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if extra_for(purses, ordered[middle]) <= free:
            low = middle + 1
        else:
            high = middle
    return ordered[low - 1] if low else None

"""The policy functions, each by itself, with properties."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.model import (
    Failure,
    FailureClass,
    Job,
    JobState,
    Lease,
    LeaseState,
    Offer,
    Policy,
    Pool,
)
from burst.policy import breaker, money
from burst.policy.demand import Candidate, Supply, refusal, unserved, worthwhile_cores
from burst.policy.release import idle_too_long
from burst.policy.when import FOREVER, local_waits, remaining
from burst.policy.which import cheapest, fits, ranked, usable_memory_mb
from tests.burst.test_leases import NOW, a_lease

POLICY = Policy()
MINUTE = timedelta(minutes=1)
POOL = Pool("cms-aws", "cms", "farm", "aws", "burst-cms", ("batch",), users=("alice",))


def a_job(name: str = "1", minutes: int = 10, **changes: object) -> Job:
    job = Job(
        id=name,
        user="alice",
        account="cms",
        state=JobState.PENDING,
        partitions=("batch",),
        cores=1,
        nodes=1,
        memory_mb=100,
        time_limit=timedelta(minutes=minutes),
        submitted=NOW - 10 * MINUTE,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def offer(kind: str, cores: int, price: str, memory: int = 8192, zone: str = "a") -> Offer:
    return Offer("aws", kind, zone, cores, memory, Decimal(price))


jobs = st.builds(
    lambda cores, minutes: a_job(cores=cores, minutes=minutes),
    st.integers(1, 8),
    st.integers(1, 600),
)


# when


def waits(pending: list[Job], running: list[Job], cores: int, until: timedelta) -> list[float]:
    return local_waits(pending, running, cores, NOW, timedelta(hours=1), until)


def test_jobs_wait_for_the_cores_before_them() -> None:
    queue = [a_job(str(n), 10) for n in range(5)]
    assert waits(queue, [], 2, timedelta(hours=9)) == [0, 0, 600, 600, 1200]


def test_running_jobs_are_waited_for_until_their_limit() -> None:
    running = [a_job("r", 10, state=JobState.RUNNING, started=NOW - 4 * MINUTE)]
    assert waits([a_job()], running, 1, timedelta(hours=9)) == [360]


def test_what_can_never_start_here_waits_for_ever_and_stops_nobody() -> None:
    assert waits([a_job(cores=9), a_job()], [], 2, timedelta(hours=9)) == [FOREVER, 0]
    assert waits([a_job()], [], 0, timedelta(hours=9)) == [FOREVER]


@given(st.lists(jobs, max_size=60), st.integers(8, 32))
def test_waits_grow_along_the_queue(pending: list[Job], cores: int) -> None:
    for until in (timedelta(0), timedelta(days=99)):
        found = waits(pending, [], cores, until)
        assert len(found) == len(pending)
        assert found == sorted(found)
        assert all(math.isfinite(wait) for wait in found)


@given(st.lists(jobs, max_size=40), st.integers(8, 32), st.integers(1, 8))
def test_more_cores_never_mean_more_waiting_at_the_end(
    pending: list[Job], cores: int, more: int
) -> None:
    """Graham's anomalies move single jobs; without overtaking and for the last start they cannot
    exceed his bound of twice the smaller farm's time."""
    few = waits(pending, [], cores, timedelta(days=99))
    many = waits(pending, [], cores + more, timedelta(days=99))
    if pending:
        assert many[-1] <= 2 * few[-1] + 1e-6 or few[-1] == 0


def test_a_job_that_outlived_the_default_may_take_as_long_again() -> None:
    job = a_job(state=JobState.RUNNING, time_limit=None, started=NOW - timedelta(hours=3))
    assert remaining(job, NOW, timedelta(hours=1)) == timedelta(hours=3)
    late = a_job(state=JobState.RUNNING, minutes=10, started=NOW - timedelta(hours=3))
    assert remaining(late, NOW, timedelta(hours=1)) == timedelta(0)


# which


def test_a_big_machine_is_no_bargain_for_little_work() -> None:
    offers = [offer("small", 2, "0.10"), offer("huge", 64, "1.60")]
    assert (found := cheapest(a_job(), 2, offers)) is not None
    assert found.type == "small"
    assert (found := cheapest(a_job(), 64, offers)) is not None
    assert found.type == "huge"


@given(jobs, st.lists(st.tuples(st.integers(1, 16), st.integers(1, 999)), max_size=8))
def test_the_chosen_offer_fits(job: Job, shapes: list[tuple[int, int]]) -> None:
    offers = [offer(f"t{n}", c, str(Decimal(p) / 100)) for n, (c, p) in enumerate(shapes)]
    found = cheapest(job, 16, offers)
    assert (found is None) == (not any(fits(job, one) for one in offers))
    assert found is None or fits(job, found)


def test_only_allowed_and_available_types_are_offered_in_a_stable_order() -> None:
    offers = [
        offer("b", 2, "0.2"),
        offer("a", 2, "0.2"),
        offer("x", 2, "0.1"),
        replace(offer("c", 2, "0.1"), available=0),
    ]
    assert [one.type for one in ranked(offers, ("a", "b", "c"))] == ["a", "b"]


@given(st.integers(0, 10**6))
def test_the_system_keeps_some_memory(memory: int) -> None:
    assert 0 <= usable_memory_mb(memory) <= memory


# demand


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": JobState.HELD}, "held"),
        ({"partitions": ("gpu",)}, "other-partition"),
        ({"user": "bob", "account": "atlas"}, "other-user"),
        ({"features": ("infiniband",)}, "local-only"),
        ({"nodes": 2}, "multi-node"),
        ({"cores": 5}, "too-big"),
        ({"memory_mb": 9000}, "too-big"),
        ({"reason": "Dependency"}, "lrms-reason"),
        ({"reason": "AssocMaxJobsLimit"}, "lrms-reason"),
        ({"submitted": NOW}, "young"),
    ],
)
def test_jobs_that_stay(changes: dict[str, Any], code: str) -> None:
    found = refusal(a_job(**changes), POOL, POLICY, NOW, {"cores": 4, "memory_mb": 8000})
    assert found is not None
    assert found.code == code
    assert found.message


@pytest.mark.parametrize("reason", ["", "None", "Resources", "Priority", "ReqNodeNotAvail"])
def test_jobs_that_may_go(reason: str) -> None:
    assert refusal(a_job(reason=reason), POOL, POLICY, NOW, {}) is None
    assert refusal(a_job(partitions=("burst-cms",)), POOL, POLICY, NOW, {}) is None
    assert refusal(a_job(user="bob"), replace(POOL, users=()), POLICY, NOW, {}) is None


def candidates(pending: list[Job]) -> list[Candidate]:
    return [Candidate(job, job.time_limit or MINUTE, 999.0) for job in pending]


@given(st.lists(jobs, max_size=40), st.lists(st.integers(0, 16), max_size=10))
def test_what_is_served_fits_into_the_supply(pending: list[Job], cores: list[int]) -> None:
    asked = candidates(pending)
    left = unserved(asked, [Supply(n, 10**6) for n in cores])
    served = sum(c.job.cores for c in asked) - sum(c.job.cores for c in left)
    assert served <= sum(cores)
    assert all(candidate in asked for candidate in left)
    if not left:
        return
    assert not cores or sum(cores) - served < max(c.job.cores for c in left) * len(cores)


def test_short_work_is_worth_few_cores() -> None:
    hundred = [a_job(str(n), time_limit=timedelta(seconds=10)) for n in range(100)]
    assert worthwhile_cores(candidates(hundred), timedelta(minutes=4)) == 5
    assert worthwhile_cores(candidates([a_job(cores=8)]), timedelta(hours=9)) == 8
    assert worthwhile_cores([], MINUTE) == 0


# release


def test_idle_machines_go_later_while_work_waits_for_them() -> None:
    lease = a_lease(LeaseState.JOINED, idle_since=NOW)
    soon, late = NOW + POLICY.idle_release, NOW + 3 * POLICY.idle_release
    assert idle_too_long(lease, soon, POLICY, work_waits=False)
    assert not idle_too_long(lease, soon, POLICY, work_waits=True)
    assert idle_too_long(lease, late, POLICY, work_waits=True)
    assert not idle_too_long(a_lease(LeaseState.JOINED), late, POLICY, work_waits=False)


# money

prices = st.decimals(0, 100, places=4, allow_nan=False)
spans = st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds))


def test_billing_is_by_the_second_with_a_minimum_of_a_minute() -> None:
    hour = Decimal("3.60")
    assert money.billed(hour, NOW, NOW) == Decimal("0.06")
    assert money.billed(hour, NOW, NOW + timedelta(seconds=59)) == Decimal("0.06")
    assert money.billed(hour, NOW, NOW + timedelta(seconds=61)) == Decimal("0.061")
    assert money.billed(hour, NOW, NOW + timedelta(seconds=61, milliseconds=1)) == Decimal("0.062")


@given(prices, spans, spans)
def test_bills_only_grow(price: Decimal, one: timedelta, other: timedelta) -> None:
    first, second = sorted((one, other))
    assert money.billed(price, NOW, NOW + first) <= money.billed(price, NOW, NOW + second)


def test_what_was_never_asked_for_costs_nothing_and_a_doubt_counts() -> None:
    later = NOW + timedelta(hours=1)
    assert money.accrued(a_lease(), later) == 0
    doubt = a_lease(attempted=NOW, maybe_launched=True)
    assert money.accrued(doubt, later) == Decimal("0.36")
    ended = a_lease(LeaseState.DRAINING, requested=NOW, machine_ended=NOW + 30 * MINUTE)
    assert money.accrued(ended, later) == Decimal("0.18")
    assert money.accrued(a_lease(LeaseState.GONE, cost=Decimal("0.5")), later) == Decimal("0.5")


@given(prices, spans, spans, prices, prices)
def test_a_reservation_covers_or_says_what_it_lacks(
    price: Decimal, lived: timedelta, busy: timedelta, free: Decimal, reserved: Decimal
) -> None:
    lease = a_lease(
        LeaseState.JOINED, price_per_hour=price, requested=NOW - lived, reserved=reserved
    )
    found = money.cover(lease, busy, free, NOW, POLICY, spare=timedelta(hours=1))
    needed = money.accrued(lease, NOW) + money.price_of(price, busy + POLICY.return_time)
    assert found.reserved - lease.reserved <= free
    assert found.reserved + found.lacking >= needed
    again = replace(lease, reserved=found.reserved)
    rest = free - (found.reserved - lease.reserved)
    settled = money.cover(again, busy, rest, NOW, POLICY, spare=timedelta(hours=1))
    assert settled.reserved == found.reserved, "it is not written every round"


@given(
    st.lists(st.tuples(prices, prices), min_size=1, max_size=6),
    prices,
    st.lists(spans, max_size=8),
)
def test_the_affordable_limit_is_the_longest_that_fits(
    holdings: list[tuple[Decimal, Decimal]], free: Decimal, limits: list[timedelta]
) -> None:
    purses = [money.Purse(price, rest) for price, rest in holdings]
    found = money.affordable_limit(purses, free, limits)
    fitting = [limit for limit in limits if money.extra_for(purses, limit) <= free]
    assert found == max(fitting, default=None)


@given(prices, spans)
def test_a_first_reservation_carries_start_job_and_return(price: Decimal, job: timedelta) -> None:
    reserve = money.first_reservation(price, job, POLICY)
    life = POLICY.expected_start_cost + job + POLICY.return_time
    assert reserve >= money.price_of(price, life)
    assert reserve >= price * POLICY.reserve_hours


# back-off and pauses


def failed(kind: FailureClass, minutes_ago: int, **changes: object) -> Lease:
    when = NOW - minutes_ago * MINUTE
    return a_lease(
        LeaseState.FAILED,
        id=f"{minutes_ago:032x}",
        failure=Failure(kind, "why"),
        failed=when,
        ended=when,
        **changes,
    )


def test_failures_in_a_row_pause_a_pool_until_the_pause_is_over() -> None:
    row = [failed(FailureClass.TUNNEL, n) for n in (3, 2, 1)]
    health = breaker.pool_health(row, NOW, POLICY)
    assert health.failures == 3
    assert health.paused_until == NOW - MINUTE + POLICY.pause
    assert health.may_start(POLICY) == 0
    later = breaker.pool_health(row, NOW + POLICY.pause, POLICY)
    assert later.paused_until is None


def test_one_success_in_between_proves_the_pool() -> None:
    row = [failed(FailureClass.JOIN, 9), failed(FailureClass.JOIN, 8)]
    good = a_lease(LeaseState.JOINED, id="b" * 32, joined=NOW - 5 * MINUTE)
    assert breaker.pool_health([*row, good], NOW, POLICY).may_start(POLICY) is None
    since = [*row, good, failed(FailureClass.JOIN, 1)]
    health = breaker.pool_health(since, NOW, POLICY)
    assert (health.failures, health.may_start(POLICY)) == (1, 2)


def test_an_unproven_pool_starts_at_most_k_machines() -> None:
    fresh = breaker.pool_health([], NOW, POLICY)
    assert fresh.may_start(POLICY) == POLICY.failures_to_pause
    flying = [a_lease(LeaseState.BOOTING, id=f"{n:032x}") for n in range(2)]
    assert breaker.pool_health(flying, NOW, POLICY).may_start(POLICY) == 1


def test_no_capacity_and_throttling_do_not_count_against_the_pool() -> None:
    row = [failed(FailureClass.NO_CAPACITY, n) for n in range(9)]
    assert breaker.pool_health(row, NOW, POLICY).failures == 0


def test_an_offer_backs_off_longer_each_time_and_for_its_zone_only() -> None:
    row = [failed(FailureClass.NO_CAPACITY, 0, zone="a", type="m5.large")]
    here, there = offer("m5.large", 2, "1"), offer("m5.large", 2, "1", zone="b")
    once = breaker.offer_blocked_until(here, row, NOW, POLICY)
    assert once == NOW + POLICY.backoff_first
    assert breaker.offer_blocked_until(there, row, NOW, POLICY) is None
    assert breaker.offer_blocked_until(offer("c5.large", 2, "1"), row, NOW, POLICY) is None
    twice = [*row, failed(FailureClass.NO_CAPACITY, 1, zone="a", type="m5.large")]
    assert breaker.offer_blocked_until(here, twice, NOW, POLICY) == NOW + 2 * POLICY.backoff_first
    quota = [failed(FailureClass.QUOTA, 0, zone="a", type="m5.large")]
    assert breaker.offer_blocked_until(there, quota, NOW, POLICY) is not None


def test_throttling_is_about_the_provider_until_it_is_over() -> None:
    lease = a_lease(setback=Failure(FailureClass.THROTTLED, "slow down"), retry_after=NOW + MINUTE)
    assert breaker.throttled_until([lease], NOW) == {"aws": NOW + MINUTE}
    assert breaker.throttled_until([lease], NOW + MINUTE) == {}


def test_what_an_operator_has_mended_pauses_nobody() -> None:
    policy = Policy(failures_to_pause=2)
    failed = [
        replace(
            a_lease(LeaseState.FAILED),
            id=f"{n:032x}",
            joined=None,
            failed=NOW - timedelta(minutes=n + 1),
            failure=Failure(FailureClass.TUNNEL, "no packet"),
        )
        for n in range(2)
    ]
    paused = breaker.pool_health(failed, NOW, policy)
    assert paused.paused_until is not None
    mended = breaker.pool_health(failed, NOW, policy, forgiven=NOW)
    assert (mended.paused_until, mended.failures) == (None, 0)
    # What failed after that counts again.
    half = breaker.pool_health(failed, NOW, policy, forgiven=NOW - timedelta(seconds=90))
    assert (half.paused_until, half.failures) == (None, 1)

"""No more requests than a provider takes, and a thousand machines with a handful of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scale.batch import CONFIG, Cloud, Memory, flash, launch
from burst.actions import Want
from burst.model import FailureClass, LeaseState
from burst.providers.base import LaunchRequest, Throttled
from burst.providers.ec2 import LAUNCH_AT_ONCE, TERMINATE_AT_ONCE, Ec2Provider
from burst.providers.pace import EC2_MACHINES, EC2_REQUESTS, Pace, Rate

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@dataclass
class Clock:
    now: datetime = T0

    def __call__(self) -> datetime:
        return self.now


def taken(pace: Pace, action: str, machines: int = 0) -> bool:
    try:
        pace.take(action, machines)
    except Throttled:
        return False
    return True


def test_so_many_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    pace = Pace(clock, {"Run": Rate(5, 2)}, {})
    assert [taken(pace, "Run") for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += SECOND
    assert [taken(pace, "Run") for _ in range(3)] == [True, True, False]
    clock.now += timedelta(hours=1)
    assert sum(taken(pace, "Run") for _ in range(20)) == 5, "a pause saves up no more than a burst"


def test_it_says_what_waits_and_for_how_long() -> None:
    pace = Pace(Clock(), {}, {"Run": Rate(1000, 2)})
    pace.take("Run", 900)
    with pytest.raises(Throttled, match="Run of machines is asked again in 50 s") as refused:
        pace.take("Run", 200)
    assert refused.value.kind is FailureClass.THROTTLED


def test_what_is_refused_for_its_machines_costs_no_request() -> None:
    pace = Pace(Clock(), {"Run": Rate(2, 1)}, {"Run": Rate(10, 1)})
    assert [taken(pace, "Run", machines) for machines in (11, 11, 11, 4, 6)] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_one_action_does_not_use_up_anothers() -> None:
    pace = Pace(Clock(), {"Run": Rate(1, 1), "End": Rate(1, 1)}, {})
    assert taken(pace, "Run")
    assert not taken(pace, "Run")
    assert taken(pace, "End")
    assert all(taken(pace, "Unlimited") for _ in range(1000))


steps = st.lists(st.tuples(st.floats(0, 60), st.integers(0, 40)), min_size=1, max_size=60)


@given(steps, st.sampled_from([Rate(5, 2), Rate(1, 0.5), Rate(100, 20)]))
def test_never_more_than_the_bucket_holds_and_what_has_flowed_into_it(
    steps: list[tuple[float, int]], rate: Rate
) -> None:
    """Whenever one begins to count: a bucket that was full then would have let as much through."""
    clock = Clock()
    pace = Pace(clock, {"Run": rate}, {"Run": Rate(50, 3)})
    let: list[tuple[datetime, int]] = []
    for wait, machines in steps:
        clock.now += wait * SECOND
        if taken(pace, "Run", machines):
            let.append((clock.now, machines))
    for first, (start, _) in enumerate(let):
        for last in range(first, len(let)):
            passed = (let[last][0] - start) / SECOND
            some = let[first : last + 1]
            assert len(some) <= rate.burst + passed * rate.per_second + 1e-6
            assert sum(number for _, number in some) <= 50 + passed * 3 + 1e-6


def test_a_flash_of_a_thousand_machines_is_a_handful_of_calls() -> None:
    """And all of them at once: the calls fit into what EC2 takes in one go."""
    cloud, store = Cloud(), Memory()
    decision = launch(*flash(1000), store, cloud)
    assert sum(isinstance(action, Want) for action in decision.actions) == 1000
    assert cloud.launches == [LAUNCH_AT_ONCE] * 5
    assert len(cloud.launches) <= EC2_REQUESTS["RunInstances"].burst
    states = {lease.state for lease in store.leases.values()}
    assert states == {LeaseState.REQUESTED}
    machines = [lease.machine for lease in store.leases.values()]
    assert len(set(machines)) == 1000, "each lease has a machine of its own"


def test_beyond_what_ec2_takes_at_once_the_rest_waits_and_is_not_asked_for() -> None:
    """Twice as many: the second thousand would be refused, so nobody asks; it is no lack of
    capacity, and none of it may be taken for launched."""
    facts, pool = flash(2000)
    cloud, store = Cloud(), Memory()
    launch(facts, pool, store, cloud)
    assert sum(cloud.launches) == EC2_MACHINES["RunInstances"].burst == 1000
    assert len(cloud.launches) == 5
    waiting = [lease for lease in store.leases.values() if lease.state is LeaseState.WANTED]
    assert len(waiting) == 1000
    assert not any(lease.maybe_launched for lease in waiting)
    kinds = {lease.setback.kind for lease in waiting if lease.setback}
    assert kinds == {FailureClass.THROTTLED}
    later = replace(facts, leases=tuple(store.leases.values()), now=facts.now + SECOND)
    launch(later, pool, store, cloud)
    assert len(cloud.launches) == 5, "while it is throttled, not even a decision asks"


def test_a_thousand_machines_are_returned_with_ten_calls() -> None:
    ended: list[list[str]] = []

    class Ending:
        def terminate_instances(self, **asked: list[str]) -> None:
            ended.append(asked["InstanceIds"])

    provider = Ec2Provider("aws", CONFIG, client=Ending(), clock=Clock())
    provider.terminate([f"i-{number}" for number in range(1000)])
    assert [len(names) for names in ended] == [TERMINATE_AT_ONCE] * 10
    assert len(ended) <= EC2_REQUESTS["TerminateInstances"].burst


def test_a_launch_beyond_the_pace_does_not_reach_ec2() -> None:
    cloud = Cloud()
    provider = Ec2Provider("aws", CONFIG, client=cloud, clock=Clock())
    request = LaunchRequest("0" * 32, "cms", "cms-aws", "c5.2xlarge", "", "n", "")
    for _ in range(5):
        provider.launch(request)
    with pytest.raises(Throttled, match="our own pace"):
        provider.launch(request)
    assert len(cloud.launches) == 5

"""The life of a lease: every state against every observation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from burst.leases import (
    TABLE,
    Effect,
    Observation,
    backoff,
    launch_failed,
    launched,
    launching,
    step,
)
from burst.model import (
    Failure,
    FailureClass,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    Policy,
)

NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)
FINAL = (LeaseState.GONE, LeaseState.FAILED)


def a_lease(state: LeaseState = LeaseState.WANTED, **changes: object) -> Lease:
    lease = Lease(
        id="a" * 32,
        pool="cms-aws",
        tenant="cms",
        network="farm",
        provider="aws",
        type="m5.large",
        zone="",
        cores=2,
        memory_mb=8192,
        price_per_hour=Decimal("0.36"),
        state=state,
        node="cms-aws-aaaaaaaa",
        address="10.9.0.101",
        gre_key=0x8000_0001,
        wanted=NOW - timedelta(hours=1),
        reserved=Decimal("0.36"),
    )
    return replace(lease, **changes)  # type: ignore[arg-type]


# What comes next, and what is done: one row a state, one column an observation. `.` stays.
# Columns: unseen, known, up, gone (the machine), link, open, busy, closed, absent (the node), stop,
# dismiss
MATRIX = """
wanted      .launch     requested   booting     terminating .        .          .          .          .          terminating+terminate terminating+terminate
requested   .           .           booting     terminating .        .          .          .          .          terminating+terminate terminating+terminate
booting     .           .           .           draining+drain tunnelled .      .          .          .          draining+drain terminating+terminate
tunnelled   .           .           .           draining+drain .     joined     .admit     .admit     .          draining+drain draining+drain
joined      .           .           .           draining+drain .     .          .          .          .          draining+drain draining+drain
draining    .           .           .           .           .        .drain     .          leaving+remove leaving+remove . .
leaving     .           .           .           .           .        draining+drain .remove .remove   terminating+terminate . .
terminating .terminate  .terminate  .terminate  gone+settle .     draining+drain .remove    .remove    .          . .
gone        .           .terminate  .terminate  .           .        .drain     .remove    .remove    .          . .
failed      .           .terminate  .terminate  .           .        .drain     .remove    .remove    .          . .
"""  # noqa: E501
CELLS = [
    (LeaseState(row.split()[0]), seen, row.split()[1 + column])
    for row in MATRIX.strip().splitlines()
    for column, seen in enumerate(Observation)
]


def test_the_matrix_says_every_pair() -> None:
    assert {(state, seen) for state, seen, _ in CELLS} == set(TABLE)
    assert len(TABLE) == len(LeaseState) * len(Observation)


@pytest.mark.parametrize(("state", "seen", "expected"), CELLS)
def test_each_cell(state: LeaseState, seen: Observation, expected: str) -> None:
    name, _, effect = expected.partition("+")
    if name.startswith("."):
        name, effect = state.value, name[1:]
    taken = step(a_lease(state, machine="i-1"), seen, NOW)
    after = taken.lease
    if name == "gone" and state is LeaseState.TERMINATING:
        assert after.state is LeaseState.GONE
        assert after.ended == NOW
        assert after.reserved == 0
    assert after.state.value == name
    assert taken.effect == (Effect(effect) if effect else None)


@pytest.mark.parametrize(("state", "seen"), sorted(TABLE))
def test_no_step_goes_back_except_to_drain_again(state: LeaseState, seen: Observation) -> None:
    order = list(LeaseState)
    before, after = order.index(state), order.index(TABLE[state, seen].next)
    left = (LeaseState.LEAVING, LeaseState.TERMINATING)
    again = state in left and TABLE[state, seen].next is LeaseState.DRAINING
    assert after >= before or again


@pytest.mark.parametrize(("state", "seen"), sorted(TABLE))
def test_each_row_keeps_the_first_failure_and_ends_failed(
    state: LeaseState, seen: Observation
) -> None:
    first = Failure(FailureClass.TUNNEL, "first")
    lease = a_lease(state, failure=first, failed=NOW, machine="i-1")
    after = step(lease, seen, NOW, Failure(FailureClass.LOST, "second")).lease
    assert after.failure == first
    assert after.state is not LeaseState.GONE or state is LeaseState.GONE


@pytest.mark.parametrize("state", [s for s in LeaseState if s not in FINAL])
def test_a_machine_that_ends_by_itself_is_a_loss(state: LeaseState) -> None:
    after = step(a_lease(state, machine="i-1"), Observation.MACHINE_GONE, NOW).lease
    if state is LeaseState.TERMINATING:
        assert after.failure is None, "we returned it"
    else:
        assert after.failure is not None
        assert after.failure.kind is FailureClass.LOST
        assert after.failed == NOW


def test_every_state_has_a_way_to_the_end() -> None:
    for start in LeaseState:
        reached, todo = {start}, [start]
        while todo:
            state = todo.pop()
            for seen in Observation:
                following = TABLE[state, seen].next
                if following not in reached:
                    reached.add(following)
                    todo.append(following)
        assert reached & set(FINAL), f"{start} never ends"


def test_the_way_through() -> None:
    lease = a_lease()
    way = [
        (Observation.MACHINE_KNOWN, LeaseState.REQUESTED, "requested"),
        (Observation.MACHINE_UP, LeaseState.BOOTING, "booted"),
        (Observation.LINK_UP, LeaseState.TUNNELLED, "tunnelled"),
        (Observation.NODE_OPEN, LeaseState.JOINED, "joined"),
        (Observation.STOP, LeaseState.DRAINING, "draining"),
        (Observation.NODE_CLOSED, LeaseState.LEAVING, "left"),
        (Observation.NODE_ABSENT, LeaseState.TERMINATING, "terminating"),
        (Observation.MACHINE_GONE, LeaseState.GONE, "ended"),
    ]
    now = NOW
    for seen, state, stamp in way:
        now += timedelta(minutes=1)
        lease = step(replace(lease, machine="i-1"), seen, now).lease
        assert lease.state is state
        assert getattr(lease, stamp) == now
    assert lease.cost == Decimal("0.042")  # seven minutes of 0.36 an hour
    assert lease.reserved == 0


def test_a_launch_is_doubtful_until_it_is_answered() -> None:
    asked = launching(a_lease(), NOW)
    assert asked.maybe_launched
    assert asked.launch_attempts == 1
    machine = Machine("i-1", "aws", "a" * 32, MachineState.PENDING, "m5.large", "eu-south-1a")
    done = launched(asked, machine, NOW)
    assert (done.state, done.machine, done.zone) == (LeaseState.REQUESTED, "i-1", "eu-south-1a")


@pytest.mark.parametrize("kind", [FailureClass.THROTTLED, FailureClass.LOST])
def test_throttled_and_unanswered_launches_are_repeated_later(kind: FailureClass) -> None:
    policy = Policy()
    lease = launch_failed(a_lease(), kind, "why", policy, NOW)
    assert lease.state is LeaseState.WANTED
    assert lease.failure is None
    assert lease.retry_after == NOW + policy.backoff_first
    assert lease.maybe_launched is (kind is FailureClass.LOST)
    again = launch_failed(lease, FailureClass.THROTTLED, "why", policy, NOW)
    assert again.maybe_launched is (kind is FailureClass.LOST), "throttling settles no doubt"
    assert again.retry_after == NOW + 2 * policy.backoff_first


@pytest.mark.parametrize(
    "kind", [FailureClass.NO_CAPACITY, FailureClass.QUOTA, FailureClass.CONFIG]
)
def test_a_clear_no_ends_the_lease(kind: FailureClass) -> None:
    doubtful = launch_failed(a_lease(), FailureClass.LOST, "timeout", Policy(), NOW)
    lease = launch_failed(doubtful, kind, "why", Policy(), NOW)
    assert lease.state is LeaseState.TERMINATING
    assert lease.failure == Failure(kind, "why")
    assert not lease.maybe_launched, "the repeat would have returned a machine that existed"
    ended = step(lease, Observation.MACHINE_GONE, NOW).lease
    assert ended.state is LeaseState.FAILED
    assert ended.cost == ended.reserved == 0


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = Policy(backoff_first=timedelta(seconds=10), backoff_limit=timedelta(minutes=1))
    spans = [backoff(n, policy).total_seconds() for n in (0, 1, 2, 3, 4, 5, 1000)]
    assert spans == [10, 10, 20, 40, 60, 60, 60]

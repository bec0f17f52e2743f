"""Jobs are sent to bare metal or to machines by the site's rules: by queue, user, group, account or
feature; never to both, and never lost in between."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.actions import Route, Unroute
from burst.mixed.directing import BARE_METAL, Place, Rule, directed
from burst.model import Farm, Job, JobState, Pool
from burst.policy.demand import refusal

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POOL = Pool(
    name="cms-hv",
    tenant="cms",
    network="farm",
    provider="hv",
    partition="vms",
    from_partitions=("batch",),
    features=("el9",),
)
JOB = Job(
    id="1",
    user="alice",
    account="cms",
    state=JobState.PENDING,
    partitions=("batch",),
    cores=1,
    nodes=1,
    memory_mb=100,
    time_limit=timedelta(hours=1),
    submitted=NOW - timedelta(hours=1),
)
GROUPS = {"alice": ("users", "physics"), "bob": ("users",)}


def direct(job: Job, *rules: Rule) -> tuple[Job, tuple[Any, ...]]:
    found = directed(Farm(NOW, (job,), ()), rules, [POOL], lambda user: GROUPS.get(user, ()))
    return found.farm.jobs[0], found.actions


FITTING = [
    {"partitions": ("batch",)},
    {"users": ("bob", "alice")},
    {"groups": ("physics",)},
    {"accounts": ("cms",)},
    {"features": ("el9",)},
    {"users": ("alice",), "accounts": ("cms",)},
    {},
]
STRANGE: list[dict[str, tuple[str, ...]]] = [
    {"partitions": ("long",)},
    {"users": ("bob",)},
    {"groups": ("chemistry",)},
    {"accounts": ("atlas",)},
    {"features": ("el9", "gpu")},
    {"users": ("alice",), "accounts": ("atlas",)},
]


@pytest.mark.parametrize("words", FITTING, ids=str)
def test_bound_to_machines_it_waits_for_them_alone(words: dict[str, tuple[str, ...]]) -> None:
    job, actions = direct(replace(JOB, features=("el9",)), Rule(Place.MACHINES, **words))
    assert actions == (Route("1", "vms"), Unroute("1", "batch")), "in this order: never nowhere"
    assert job.partitions == ("vms",)
    assert direct(job, Rule(Place.MACHINES, **words))[1] in ((), (Route("1", "vms"),))


@pytest.mark.parametrize("words", FITTING, ids=str)
def test_bound_to_bare_metal_no_pool_takes_it(words: dict[str, tuple[str, ...]]) -> None:
    job, actions = direct(replace(JOB, features=("el9",)), Rule(Place.METAL, **words))
    assert actions == ()
    assert job.partitions == ("batch",)
    no = refusal(job, POOL, _policy(), NOW, {})
    assert no is not None
    assert BARE_METAL in no.message


def _policy() -> Any:
    from burst.model import Policy

    return Policy()


@pytest.mark.parametrize("words", STRANGE, ids=str)
@pytest.mark.parametrize("place", list(Place))
def test_other_jobs_go_where_there_is_room(place: Place, words: dict[str, tuple[str, ...]]) -> None:
    assert direct(JOB, Rule(place, **words)) == (JOB, ())


def test_the_first_rule_counts() -> None:
    metal, machines = Rule(Place.METAL, users=("alice",)), Rule(Place.MACHINES)
    assert direct(JOB, metal, machines)[0].features == (BARE_METAL,)
    assert direct(JOB, machines, metal)[0].partitions == ("vms",)


def test_what_was_offered_to_machines_is_taken_back_for_the_metal() -> None:
    job, actions = direct(replace(JOB, partitions=("batch", "vms")), Rule(Place.METAL))
    assert (job.partitions, actions) == (("batch",), (Unroute("1", "vms"),))


def test_a_job_that_is_nowhere_else_is_not_taken_out_of_its_queue() -> None:
    job, actions = direct(replace(JOB, partitions=("vms",)), Rule(Place.METAL))
    assert (job.partitions, actions) == (("vms",), ())


def test_without_a_pool_for_it_it_stays() -> None:
    odd = replace(JOB, features=("gpu",))
    assert direct(odd, Rule(Place.MACHINES)) == (odd, ())


names = st.sampled_from(["batch", "vms", "long"])
jobs = st.builds(
    lambda partitions, state, features: replace(
        JOB, partitions=tuple(partitions), state=state, features=tuple(features)
    ),
    st.lists(names, min_size=1, max_size=3, unique=True),
    st.sampled_from(list(JobState)),
    st.lists(st.sampled_from(["el9", "gpu"]), max_size=2, unique=True),
)
rules = st.builds(
    lambda to, users, partitions: Rule(to, users=tuple(users), partitions=tuple(partitions)),
    st.sampled_from(list(Place)),
    st.lists(st.sampled_from(["alice", "bob"]), max_size=1),
    st.lists(names, max_size=1),
)


@given(jobs, st.lists(rules, max_size=3))
def test_a_job_is_always_in_some_queue_and_only_waiting_ones_are_moved(
    job: Job, some: list[Rule]
) -> None:
    after, actions = direct(job, *some)
    there = set(job.partitions)
    for action in actions:
        if isinstance(action, Route):
            there.add(action.partition)
        else:
            there.remove(action.partition)
        assert there, "out of every queue for a moment"
    assert there == set(after.partitions)
    if job.state is not JobState.PENDING:
        assert actions == ()

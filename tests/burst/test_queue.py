"""Sorting a queue by kinds and sizes gives what asking every rule of every job would give."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from burst.model import (
    Facts,
    Farm,
    Job,
    JobState,
    Node,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.observe import World, world
from burst.policy import worth
from burst.policy.demand import (
    Candidate,
    Left,
    Refusal,
    Supply,
    by_reason,
    by_rule,
    by_size,
    shortfall,
    waits_for_machines,
)
from burst.policy.when import FOREVER, limit_of, local_waits
from burst.policy.which import usable_memory_mb
from burst.queue import Queue, sort_jobs, start_threshold

NOW = datetime(2024, 1, 1, tzinfo=UTC)
POLICY = Policy()
NO_POOL = "no-pool"


def pool(name: str, **fields: object) -> Pool:
    given_: dict[str, object] = {
        "tenant": f"t-{name}",
        "network": "farm",
        "provider": "aws",
        "partition": f"burst-{name}",
        "from_partitions": ("batch",),
        "max_nodes": 2,
    }
    return Pool(name=name, **(given_ | fields))  # type: ignore[arg-type]


POOLS = [
    pool("a", accounts=("x",), not_users=("bob",)),
    pool("b", users=("ann", "bob"), types=("small",), max_nodes=1),
    pool("c", from_partitions=("batch", "long"), opt_in=("go",), features=("fast",)),
    pool("d", from_partitions=("long",), opt_out=("stay",), resources=("matlab",)),
]
OFFERS = (
    Offer("aws", "small", "a", 2, 4096, Decimal("0.1")),
    Offer("aws", "large", "a", 16, 65_536, Decimal("0.8")),
)

jobs = st.builds(
    Job,
    id=st.integers(1, 30).map(str),  # some twice: whatever a batch system lists is taken
    user=st.sampled_from(["ann", "bob", "eve"]),
    account=st.sampled_from(["x", "y"]),
    state=st.sampled_from(
        [JobState.PENDING, JobState.PENDING, JobState.PENDING, JobState.HELD, JobState.RUNNING]
    ),
    partitions=st.sampled_from([("batch",), ("long",), ("batch", "burst-a"), ("else",), ()]),
    cores=st.sampled_from([0, 1, 2, 3, 16, 20, 40]),
    nodes=st.sampled_from([1, 1, 1, 2, 3]),
    memory_mb=st.sampled_from([0, 1000, 5000, 70_000]),
    time_limit=st.sampled_from([None, timedelta(minutes=5), timedelta(hours=10)]),
    submitted=st.sampled_from([0, 59, 60, 61, 3600, -5]).map(lambda s: NOW - timedelta(seconds=s)),
    started=st.just(NOW - timedelta(minutes=1)),
    node_names=st.sampled_from([("wn1",), ("wn2",)]),
    reason=st.sampled_from(["Priority", "Resources", "Dependency", ""]),
    features=st.sampled_from([(), ("go",), ("fast",), ("gpu",)]),
    estimated_start=st.sampled_from([None, NOW + timedelta(hours=1), NOW - timedelta(hours=1)]),
    comment=st.sampled_from(["", "stay", "go, please"]),
    needs=st.sampled_from([(), ("matlab",)]),
)


def sized(*cores: int) -> list[Candidate]:
    some = [
        Job(str(i), "ann", "x", JobState.PENDING, ("batch",), n, 1, 0, None, NOW)
        for i, n in enumerate(cores)
    ]
    return [Candidate(job, timedelta(minutes=5), 9.0) for job in some]


def seen(queue: list[Job], habits: bool, cores: int, trusted: bool) -> World:
    nodes = tuple(
        Node(name, NodeState.MIXED, cores, 0, 8000, partitions=(where,))
        for name, where in (("wn1", "batch"), ("wn2", "long"))
    )
    facts = Facts(
        now=NOW,
        farm=Farm(NOW, tuple(queue), nodes),
        leases=(),
        providers={"aws": ProviderFacts("aws", OFFERS, ())},
        habits={"ann": 0.25} if habits else {},
    )
    return world(facts, Policy(trust_estimates=trusted))


def plainly(look: World, pools: list[Pool]) -> Queue:
    """Every rule of every job, one after the other."""
    farm = look.facts.farm
    assert farm is not None
    found = Queue(by_pool={one.name: [] for one in pools})
    pending = [job for job in farm.jobs if job.state in (JobState.PENDING, JobState.HELD)]
    found.pending = sorted(pending, key=lambda job: job.submitted)
    for job in found.pending:
        for name in job.partitions:
            if job.state is JobState.PENDING and name in {one.partition for one in pools}:
                found.routed.setdefault(name, []).append(job)
    waits = {one.name: expected(look, found.pending, one) for one in pools}
    for place, job in enumerate(found.pending):
        rules = [by_rule(job, one) for one in pools]
        able = [one for one, no in zip(pools, rules, strict=True) if no is None]
        sizes = [by_size(job, one, largest(one)) for one in able]
        why = refused(job, [no for no in rules if no], sizes)
        if why is not None:
            found.refused[job.id] = why
            continue
        limit = limit_of(job, look.policy.default_job_time)
        share = look.facts.habits.get(job.user, 1.0)
        seconds = limit.total_seconds() * share
        urgency = worth.urgency(job, seconds, (NOW - job.submitted).total_seconds())
        for one, no in zip(able, sizes, strict=True):
            wait = waits[one.name][place]
            if look.policy.trust_estimates and job.estimated_start and job.estimated_start > NOW:
                wait = (job.estimated_start - NOW).total_seconds()
            takes = seconds if look.facts.habits else 0.0
            if no is None:
                found.by_pool[one.name].append(Candidate(job, limit, wait, takes, urgency))
    return found


def refused(job: Job, rules: list[Refusal], sizes: list[Refusal | None]) -> Refusal | None:
    """Of the pools' reasons the one that came closest, the first of equals."""
    if not sizes:
        return max(rules, key=lambda no: no.rank, default=None) or Refusal(-1, NO_POOL, "")
    too_large = [no for no in sizes if no is not None]
    if len(too_large) == len(sizes):
        return max(too_large, key=lambda no: no.rank)
    return by_reason(job)


def largest(one: Pool) -> dict[str, int]:
    fitting = [offer for offer in OFFERS if not one.types or offer.type in one.types]
    return {
        "cores": max(offer.cores for offer in fitting),
        "memory_mb": max(usable_memory_mb(offer.memory_mb) for offer in fitting),
    }


def expected(look: World, pending: list[Job], one: Pool) -> list[float]:
    farm = look.facts.farm
    assert farm is not None
    here = set(one.from_partitions)
    local = [node for node in farm.nodes if here & set(node.partitions)]
    running = {job.id: job for node in local for job in look.jobs_on.get(node.name, ())}
    inside = [job for job in pending if waits_for_machines(job) and here & set(job.partitions)]
    waits = iter(
        local_waits(
            inside,
            [running[name] for name in sorted(running)],
            sum(node.cores for node in local),
            NOW,
            look.policy.default_job_time,
            timedelta(seconds=start_threshold(look.policy)),
            look.facts.habits,
        )
    )
    able = {id(job) for job in inside}
    return [next(waits) if id(job) in able else FOREVER for job in pending]


@given(
    st.lists(jobs, max_size=40),
    st.booleans(),
    st.sampled_from([0, 2, 64]),
    st.booleans(),
    st.permutations(POOLS).flatmap(lambda some: st.integers(0, 4).map(lambda n: some[:n])),
)
def test_sorting_by_kind_and_size_is_asking_every_rule_of_every_job(
    queue: list[Job], habits: bool, cores: int, trusted: bool, pools: list[Pool]
) -> None:
    look = seen(queue, habits, cores, trusted)
    quick, plain = sort_jobs(look, pools), plainly(look, pools)
    assert quick.pending == plain.pending
    assert quick.routed == plain.routed
    assert quick.by_pool == plain.by_pool
    assert [*quick.refused] == [*plain.refused]
    for name, no in quick.refused.items():
        assert no == plain.refused[name] or no.code == plain.refused[name].code == NO_POOL


@given(
    st.lists(jobs.map(lambda job: Candidate(job, timedelta(minutes=5), 9.0)), max_size=40),
    st.lists(
        st.builds(
            Supply,
            st.integers(0, 16),
            st.integers(0, 60_000),
            st.lists(st.tuples(st.integers(0, 900).map(float), st.integers(1, 8)), max_size=2).map(
                tuple
            ),
        ),
        max_size=6,
    ),
    st.sampled_from([0.0, 300.0, 700.0]),
)
@example(sized(1, 1, 0), [Supply(1, 1000)], 0.0)
def test_when_nothing_is_free_any_more_the_rest_of_the_queue_is_left(
    candidates: list[Candidate], supplies: list[Supply], horizon: float
) -> None:
    served: list[Candidate] = []
    left = shortfall(candidates, supplies, horizon, served)
    assert (left, served) == one_by_one(candidates, supplies, horizon)


def one_by_one(
    candidates: list[Candidate], supplies: list[Supply], horizon: float
) -> tuple[list[Left], list[Candidate]]:
    """`shortfall` without its short cut: every job looks at what there is."""
    free = [(-one.cores, -one.memory_mb, i) for i, one in enumerate(supplies)]
    soon = [(when, cores) for one in supplies for when, cores in one.soon if when <= horizon]
    left: list[Left] = []
    served: list[Candidate] = []
    for candidate in candidates:
        job = candidate.job
        free.sort()
        soon.sort()
        a_node, memory = max(job.cores_a_node, 1), job.memory_a_node
        if job.nodes > 1:
            held = 0
            for cores, room, _ in free[: job.nodes]:
                if -cores < a_node or -room < memory:
                    break
                held += 1
            free[:held] = [(cores + a_node, room + memory, i) for cores, room, i in free[:held]]
            if held < job.nodes:
                left.append(Left(candidate, job.nodes - held))
            else:
                served.append(candidate)
            continue
        wanted, when = max(job.cores, 1), 0.0
        if free and -free[0][0] >= job.cores and -free[0][1] >= job.memory_mb:
            cores, room, i = free[0]
            free[0] = (cores + wanted, room + job.memory_mb, i)
        elif soon and soon[0][1] >= wanted:
            when, cores = soon.pop(0)
            if cores > wanted:
                soon.append((when, cores - wanted))
        else:
            left.append(Left(candidate, 1))
            continue
        served.append(candidate)
        if when + candidate.seconds <= horizon:
            soon.append((when + candidate.seconds, wanted))
    return left, served

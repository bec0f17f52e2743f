"""Second pass: who waits, for how long, and which pool could take whom.

Written for queues of a hundred thousand jobs: what is the same for all jobs of a kind (partitions,
owner, features) is asked once for the kind, what is the same for all of a size (cores, memory, time
limit, the LRMS's reason) once for the size, and only age and expected wait for each job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import attrgetter

from burst.model import Farm, Job, JobState, NodeState, Policy, Pool
from burst.observe import World
from burst.policy import worth
from burst.policy.demand import (
    Candidate,
    Refusal,
    by_reason,
    by_rule,
    by_size,
    waits_for_machines,
)
from burst.policy.when import FOREVER, limit_of, local_waits
from burst.policy.which import ranked, usable_memory_mb

# What a pool's rules may depend on, and what its machines' size: jobs are read by these in C.
_PARTITIONS = attrgetter("partitions")
_KIND = attrgetter("user", "account", "partitions", "features", "needs")
_KIND_AND_WORDS = attrgetter("user", "account", "partitions", "features", "needs", "comment")
_SIZE = attrgetter("cores", "nodes", "memory_mb", "time_limit", "reason")

_USABLE = (NodeState.IDLE, NodeState.MIXED, NodeState.ALLOCATED)
_NO_POOL = Refusal(-1, "no-pool", "no pool of the site file takes jobs of this kind")


@dataclass(slots=True)
class Queue:
    """The pending jobs in the order of submission, sorted into pools."""

    pending: list[Job] = field(default_factory=list)
    by_pool: dict[str, list[Candidate]] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)  # by job id: those no pool takes
    routed: dict[str, list[Job]] = field(default_factory=dict)  # by partition of a pool

    _urgent: dict[str, list[Candidate]] = field(default_factory=dict)

    def candidates(self, pool: Pool) -> list[Candidate]:
        return self.by_pool.get(pool.name, [])

    def urgent(self, pool: Pool) -> list[Candidate]:
        """The candidates, the most deserving first."""
        if pool.name not in self._urgent:
            self._urgent[pool.name] = worth.by_urgency(self.candidates(pool))
        return self._urgent[pool.name]


def start_threshold(policy: Policy) -> float:
    """Seconds a job must be expected to wait here before a machine is rented for it."""
    return (policy.expected_start_cost + policy.margin).total_seconds()


def sort_jobs(world: World, pools: Sequence[Pool]) -> Queue:
    farm = world.facts.farm
    if farm is None:
        return Queue()
    queue = Queue(by_pool={pool.name: [] for pool in pools})
    waiting = (JobState.PENDING, JobState.HELD)
    queue.pending = [job for job in farm.jobs if job.state in waiting]
    queue.pending.sort(key=attrgetter("submitted"))  # stable: the LRMS's order among equals
    _note_routed(queue, pools)
    if not queue.pending:
        return queue
    _Sorter(world, pools, _forecasts(world, farm, queue.pending, pools)).sort_all(queue)
    return queue


def _note_routed(queue: Queue, pools: Sequence[Pool]) -> None:
    ours = {pool.partition for pool in pools}
    touched = {
        names for names in set(map(_PARTITIONS, queue.pending)) if not ours.isdisjoint(names)
    }
    if not touched:
        return
    for job in queue.pending:
        if job.partitions in touched and job.state is JobState.PENDING:
            for name in job.partitions:
                if name in ours:
                    queue.routed.setdefault(name, []).append(job)


class _Sorter:
    """One round's answers for kinds of jobs, so that each is worked out once."""

    def __init__(
        self, world: World, pools: Sequence[Pool], waits: Mapping[tuple[str, ...], Sequence[float]]
    ) -> None:
        self._world, self._pools = world, pools
        self._policy, self._now = world.policy, world.now
        self._habits = world.facts.habits
        self._waits = {pool.name: waits[pool.from_partitions] for pool in pools}
        self._largest = {pool.name: _largest(world, pool) for pool in pools}
        self._sets: dict[tuple[str, ...], _Open] = {}

    def sort_all(self, queue: Queue) -> None:
        """Each pending job to the pools that take it, or to the reason why none does."""
        policy, now, habits = self._policy, self._now, self._habits
        pending, refused = queue.pending, queue.refused
        words = any(pool.opt_in or pool.opt_out for pool in self._pools)
        kinds = map(_KIND_AND_WORDS if words else _KIND, pending)
        sizes = map(_SIZE, pending)
        known: dict[object, _Open] = {}
        held: dict[object, _Open] = {}  # apart: an enum's own hash is slow
        trusted = policy.trust_estimates
        for place, (job, kind, size) in enumerate(zip(pending, kinds, sizes, strict=True)):
            of_kind = known if job.state is JobState.PENDING else held
            found = of_kind.get(kind)
            if found is None:
                found = of_kind[kind] = self._kind(job, queue)
            if found.stays is not None:
                refused[job.id] = found.stays
                continue
            shape = found.shapes.get(size)
            if shape is None:
                shape = found.shapes[size] = self._shape(job, found.takers)
            if shape.stays is not None:
                refused[job.id] = shape.stays
                continue
            seconds, takes = shape.seconds, 0.0
            if habits:
                takes = seconds = seconds * habits.get(job.user, 1.0)
            urgency = worth.urgency(job, seconds, (now - job.submitted).total_seconds())
            for candidates, waits in shape.fitting:
                wait = waits[place]
                if trusted:
                    wait = self._trusted(job, wait)
                candidates.append(Candidate(job, shape.limit, wait, takes, urgency))

    def _kind(self, job: Job, queue: Queue) -> _Open:
        """The pools whose rules let jobs of this kind in, or why the closest of them does not."""
        no = _NO_POOL
        names: list[str] = []
        for pool in self._pools:
            refused = by_rule(job, pool)
            if refused is None:
                names.append(pool.name)
            elif refused.rank > no.rank:
                no = refused
        if not names:
            return _Open(no, ())
        found = self._sets.get(tuple(names))
        if found is None:
            takers = tuple(
                _Taker(
                    pool, self._waits[pool.name], self._largest[pool.name], queue.candidates(pool)
                )
                for pool in self._pools
                if pool.name in names
            )
            found = self._sets[tuple(names)] = _Open(None, takers)
        return found

    def _shape(self, job: Job, takers: Sequence[_Taker]) -> _Shape:
        """What becomes of jobs of this size that these pools would take."""
        sizes = [by_size(job, taker.pool, taker.largest) for taker in takers]
        refused = [size for size in sizes if size is not None]
        stays = by_reason(job)
        if len(refused) == len(sizes):
            stays = max(refused, key=lambda no: no.rank)
        limit = limit_of(job, self._policy.default_job_time)
        fitting = tuple(
            (taker.candidates, taker.waits)
            for taker, size in zip(takers, sizes, strict=True)
            if size is None
        )
        return _Shape(stays, limit, limit.total_seconds(), fitting)

    def _trusted(self, job: Job, wait: float) -> float:
        """The batch system's own estimate, where it has one that is not past."""
        if job.estimated_start is None:
            return wait
        ahead = (job.estimated_start - self._now).total_seconds()
        return ahead if ahead > 0 else wait


@dataclass(frozen=True, slots=True)
class _Taker:
    """A pool that takes jobs of some kind, with what is asked for each of them."""

    pool: Pool
    waits: Sequence[float]  # by place in the queue
    largest: Mapping[str, int]  # of its machines
    candidates: list[Candidate]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What jobs of one size have in common where the same pools would take them."""

    stays: Refusal | None  # why none of them goes anywhere
    limit: timedelta
    seconds: float
    fitting: tuple[tuple[list[Candidate], Sequence[float]], ...]  # pools that have such machines


@dataclass(frozen=True, slots=True)
class _Open:
    """The pools that take jobs of some kind, and the sizes of such jobs seen so far, by `_SIZE`."""

    stays: Refusal | None  # why there is no such pool
    takers: tuple[_Taker, ...]
    shapes: dict[object, _Shape] = field(default_factory=dict)


def _forecasts(
    world: World, farm: Farm, pending: Sequence[Job], pools: Sequence[Pool]
) -> dict[tuple[str, ...], list[float]]:
    """Expected waits, by place in the queue, for each set of partitions that a pool takes from."""
    waiting = {job.reason: job for job in pending if job.state is JobState.PENDING}
    able = {reason for reason, job in waiting.items() if waits_for_machines(job)}
    listed = set(map(_PARTITIONS, pending))
    found: dict[tuple[str, ...], list[float]] = {}
    for partitions in dict.fromkeys(pool.from_partitions for pool in pools):
        inside = {names for names in listed if not set(partitions).isdisjoint(names)}
        places = [
            place
            for place, job in enumerate(pending)
            if job.partitions in inside and job.reason in able and job.state is JobState.PENDING
        ]
        waits = [FOREVER] * len(pending)
        seconds = _forecast(world, farm, [pending[place] for place in places], partitions)
        for place, wait in zip(places, seconds, strict=True):
            waits[place] = wait
        found[partitions] = waits
    return found


def _forecast(
    world: World, farm: Farm, queued: Sequence[Job], partitions: tuple[str, ...]
) -> list[float]:
    """Expected waits on the site's own nodes of these partitions."""
    ours = {lease.node for lease in world.facts.leases}
    here = set(partitions)
    local = [
        node
        for node in farm.nodes
        if node.name not in ours and node.state in _USABLE and here & set(node.partitions)
    ]
    names = {node.name for node in local}
    running = {job.id: job for name in names for job in world.jobs_on.get(name, ())}
    policy = world.policy
    return local_waits(
        queued,
        [running[name] for name in sorted(running)],
        sum(node.cores for node in local),
        world.now,
        policy.default_job_time,
        timedelta(seconds=start_threshold(policy)),
        world.facts.habits,
    )


def _largest(world: World, pool: Pool) -> dict[str, int]:
    """The biggest machine the pool could take: no job beyond it is ever moved there."""
    provider = world.facts.providers.get(pool.provider)
    offers = ranked(provider.offers, pool.types) if provider else []
    sizes = [(offer.cores, offer.memory_mb) for offer in offers]
    sizes += [(lse.cores, lse.memory_mb) for lse in world.facts.leases if lse.pool == pool.name]
    if not sizes:
        return {}
    return {
        "cores": max(cores for cores, _ in sizes),
        "memory_mb": max(usable_memory_mb(memory) for _, memory in sizes),
    }

"""Second pass: who waits, for how long, and which pool could take whom.

Written for queues of a hundred thousand jobs: what is the same for all jobs of a kind (partitions,
owner, features, the LRMS's reason) is asked once for the kind, and only size, age and expected wait
once for each job.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

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
from burst.policy.when import FOREVER, local_waits
from burst.policy.which import ranked, usable_memory_mb

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
    queue.pending.sort(key=lambda job: job.submitted)  # stable: the LRMS's order among equals
    _note_routed(queue, pools)
    if not queue.pending:
        return queue
    _Sorter(world, pools, _forecasts(world, farm, queue.pending, pools)).sort_all(queue)
    return queue


def _note_routed(queue: Queue, pools: Sequence[Pool]) -> None:
    ours = {pool.partition for pool in pools}
    for job in queue.pending:
        if len(job.partitions) == 1 and job.partitions[0] not in ours:
            continue  # nearly all of them
        for name in job.partitions:
            if name in ours and job.state is JobState.PENDING:
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
        self._words = any(pool.opt_in or pool.opt_out for pool in pools)
        self._kinds: dict[object, tuple[tuple[_Taker, ...], Refusal]] = {}
        self._reasons: dict[str, Refusal | None] = {}

    def sort_all(self, queue: Queue) -> None:
        """Each pending job to the pools that take it, or to the reason why none does."""
        policy, now, habits = self._policy, self._now, self._habits
        default = policy.default_job_time
        refused, kinds, reasons = queue.refused, self._kinds, self._reasons
        comment = ""
        lengths: dict[timedelta, float] = {}  # few different ones
        for place, job in enumerate(queue.pending):
            if self._words:
                comment = job.comment
            held = job.state is JobState.HELD  # an enum's own hash is slow
            kind = (
                job.user, job.account, job.partitions, job.features, job.needs, comment, held
            )  # fmt: skip
            found = kinds.get(kind)
            if found is None:
                found = kinds[kind] = self._kind(job, queue)
            takers, no = found
            if not takers:
                refused[job.id] = no
                continue
            if job.reason not in reasons:
                reasons[job.reason] = by_reason(job)
            late = reasons[job.reason]
            if late is not None:
                whole = all(
                    job.nodes == 1 and job.cores <= one.cores and job.memory_mb <= one.memory
                    for one in takers
                )
                refused[job.id] = (None if whole else self._size(job, takers)) or late
                continue
            limit = job.time_limit
            if limit is None:
                limit = default
            known = lengths.get(limit)
            if known is None:
                known = lengths[limit] = limit.total_seconds()
            seconds, takes = known, 0.0
            if habits:
                takes = seconds = seconds * habits.get(job.user, 1.0)
            urgency = worth.urgency(job, seconds, (now - job.submitted).total_seconds())
            taken = False
            for taker in takers:
                if (
                    job.nodes == 1 and job.cores <= taker.cores and job.memory_mb <= taker.memory
                ) or by_size(job, taker.pool, taker.largest) is None:
                    wait = taker.waits[place]
                    if policy.trust_estimates:
                        wait = self._trusted(job, wait)
                    taker.candidates.append(Candidate(job, limit, wait, takes, urgency))
                    taken = True
            if not taken:
                refused[job.id] = self._size(job, takers) or no

    def _kind(self, job: Job, queue: Queue) -> tuple[tuple[_Taker, ...], Refusal]:
        """The pools whose rules let jobs of this kind in, and why the closest of the others does
        not."""
        no = _NO_POOL
        takers: list[_Taker] = []
        for pool in self._pools:
            refused = by_rule(job, pool)
            if refused is None:
                waits, largest = self._waits[pool.name], self._largest[pool.name]
                takers.append(
                    _Taker(
                        pool,
                        waits,
                        largest,
                        largest.get("cores", sys.maxsize),
                        largest.get("memory_mb", sys.maxsize),
                        queue.by_pool[pool.name],
                    )
                )
            elif refused.rank > no.rank:
                no = refused
        return tuple(takers), no

    def _size(self, job: Job, takers: Sequence[_Taker]) -> Refusal | None:
        """What keeps a job out everywhere that is too large for each of these pools."""
        sizes = [by_size(job, taker.pool, taker.largest) for taker in takers]
        refused = [size for size in sizes if size is not None]
        if len(refused) < len(sizes):
            return None
        return max(refused, key=lambda no: no.rank)

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
    largest: Mapping[str, int]  # of its machines, and the same as numbers
    cores: int
    memory: int
    candidates: list[Candidate]


def _forecasts(
    world: World, farm: Farm, pending: Sequence[Job], pools: Sequence[Pool]
) -> dict[tuple[str, ...], list[float]]:
    """Expected waits, by place in the queue, for each set of partitions that a pool takes from."""
    able: dict[str, bool] = {}
    waiting: list[tuple[int, Job]] = []
    for place, job in enumerate(pending):
        if job.state is not JobState.PENDING:
            continue
        could = able.get(job.reason)
        if could is None:
            could = able[job.reason] = waits_for_machines(job)
        if could:
            waiting.append((place, job))
    found: dict[tuple[str, ...], list[float]] = {}
    for pool in pools:
        if pool.from_partitions not in found:
            waits = [FOREVER] * len(pending)
            _forecast(world, farm, waiting, pool.from_partitions, waits)
            found[pool.from_partitions] = waits
    return found


def _forecast(
    world: World,
    farm: Farm,
    waiting: Sequence[tuple[int, Job]],
    partitions: tuple[str, ...],
    waits: list[float],
) -> None:
    """Note expected waits on the site's own nodes of these partitions."""
    ours = {lease.node for lease in world.facts.leases}
    here = set(partitions)
    local = [
        node
        for node in farm.nodes
        if node.name not in ours and node.state in _USABLE and here & set(node.partitions)
    ]
    names = {node.name for node in local}
    running = {job.id: job for name in names for job in world.jobs_on.get(name, ())}
    inside: dict[tuple[str, ...], bool] = {}
    places: list[int] = []
    queued: list[Job] = []
    for place, job in waiting:
        could = inside.get(job.partitions)
        if could is None:
            could = inside[job.partitions] = not here.isdisjoint(job.partitions)
        if could:
            places.append(place)
            queued.append(job)
    policy = world.policy
    seconds = local_waits(
        queued,
        [running[name] for name in sorted(running)],
        sum(node.cores for node in local),
        world.now,
        policy.default_job_time,
        timedelta(seconds=start_threshold(policy)),
        world.facts.habits,
    )
    for place, wait in zip(places, seconds, strict=True):
        waits[place] = wait


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

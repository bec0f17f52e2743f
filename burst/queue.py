"""Second pass: who waits, for how long, and which pool could take whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from burst.model import Farm, Job, JobState, NodeState, Policy, Pool
from burst.observe import World
from burst.policy.demand import Candidate, Refusal, refusal, waits_for_machines
from burst.policy.when import FOREVER, limit_of, local_waits
from burst.policy.which import ranked, usable_memory_mb

_USABLE = (NodeState.IDLE, NodeState.MIXED, NodeState.ALLOCATED)
_NO_POOL = Refusal(-1, "no-pool", "no pool of the site file takes jobs of this kind")


@dataclass(slots=True)
class Queue:
    """The pending jobs in the order of submission, sorted into pools."""

    pending: list[Job] = field(default_factory=list)
    by_pool: dict[str, list[Candidate]] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)  # by job id: those no pool takes

    def candidates(self, pool: Pool) -> list[Candidate]:
        return self.by_pool.get(pool.name, [])


def start_threshold(policy: Policy) -> float:
    """Seconds a job must be expected to wait here before a machine is rented for it."""
    return (policy.expected_start_cost + policy.margin).total_seconds()


def sort_jobs(world: World, pools: Sequence[Pool]) -> Queue:
    farm = world.facts.farm
    if farm is None:
        return Queue()
    queue = Queue()
    waiting = (JobState.PENDING, JobState.HELD)
    queue.pending = [job for job in farm.jobs if job.state in waiting]
    queue.pending.sort(key=lambda job: job.submitted)  # stable: the LRMS's order among equals
    forecasts: dict[tuple[str, ...], Mapping[str, float]] = {}
    taken: set[str] = set()
    best: dict[str, Refusal] = {}
    for pool in pools:
        waits = forecasts.get(pool.from_partitions)
        if waits is None:
            waits = _forecast(world, farm, queue.pending, pool.from_partitions)
            forecasts[pool.from_partitions] = waits
        largest = _largest(world, pool)
        candidates = queue.by_pool.setdefault(pool.name, [])
        for job in queue.pending:
            no = refusal(job, pool, world.policy, world.now, largest)
            if no is None:
                limit = limit_of(job, world.policy.default_job_time)
                candidates.append(Candidate(job, limit, waits.get(job.id, FOREVER)))
                taken.add(job.id)
            elif job.id not in best or no.rank > best[job.id].rank:
                best[job.id] = no
    queue.refused = {
        job.id: best.get(job.id, _NO_POOL) for job in queue.pending if job.id not in taken
    }
    return queue


def _forecast(
    world: World, farm: Farm, pending: Sequence[Job], partitions: tuple[str, ...]
) -> dict[str, float]:
    """Expected waits, by job id, on the site's own nodes of these partitions."""
    ours = {lease.node for lease in world.facts.leases}
    here = set(partitions)
    local = [
        node
        for node in farm.nodes
        if node.name not in ours and node.state in _USABLE and here & set(node.partitions)
    ]
    names = {node.name for node in local}
    running = {job.id: job for name in names for job in world.jobs_on.get(name, ())}
    queued = [job for job in pending if waits_for_machines(job) and here & set(job.partitions)]
    policy = world.policy
    seconds = local_waits(
        queued,
        [running[name] for name in sorted(running)],
        sum(node.cores for node in local),
        world.now,
        policy.default_job_time,
        timedelta(seconds=start_threshold(policy)),
    )
    return {job.id: wait for job, wait in zip(queued, seconds, strict=True)}


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

"""Which jobs could go to borrowed machines, and how much of them nothing on its way will serve."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from burst.model import Job, JobState, Policy, Pool

# The LRMS's words (Slurm's job reason codes, squeue(1)) for waiting that no machine can end.
_NOT_FOR_WANT_OF_MACHINES = (
    "Dependency",
    "BeginTime",
    "JobArrayTaskLimit",
    "JobArrayBegun",  # PBS: tasks of a begun array stay where they are
    "Licenses",
    "Reservation",
    "Assoc",
    "QOS",
    "Held",
    "JobHeld",
    "InvalidAccount",
    "InvalidQOS",
    "Cleaning",
    "DeadLine",
    "BadConstraints",
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job stays: the later the rule, the closer the job came (`rank`)."""

    rank: int
    code: str
    message: str


_HELD = Refusal(9, "held", "it is held: it stays where it is until it is released")
_NODES = Refusal(3, "multi-node", "it wants several nodes at once; only one-node jobs are moved")


def refusal(
    job: Job, pool: Pool, policy: Policy, now: datetime, largest: Mapping[str, int]
) -> Refusal | None:
    """The first rule that keeps the job from this pool; None if it may go there.

    `largest` holds `cores` and `memory_mb` of the biggest machine the pool could take; empty when
    the provider's offers are not known.
    """
    if job.state is JobState.HELD:
        return _HELD
    if pool.partition not in job.partitions and not _overlap(job.partitions, pool.from_partitions):
        text = f"pool {pool.name} takes jobs from {', '.join(pool.from_partitions)} only"
        return Refusal(0, "other-partition", text)
    open_to_all = not pool.users and not pool.accounts
    if not open_to_all and job.user not in pool.users and job.account not in pool.accounts:
        return Refusal(1, "other-user", f"pool {pool.name} is not for jobs of {job.user}")
    if job.features and not set(job.features) <= set(pool.features):
        missing = ", ".join(sorted(set(job.features) - set(pool.features)))
        text = f"it asks for {missing}, which machines of pool {pool.name} do not have"
        return Refusal(2, "local-only", text)
    if job.nodes > 1:
        return _NODES
    if largest and (job.cores > largest["cores"] or job.memory_mb > largest["memory_mb"]):
        text = (
            f"it wants {job.cores} cores and {job.memory_mb} MiB; the largest machine of pool "
            f"{pool.name} has {largest['cores']} cores and {largest['memory_mb']} MiB for jobs"
        )
        return Refusal(4, "too-big", text)
    if not waits_for_machines(job):
        text = f"the LRMS holds it back ({job.reason}); another machine would not help"
        return Refusal(5, "lrms-reason", text)
    age = now - job.submitted
    if age < policy.min_job_age:
        text = (
            f"it waits since {age.total_seconds():.0f} s; jobs younger than "
            f"{policy.min_job_age.total_seconds():.0f} s are left alone"
        )
        return Refusal(6, "young", text)
    return None


def waits_for_machines(job: Job) -> bool:
    """Whether another machine could help this pending job at all."""
    return job.state is JobState.PENDING and not job.reason.startswith(_NOT_FOR_WANT_OF_MACHINES)


def _overlap(some: Collection[str], others: Collection[str]) -> bool:
    return any(name in others for name in some)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pending job that may go to the pool, its time limit, and its expected wait here."""

    job: Job
    limit: timedelta
    wait: float  # seconds; infinite if it can never start here

    @property
    def wait_text(self) -> str:
        return "for ever" if math.isinf(self.wait) else f"{self.wait:.0f} s"


@dataclass(frozen=True, slots=True)
class Supply:
    """What one lease has free for jobs, or will have."""

    cores: int
    memory_mb: int


def unserved(candidates: Iterable[Candidate], supplies: Sequence[Supply]) -> list[Candidate]:
    """The candidates left when the supply took, in order, what fits (worst fit, one job a core).

    O(n log m): each job looks only at the machine with most free cores.
    """
    heap = [(-supply.cores, -supply.memory_mb, i) for i, supply in enumerate(supplies)]
    heapq.heapify(heap)
    left: list[Candidate] = []
    for candidate in candidates:
        job = candidate.job
        if not heap or -heap[0][0] < job.cores or -heap[0][1] < job.memory_mb:
            left.append(candidate)
            continue
        cores, memory, i = heap[0]
        heapq.heapreplace(heap, (cores + max(job.cores, 1), memory + job.memory_mb, i))
    return left


def worthwhile_cores(candidates: Sequence[Candidate], start_cost: timedelta) -> int:
    """How many new cores this work would keep busy for at least as long as they take to start.

    A hundred jobs of ten seconds do not deserve a hundred machines that need four minutes.
    """
    work = sum(max(c.job.cores, 1) * c.limit.total_seconds() for c in candidates)
    widest = max((c.job.cores for c in candidates), default=0)
    per_core = max(start_cost.total_seconds(), 1.0)
    return max(widest, math.ceil(work / per_core))

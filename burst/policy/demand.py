"""Which jobs could go to borrowed machines, and how much of them nothing on its way will serve."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

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
_WORD = re.compile(r"[^\s,;]+")
SHORTEST_S = 60.0  # a job is not taken for shorter than that where its length is divided by


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
    return (
        by_rule(job, pool)
        or by_size(job, pool, largest)
        or by_reason(job)
        or by_age(job, policy, now)
    )


def by_rule(job: Job, pool: Pool) -> Refusal | None:
    """What site and user say of jobs of this kind: the same for all that are alike."""
    if job.state is JobState.HELD:
        return _HELD
    if pool.partition not in job.partitions and not _overlap(job.partitions, pool.from_partitions):
        text = f"pool {pool.name} takes jobs from {', '.join(pool.from_partitions)} only"
        return Refusal(0, "other-partition", text)
    return _by_owner(job, pool) or _by_word(job, pool) or _by_need(job, pool)


def _by_owner(job: Job, pool: Pool) -> Refusal | None:
    if job.user in pool.not_users or job.account in pool.not_accounts:
        who = f"user {job.user}" if job.user in pool.not_users else f"account {job.account}"
        return Refusal(1, "other-user", f"pool {pool.name} takes no job of {who}")
    open_to_all = not pool.users and not pool.accounts
    if not open_to_all and job.user not in pool.users and job.account not in pool.accounts:
        return Refusal(1, "other-user", f"pool {pool.name} is not for jobs of {job.user}")
    return None


def _by_word(job: Job, pool: Pool) -> Refusal | None:
    if not pool.opt_in and not pool.opt_out:
        return None
    words = {*job.features, *_WORD.findall(job.comment)}
    out = words.intersection(pool.opt_out)
    if out:
        text = f"it says {min(out)} in its features or comment, which keeps it from pool"
        return Refusal(2, "opted-out", f"{text} {pool.name}")
    if pool.opt_in and not words.intersection(pool.opt_in):
        text = f"pool {pool.name} takes only jobs that say {' or '.join(pool.opt_in)}"
        return Refusal(2, "not-opted-in", f"{text} as a feature or in their comment")
    return None


def _by_need(job: Job, pool: Pool) -> Refusal | None:
    # A feature that opts a job in is no property a machine must have.
    wanted = set(job.features).difference(pool.opt_in)
    if wanted and not wanted <= set(pool.features):
        missing = ", ".join(sorted(wanted - set(pool.features)))
        text = f"it asks for {missing}, which machines of pool {pool.name} do not have"
        return Refusal(2, "local-only", text)
    if job.needs and not set(job.needs) <= set(pool.resources):
        missing = ", ".join(sorted(set(job.needs) - set(pool.resources)))
        text = f"it needs {missing}, which only the site's own nodes have"
        return Refusal(2, "local-only", text)
    return None


def by_size(job: Job, pool: Pool, largest: Mapping[str, int]) -> Refusal | None:
    if job.nodes > 1 and pool.max_nodes == 1:
        return _NODES
    if job.nodes > pool.max_nodes:
        text = f"it wants {job.nodes} nodes at once; jobs of up to {pool.max_nodes} go to pool"
        return Refusal(3, "multi-node", f"{text} {pool.name}")
    if job.nodes > pool.max_machines:
        text = f"it wants {job.nodes} nodes at once; pool {pool.name} may have {pool.max_machines}"
        return Refusal(4, "too-big", f"{text} machines")
    if largest and (job.cores > largest["cores"] or job.memory_mb > largest["memory_mb"]):
        cores, memory = job.cores_a_node, job.memory_a_node
        if cores <= largest["cores"] and memory <= largest["memory_mb"]:
            return None  # more than one machine has, but on several
        a_node = " on each of its nodes" if job.nodes > 1 else ""
        text = (
            f"it wants {cores} cores and {memory} MiB{a_node}; the largest machine of pool "
            f"{pool.name} has {largest['cores']} cores and {largest['memory_mb']} MiB for jobs"
        )
        return Refusal(4, "too-big", text)
    return None


def by_reason(job: Job) -> Refusal | None:
    if waits_for_machines(job):
        return None
    text = f"the LRMS holds it back ({job.reason}); another machine would not help"
    return Refusal(5, "lrms-reason", text)


def by_age(job: Job, policy: Policy, now: datetime) -> Refusal | None:
    age = now - job.submitted
    if age >= policy.min_job_age:
        return None
    text = (
        f"it waits since {age.total_seconds():.0f} s; no machine is rented for jobs younger than "
        f"{policy.min_job_age.total_seconds():.0f} s"
    )
    return Refusal(6, "young", text)


def waits_for_machines(job: Job) -> bool:
    """Whether another machine could help this pending job at all."""
    return job.state is JobState.PENDING and not job.reason.startswith(_NOT_FOR_WANT_OF_MACHINES)


def _overlap(some: Collection[str], others: Collection[str]) -> bool:
    return not set(some).isdisjoint(others)


class Candidate(NamedTuple):
    """A pending job that may go to the pool, its time limit, and its expected wait here.

    A tuple, since there may be a hundred thousand of them in each round.
    """

    job: Job
    limit: timedelta
    wait: float  # seconds; infinite if it can never start here
    takes: float = (
        0.0  # seconds it is expected to run; its limit unless its user's habits are known
    )
    urgency: float = 0.0  # how much it deserves a machine (`policy.worth`)

    @property
    def wait_text(self) -> str:
        return "for ever" if math.isinf(self.wait) else f"{self.wait:.0f} s"

    @property
    def seconds(self) -> float:
        """How long it is expected to run, and no less than what is worth counting."""
        return max(self.takes or self.limit.total_seconds(), SHORTEST_S)

    def gain(self, start_cost: float) -> float:
        """How many times its own length it would wait less on a machine rented now."""
        return max(self.wait - start_cost, 0.0) / self.seconds


@dataclass(frozen=True, slots=True)
class Supply:
    """What one lease has free for jobs, or will have. `soon`: cores of it that its running jobs
    give back, each with the seconds until then."""

    cores: int
    memory_mb: int
    soon: tuple[tuple[float, int], ...] = ()


class Left(NamedTuple):
    """Work that no supply takes: of a job for several machines only `missing` are lacking."""

    candidate: Candidate
    missing: int


def unserved(
    candidates: Iterable[Candidate], supplies: Sequence[Supply], horizon: float = 0.0
) -> list[Candidate]:
    """The candidates left when the supply took, in order, what fits; see `shortfall`."""
    return [left.candidate for left in shortfall(candidates, supplies, horizon)]


def settled(
    candidates: Iterable[Candidate], supplies: Sequence[Supply], horizon: float
) -> tuple[list[Left], list[Candidate]]:
    """What is left, and what is served."""
    served: list[Candidate] = []
    return shortfall(candidates, supplies, horizon, served), served


def shortfall(
    candidates: Iterable[Candidate],
    supplies: Sequence[Supply],
    horizon: float = 0.0,
    served: list[Candidate] | None = None,
) -> list[Left]:
    """What is left when the supply took, in order, what fits: free cores first, on the machine
    with most of them (worst fit); then those that come free within `horizon` seconds, which is as
    soon as a new machine would be there.

    Whoever is not left is noted in `served`.

    A job for several machines holds those there are, so that nobody else counts on them, and lacks
    the rest. O(n log m): a job looks only at the machine with most free cores.
    """
    heap = [(-supply.cores, -supply.memory_mb, i) for i, supply in enumerate(supplies)]
    heapq.heapify(heap)
    soon = [(when, cores) for supply in supplies for when, cores in supply.soon if when <= horizon]
    heapq.heapify(soon)
    left: list[Left] = []
    taken = [] if served is None else served
    lacking = left.append
    over = False  # no core is free, and none comes free in time
    for candidate in candidates:
        job = candidate.job
        if over and job.cores > 0:
            lacking(Left(candidate, job.nodes if job.nodes > 1 else 1))
            continue
        if job.nodes > 1:
            missing = job.nodes - _hold(heap, job)
            if missing:
                left.append(Left(candidate, missing))
            else:
                taken.append(candidate)
            continue
        wanted = max(job.cores, 1)
        if heap and -heap[0][0] >= job.cores and -heap[0][1] >= job.memory_mb:
            cores, memory, i = heap[0]
            heapq.heapreplace(heap, (cores + wanted, memory + job.memory_mb, i))
            _comes_free(soon, candidate.seconds, wanted, horizon)
            taken.append(candidate)
        elif soon and soon[0][1] >= wanted:
            when, cores = soon[0]
            if cores > wanted:
                heapq.heapreplace(soon, (when, cores - wanted))
            else:
                heapq.heappop(soon)
            _comes_free(soon, when + candidate.seconds, wanted, horizon)
            taken.append(candidate)
        else:
            left.append(Left(candidate, 1))
            over = not soon and (not heap or heap[0][0] >= 0)
    return left


def _comes_free(soon: list[tuple[float, int]], when: float, cores: int, horizon: float) -> None:
    if when <= horizon:
        heapq.heappush(soon, (when, cores))


def _hold(heap: list[tuple[int, int, int]], job: Job) -> int:
    """Take up to `job.nodes` machines for it; how many there were."""
    cores, memory = max(job.cores_a_node, 1), job.memory_a_node
    taken: list[tuple[int, int, int]] = []
    while heap and len(taken) < job.nodes and -heap[0][0] >= cores and -heap[0][1] >= memory:
        free, room, i = heapq.heappop(heap)
        taken.append((free + cores, room + memory, i))
    for one in taken:
        heapq.heappush(heap, one)
    return len(taken)


def worthwhile_cores(candidates: Iterable[Candidate], start_cost: timedelta) -> int:
    """How many new cores this work would keep busy for at least as long as they take to start.

    A hundred jobs of ten seconds do not deserve a hundred machines that need four minutes.
    """
    work, widest = 0.0, 0
    for job, limit, _, takes, _ in candidates:
        cores = job.cores
        if cores < 1:
            cores = 1
        if cores > widest:
            widest = cores
        work += cores * (takes or limit.total_seconds())
    per_core = max(start_cost.total_seconds(), 1.0)
    return max(widest, math.ceil(work / per_core))

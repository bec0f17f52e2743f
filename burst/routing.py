"""Fourth pass: make queued jobs eligible for borrowed nodes, and take that back in time.

A routed job may start here or there, whichever comes first; routing more jobs than the nodes can
soon take only costs calls to the LRMS. So the queue in front of them is kept two rounds deep.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from burst.actions import Route, Unroute
from burst.funds import purse_of, top_up
from burst.model import Job, Lease, Pool
from burst.observe import duration_text
from burst.policy import money, worth
from burst.policy.demand import Candidate
from burst.policy.when import limit_of
from burst.queue import Queue
from burst.round import Round

DEPTH = 2  # routed cores waiting, for each core of a borrowed node


def route(paper: Round, queue: Queue) -> None:
    if paper.world.facts.farm is None:
        return
    for pool in paper.pools:
        _route_pool(paper, queue, pool)


def _route_pool(paper: Round, queue: Queue, pool: Pool) -> None:
    nodes = paper.accepting(pool)
    routed = queue.routed.get(pool.partition, [])
    if not nodes:
        _take_back(paper, pool, routed, "pool has no usable node now")
        return
    candidates = queue.candidates(pool)
    limits = {candidate.limit for candidate in candidates}
    limits |= {limit_of(job, paper.policy.default_job_time) for job in routed}
    purses = [purse_of(paper, lease) for lease in nodes]
    free = max(paper.free.get(pool.account, Decimal(0)), Decimal(0))
    longest = money.affordable_limit(purses, free, sorted(limits))
    for candidate in candidates:
        if longest is None or candidate.limit > longest:
            _say_too_long(paper, pool, candidate, longest)
    too_long = [job for job in routed if not _affordable(paper, job, longest)]
    _take_back(paper, pool, too_long, "the budget does not cover its time limit")
    stay = [job for job in routed if _affordable(paper, job, longest)]
    new = _chosen(paper, queue, pool, stay, nodes, longest)
    for candidate in new:
        paper.routes.append(Route(candidate.job.id, pool.partition))
    reach = [limit_of(job, paper.policy.default_job_time) for job in stay]
    reach += [candidate.limit for candidate in new]
    if reach:
        top_up(paper, nodes, max(reach))
    for job in [*stay, *(candidate.job for candidate in new)]:
        text = f"it may start on {len(nodes)} borrowed nodes of pool {pool.name}, or here"
        paper.answer(job.id, "routed", text)


def _say_too_long(
    paper: Round, pool: Pool, candidate: Candidate, longest: timedelta | None
) -> None:
    covered = f"{duration_text(longest)}" if longest is not None else "none of those that wait"
    text = (
        f"it may take {duration_text(candidate.limit)}, and the budget of tenant {pool.tenant} "
        f"covers {covered} on the machines of pool {pool.name} now"
    )
    paper.answer(candidate.job.id, "budget", text)


def _affordable(paper: Round, job: Job, longest: timedelta | None) -> bool:
    return longest is not None and limit_of(job, paper.policy.default_job_time) <= longest


def _chosen(
    paper: Round,
    queue: Queue,
    pool: Pool,
    routed: list[Job],
    nodes: list[Lease],
    longest: timedelta | None,
) -> list[Candidate]:
    """The next jobs to route: the most deserving of those that would not start here at once.

    A job for several machines goes when so many are there; the LRMS starts it on all or on none.
    """
    cores = sum(lease.cores for lease in nodes)
    waiting = sum(max(job.cores, 1) for job in routed)
    chosen: list[Candidate] = []
    if longest is None or waiting >= DEPTH * cores:
        return chosen
    core_hour = paper.core_hour(pool)
    start = paper.policy.expected_start_cost.total_seconds()
    for candidate in queue.urgent(pool):
        if waiting >= DEPTH * cores:
            break
        job = candidate.job
        if pool.partition in job.partitions or candidate.wait <= 0 or candidate.limit > longest:
            continue
        if job.nodes > len(nodes) or not worth.pays(candidate, core_hour, start, paper.policy):
            continue
        chosen.append(candidate)
        waiting += max(job.cores, 1)
    return chosen


def _take_back(paper: Round, pool: Pool, jobs: list[Job], why: str) -> None:
    for job in jobs:
        if job.partitions == (pool.partition,) and not job.home:
            text = f"it was submitted to {pool.partition} alone; {why}"
            paper.answer(job.id, "waits-for-pool", text)
        else:
            paper.routes.append(Unroute(job.id, pool.partition))
            paper.answer(job.id, "unrouted", f"no longer offered to pool {pool.name}: {why}")

"""Which job ran on which borrowed machine, noticed from one snapshot to the next.

An LRMS forgets a job some minutes after its end, so what is seen is noted at once. A job that is
no longer seen has ended; when exactly is known only if the LRMS still says so. Otherwise it is
the moment we missed it, and after a restart the moment we looked again: never before its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from burst.model import Farm, Job, JobState, Lease
from burst.money.usage import Work

_THERE = (JobState.RUNNING, JobState.COMPLETING)
_OVER = (JobState.DONE, JobState.FAILED)
_OUTCOMES = {JobState.DONE: "completed", JobState.FAILED: "failed"}
Key = tuple[str, str, datetime]  # lease, job, its start


def key_of(work: Work) -> Key:
    return work.lease, work.job, work.started


def changes(
    known: Mapping[Key, Work], farm: Farm, leases: Iterable[Lease], now: datetime
) -> list[Work]:
    """What is new or has ended since `known`, which holds the open and the recently ended ones."""
    by_node = {lease.node: lease for lease in leases}
    found: list[Work] = []
    there: set[Key] = set()
    ended: dict[tuple[str, str], tuple[datetime, str]] = {}
    for job in farm.jobs:
        if job.ended is not None and job.state in _OVER:
            for node in job.node_names:
                if node in by_node:
                    ended[by_node[node].id, job.id] = job.ended, _OUTCOMES[job.state]
        if job.started is None or job.state not in (*_THERE, *_OVER):
            continue
        for node in job.node_names:
            lease = by_node.get(node)
            if lease is None:
                continue
            work = _work(lease, job)
            if job.state in _THERE:
                there.add(key_of(work))
            if key_of(work) not in known and not _stale(work, lease):
                found.append(work)
    for key, work in known.items():
        if work.ended is None and key not in there:
            end, outcome = ended.get((work.lease, work.job), (None, ""))
            if end is not None and end >= work.started:
                found.append(replace(work, ended=end, outcome=outcome))
            else:
                found.append(replace(work, ended=max(now, work.started)))
    return found


def _work(lease: Lease, job: Job) -> Work:
    assert job.started is not None
    return Work(
        lease=lease.id,
        job=job.id,
        started=job.started,
        user=job.user,
        account=job.account,
        cores=max(min(-(-job.cores // max(job.nodes, len(job.node_names), 1)), lease.cores), 1),
        ended=job.ended if job.state in _OVER else None,
        name=job.name,
        outcome=_OUTCOMES.get(job.state, ""),
    )


def _stale(work: Work, lease: Lease) -> bool:
    """A node's name is used once, but a clock may have jumped: nobody worked before the launch."""
    return work.ended is not None and work.ended < lease.wanted

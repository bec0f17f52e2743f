"""What every adapter but Slurm's does alike: a reading of the queue, kept while it is young."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from burst.lrms.base import LrmsError
from burst.model import Farm, Job, JobState, Node, NodeState

FRESH = timedelta(seconds=5)  # a reading this young is trusted for a job's queues
WAITING = (JobState.PENDING, JobState.HELD)
BUSY = (JobState.RUNNING, JobState.COMPLETING)
CLOSED = (NodeState.DRAINING, NodeState.DRAINED)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Adapter(ABC):
    """The common part of `burst.lrms.base.Lrms`. Not for several threads at once."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = utc_now,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._seen = Farm(datetime.min.replace(tzinfo=UTC), (), ())

    @abstractmethod
    def _read_jobs(self, taken: datetime) -> tuple[Job, ...]:
        """All jobs, as the batch system lists them now."""

    @abstractmethod
    def _read_nodes(self, taken: datetime) -> tuple[Node, ...]:
        """All nodes, as the batch system lists them now."""

    @abstractmethod
    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """Route (job id, partition) pairs; returns what went wrong, by job id. Jobs that are no
        longer pending, or no longer known, are no error: the next snapshot says what became of
        them."""

    def snapshot(self) -> Farm:
        """Jobs first, nodes second: a job that starts in between shows as a pending job and a busy
        node, never as an idle node that is about to be taken away."""
        taken = self._clock()
        jobs = self._read_jobs(taken)
        self._seen = Farm(taken, jobs, self._read_nodes(taken))
        return self._seen

    def route(self, job_id: str, partition: str) -> None:
        for problem in self.route_many([(job_id, partition)]).values():
            raise LrmsError(problem)

    def _job(self, job_id: str) -> Job | None:
        """A job that may be routed; None if it runs, has ended, or is unknown."""
        if self._clock() - self._seen.taken > FRESH:
            taken = self._clock()
            self._seen = Farm(taken, self._read_jobs(taken), self._seen.nodes)
        job = next((job for job in self._seen.jobs if job.id == job_id), None)
        return job if job is not None and job.state in WAITING else None

    def _now_in(self, changed: Mapping[str, tuple[str, ...]], home: str | None = None) -> None:
        """Note the queues that jobs have from now on, so that a second call starts from that."""
        jobs = []
        for job in self._seen.jobs:
            if job.id in changed:
                kept = job.home if home is None else home
                job = replace(job, partitions=changed[job.id], home=kept)
            jobs.append(job)
        self._seen = Farm(self._seen.taken, tuple(jobs), self._seen.nodes)

    def _jobs_on(self, node: str) -> list[str]:
        """The jobs that a node has now; ended ones may still be listed with its name."""
        jobs = self._read_jobs(self._clock())
        return [job.id for job in jobs if node in job.node_names and job.state in BUSY]

    def _node(self, name: str) -> Node | None:
        """The node as it is now, not as the last snapshot had it."""
        return next((n for n in self._read_nodes(self._clock()) if n.name == name), None)


def only_queue(job: Job) -> LrmsError:
    where = job.partitions[0]
    return LrmsError(f"job {job.id} may start in {where} only: taking it away would leave none")

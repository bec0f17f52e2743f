"""The Slurm adapter: burst.lrms.base.Lrms by squeue, sinfo and scontrol.

Every call is one or two commands. It must run as root or SlurmUser on a host with slurm.conf and
munge. Works with Slurm 22.05 (Debian 12; its scontrol has no --json, nodes come from sinfo) and
with 24.11 and later. Sources: scontrol(1), squeue(1), and what the three versions really answered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from burst.lrms import slurm_parse
from burst.lrms.base import LrmsError
from burst.lrms.command import (
    DRAIN_PREFIX,
    Commands,
    Result,
    Runner,
    checked,
    has,
    reason_text,
    subprocess_runner,
)
from burst.model import Farm, Job, JobState, Node, NodeState

_JOB_ID = re.compile(r"[0-9]+(?:_[0-9]+|\+[0-9]+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ABOUT_JOB = re.compile(r"^(?P<text>.+) for job (?P<id>\S+)$|^(?P<array>\d+_\S+): (?P<rest>.+)$")
_STATE = re.compile(r"\bState=(\S+)")

# Error texts, by what they mean for us (slurm_strerror() and messages of the commands).
_UNAVAILABLE = (
    "unable to contact slurm controller",
    "unexpected message received",  # how `scontrol update job` says that nobody listens
    "socket timed out",
    "timed out",
    "connection refused",
    "connection failure",
    "connect failure",
    "zero bytes were transmitted",
    "standby mode",
    "authentication credential",
    "authentication error",
    "munge",
    "unspecified error",
)
_BUSY = ("resource temporarily unavailable", "job update is pending")
_NOT_PENDING = (
    "no longer pending",
    "already finished",
    "already completing",
    "invalid job id",
    "job/step already completing",
)
_UNKNOWN_NODE = ("invalid node name", "not found")


# SLURM_*, SQUEUE_*, SINFO_* of whoever started us would filter or reshape the answers.
# SLURM_BITSTR_LEN=0: array task lists in full.
run = subprocess_runner(
    ("SLURM_CONF",), {"SLURM_BITSTR_LEN": "0"}, "install slurm-client on this host"
)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How patient the adapter is."""

    timeout: timedelta = timedelta(seconds=30)  # one command; slurmctld down: it gives up after 9 s
    attempts: int = 4  # when Slurm says "Resource temporarily unavailable"
    pause: timedelta = timedelta(seconds=0.5)  # between them
    fresh: timedelta = timedelta(seconds=5)  # a snapshot this young is trusted for a job's list
    max_tasks: int = 1000  # pending tasks of one job array that become jobs of the snapshot


class Slurm:
    """One Slurm cluster, as `Lrms`. Not for several threads at once."""

    def __init__(
        self,
        *,
        runner: Runner = run,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait: Callable[[float], None] = time.sleep,
        tuning: Tuning | None = None,
    ) -> None:
        self._tuning = tuning or Tuning()
        self._command = Commands(runner, _UNAVAILABLE, self._tuning.timeout)
        self._clock = clock
        self._wait = wait
        self._seen = Farm(datetime.min.replace(tzinfo=UTC), (), ())
        self._version: tuple[int, int] | None = None

    def snapshot(self) -> Farm:
        """Jobs first, nodes second: a job that starts in between shows as a pending job and a busy
        node, never as an idle node that is about to be taken away."""
        taken = self._clock()
        jobs = slurm_parse.jobs(self._queue(), taken, max_tasks=self._tuning.max_tasks)
        self._seen = Farm(taken, jobs, self._nodes())
        return self._seen

    def admit(self, node: Node) -> None:
        if node.state not in (NodeState.DRAINING, NodeState.DRAINED):
            return
        if not node.reason.startswith(DRAIN_PREFIX):
            return  # an operator drained it, and meant it
        self._update_node(node.name, "state=undrain")

    def route(self, job_id: str, partition: str) -> None:
        for problem in self.route_many([(job_id, partition)]).values():
            raise LrmsError(problem)

    def unroute(self, job_id: str, partition: str) -> None:
        job = self._job(job_id)
        if job is None or partition not in job.partitions:
            return
        left = tuple(name for name in job.partitions if name != partition)
        if not left:
            raise LrmsError(
                f"job {job_id} may start in {partition} only: taking it away would leave none"
            )
        for problem in self._set_partitions({job_id: left}).values():
            raise LrmsError(problem)

    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """Route several jobs with one command; returns what went wrong, by job id.

        Jobs that are no longer pending, or no longer known, are no error: the next snapshot says
        what became of them.
        """
        wanted: dict[str, tuple[str, ...]] = {}
        for job_id, partition in routes:
            job = self._job(job_id)
            if job is None:
                continue
            now = wanted.get(job_id, job.partitions)
            if partition not in now:
                wanted[job_id] = (*now, _checked(_NAME, "partition", partition))
        return self._set_partitions(wanted)

    def drain(self, node: str, reason: str) -> None:
        """An operator's own drain of the node keeps its reason; a node not known takes no job."""
        seen = next((one for one in self._seen.nodes if one.name == node), None)
        if seen is not None and seen.state in (NodeState.DRAINING, NodeState.DRAINED):
            return
        self._update_node(node, "state=drain", f"reason={reason_text(reason)}")

    def remove(self, node: str) -> None:
        """Only nodes that registered themselves: 22.05 would delete a configured one, too."""
        _checked(_NAME, "node", node)
        shown = self._command("scontrol", "show", "node", node)
        if _means(shown, _UNKNOWN_NODE):
            return
        found = _STATE.search(shown.out)
        if shown.status != 0 or found is None:
            raise LrmsError(f"scontrol show node {node}: {shown.said}")
        if "DYNAMIC" not in found[1]:
            raise LrmsError(
                f"node {node} is in slurm.conf, not a borrowed one (state {found[1]}): not deleted"
            )
        deleted = self._command("scontrol", "delete", f"nodename={node}")
        if deleted.status != 0 and not _means(deleted, _UNKNOWN_NODE):
            raise LrmsError(f"node {node} (state {found[1]}) is not deleted: {deleted.said}")

    def requeue(self, job_id: str) -> None:
        """`scontrol requeue`: the job keeps its id; one that does not run is left as it is."""
        _checked(_JOB_ID, "job id", job_id)
        result = self._command("scontrol", "requeue", job_id)
        if result.status != 0 and not _means(result, (*_NOT_PENDING, "job is pending execution")):
            raise LrmsError(f"job {job_id} is not queued again: {result.said}")

    # One job's partition list

    def _job(self, job_id: str) -> Job | None:
        """A job that may be routed; None if it runs, has ended, or is unknown."""
        _checked(_JOB_ID, "job id", job_id)
        if self._clock() - self._seen.taken > self._tuning.fresh:
            taken = self._clock()
            jobs = slurm_parse.jobs(self._queue(), taken, max_tasks=self._tuning.max_tasks)
            self._seen = Farm(taken, jobs, self._seen.nodes)
        job = next((job for job in self._seen.jobs if job.id == job_id), None)
        if job is None:
            # An array as a whole: its tasks have one list until one of them is updated alone.
            tasks = (j for j in self._seen.jobs if j.id.startswith(f"{job_id}_"))
            job = next((j for j in tasks if j.state is JobState.PENDING), None)
        if job is None or job.state not in (JobState.PENDING, JobState.HELD):
            return None
        return job

    def _set_partitions(self, wanted: Mapping[str, tuple[str, ...]]) -> Mapping[str, str]:
        problems: dict[str, str] = {}
        left = dict(wanted)
        for attempt in range(self._tuning.attempts):
            if not left:
                break
            if attempt:
                self._wait(self._tuning.pause.total_seconds())
            said = self._update_jobs(left)
            settled = {job: text for job, text in problems.items() if job not in left}
            problems = settled | {j: t for j, t in said.items() if not has(t, _NOT_PENDING)}
            left = {job: left[job] for job, text in said.items() if has(text, _BUSY)}
        refused = {job: wanted[job] for job in problems}
        if refused:
            # 24.11 says no to a partition without nodes *and* applies it: look what is true now.
            self._seen = Farm(datetime.min.replace(tzinfo=UTC), (), self._seen.nodes)
            for job_id, partitions in refused.items():
                job = self._job(job_id)
                if job is None or set(job.partitions) == set(partitions):
                    del problems[job_id]
        self._seen = Farm(
            self._seen.taken,
            tuple(_with(job, wanted, problems) for job in self._seen.jobs),
            self._seen.nodes,
        )
        return {
            job: f"job {job} does not get the partitions {','.join(wanted[job])}: {text}"
            for job, text in problems.items()
        }

    def _update_jobs(self, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """One scontrol for all: it reads commands from standard input and goes on after errors."""
        lines = [f"update jobid={job} partition={','.join(p)}" for job, p in wanted.items()]
        if len(lines) == 1:
            result = self._command("scontrol", *lines[0].split())
        else:
            result = self._command("scontrol", given="\n".join(lines) + "\n")
        problems: dict[str, str] = {}
        for line in result.err.splitlines():
            found = _ABOUT_JOB.match(line.strip())
            if found is None:
                continue
            job, text = found["id"] or found["array"], found["text"] or found["rest"]
            if job not in wanted:  # a task of an array that was updated as a whole
                job = job.partition("_")[0]
            if job in wanted:
                problems[job] = text
        if result.status != 0 and not problems:
            raise LrmsError(f"scontrol update of {len(wanted)} jobs: {result.said}")
        return problems

    # Commands

    def _queue(self) -> slurm_parse.Answer:
        # All states: just-ended jobs stay listed for MinJobAge (slurm.conf(5)).
        reply = self._json("jobs", "squeue", "--all", "--states=all", "--json")
        self._version = reply.version
        return reply

    def _nodes(self) -> tuple[Node, ...]:
        if self._version is not None and self._version >= (23, 2):
            reply = self._json("nodes", "scontrol", "--all", "show", "nodes", "--json")
        else:
            reply = self._json("nodes", "sinfo", "--all", "--json")
        return slurm_parse.nodes(reply)

    def _json(self, key: str, *argv: str) -> slurm_parse.Answer:
        result = self._command(*argv)
        if result.status != 0:
            raise LrmsError(f"{' '.join(argv)}: status {result.status}: {result.said}")
        return slurm_parse.answer(argv[0], result.out, key)

    def _update_node(self, node: str, *what: str) -> None:
        _checked(_NAME, "node", node)
        result = self._command("scontrol", "update", f"nodename={node}", *what)
        # "Invalid node state": it is in that state already.
        if result.status != 0 and not _means(result, (*_UNKNOWN_NODE, "invalid node state")):
            raise LrmsError(f"scontrol update of node {node}: {result.said}")


def _with(job: Job, wanted: Mapping[str, tuple[str, ...]], problems: Mapping[str, str]) -> Job:
    """The job as it is after a successful update, so that a second one starts from the truth."""
    for job_id in (job.id, job.id.partition("_")[0]):
        if job_id in wanted and job_id not in problems:
            return replace(job, partitions=wanted[job_id])
    return job


def _means(result: Result, phrases: Iterable[str]) -> bool:
    # `scontrol show node` says "Node x not found" on standard output.
    return result.status != 0 and has(f"{result.err}\n{result.out}", phrases)


def _checked(pattern: re.Pattern[str], what: str, text: str) -> str:
    return checked(pattern, what, text, "Slurm")

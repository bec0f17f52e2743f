"""The Grid Engine adapter: burst.lrms.base.Lrms by qstat, qhost, qalter, qmod and qconf.

A partition is a cluster queue. Jobs must ask for the site's own queue by default (`-q all.q` in
sge_request(5)); routing adds the borrowed machines' queue to that list, so the job may start here
or there. Each borrowed queue (`burst.q`) has a host group of its own in its hostlist. It must run
as a manager on an administrative host. Proven with 8.1.9.
Sources: qalter(1), qmod(1), qconf(1), queue_conf(5), hostgroup(5), and what 8.1.9 really answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from burst.lrms import gridengine_parse as parse
from burst.lrms.base import LrmsError
from burst.lrms.command import Commands, Result, Runner, checked, in_chunks, subprocess_runner
from burst.lrms.reading import CLOSED, Adapter, only_queue, utc_now
from burst.model import Job, JobState, Node, NodeState

_JOB_ID = re.compile(r"([0-9]+)(?:\.[0-9]+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HOSTGROUP = re.compile(r"(?<![\w@])@[\w.-]+")
_UNAVAILABLE = (
    "unable to contact qmaster",
    "unable to send message to qmaster",
    "can't get configuration from qmaster",
    "got read error",
    "got send error",
    "got no connection",
    "connection refused",
    "error: commlib error",
    "error: failed receiving gdi request",
)
_NO_JOB = ("does not exist", "do not exist", "invalid queue or job")
_NO_HOST = ("can't resolve hostname", "does not exist", "not an execution host", "is unknown")
_THERE = ("already exists", "already in")

run = subprocess_runner(
    ("SGE_ROOT", "SGE_CELL", "SGE_QMASTER_PORT", "SGE_EXECD_PORT", "SGE_CLUSTER_NAME"),
    {"TZ": "UTC"},
    "install gridengine-client on this host",
)


class GridEngine(Adapter):
    """One cell, as `Lrms`. Not for several threads at once.

    partitions: the cluster queues of borrowed machines; no host outside them is ever removed.
    """

    def __init__(
        self,
        partitions: Sequence[str],
        *,
        runner: Runner = run,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(clock=clock)
        self._partitions = frozenset(partitions)
        self._command = Commands(runner, _UNAVAILABLE)
        self._lists: Mapping[str, tuple[str, ...]] = {}
        self._closed: set[str] = set()  # nodes drained by us: Grid Engine keeps no reason

    def _read_jobs(self, taken: datetime) -> tuple[Job, ...]:
        everywhere = tuple(self._command.must("qconf", "-sql").split())
        text = self._command.must("qstat", "-u", "*", "-r", "-xml")
        queue = parse.queue(text, everywhere)
        self._lists = queue.lists
        return queue.jobs

    def _read_nodes(self, taken: datetime) -> tuple[Node, ...]:
        return parse.nodes(self._command.must("qhost", "-q", "-j", "-xml"))

    def admit(self, node: Node) -> None:
        """Only a drain of this process is lifted: Grid Engine does not say who disabled a queue,
        and an operator meant it."""
        if node.state in CLOSED and node.name in self._closed:
            for queue in self._queues_of(node):
                self._command.must("qmod", "-e", f"{queue}@{node.name}")
            self._closed.discard(node.name)

    def announce(self, node: str, *, address: str, cores: int, partition: str) -> None:
        """Administrative host, host group, slots. The name must be known to the qmaster's
        resolver; Grid Engine has no other way to an address."""
        name, queue = _node(node), checked(_NAME, "partition", partition, "Grid Engine")
        group = self._group(queue)
        self._done(self._command("qconf", "-ah", name), _THERE, f"host {name} is not declared")
        self._done(
            self._command("qconf", "-aattr", "hostgroup", "hostlist", name, group),
            _THERE,
            f"host {name} does not become a member of {group}",
        )
        self._command.must("qconf", "-mattr", "queue", "slots", str(cores), f"{queue}@{name}")

    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """Only whole arrays can be changed: a task's route is its array's."""
        wanted: dict[str, tuple[str, ...]] = {}
        asked: dict[str, list[str]] = {}
        for job_id, partition in routes:
            checked(_NAME, "partition", partition, "Grid Engine")
            number = _number(job_id)
            job = self._movable(job_id)
            if job is None:
                continue
            asked.setdefault(number, []).append(job_id)
            listed = wanted.get(number, self._lists.get(number) or job.partitions)
            if partition not in listed and partition not in job.partitions:
                wanted[number] = (*listed, partition)
        return self._set_lists(wanted, asked)

    def unroute(self, job_id: str, partition: str) -> None:
        job = self._movable(job_id)
        if job is None or partition not in job.partitions:
            return
        number = _number(job_id)
        listed = self._lists.get(number) or job.partitions
        left = tuple(name for name in listed if parse.cluster_queue(name) != partition)
        if not left:
            raise only_queue(job)
        for problem in self._set_lists({number: left}, {number: [job_id]}).values():
            raise LrmsError(problem)

    def drain(self, node: str, reason: str) -> None:
        """Disables the node's queue instances; Grid Engine keeps no reason."""
        seen = self._node(_node(node))
        if seen is None or seen.state in CLOSED:
            return
        for queue in self._queues_of(seen):
            self._command.must("qmod", "-d", f"{queue}@{node}")
        self._closed.add(node)

    def remove(self, node: str) -> None:
        """In the only order that works: shut the daemon down, leave queue and host group, then the
        execution and the administrative host list."""
        seen = self._node(_node(node))
        if seen is not None:
            foreign = set(seen.partitions) - self._partitions
            if foreign:
                raise LrmsError(
                    f"node {node} is in queue {', '.join(sorted(foreign))}, not a borrowed one: "
                    "it stays"
                )
            jobs = self._jobs_on(node)
            if jobs or seen.allocated_cores:
                raise LrmsError(f"node {node} is not removed: it is busy with {', '.join(jobs)}")
            if seen.state is not NodeState.DOWN:
                self._command("qconf", "-ke", node)
            for queue in seen.partitions:
                self._command("qconf", "-purge", "queue", "*", f"{queue}@{node}")
                group = self._group(queue)
                done = self._command("qconf", "-dattr", "hostgroup", "hostlist", node, group)
                self._done(done, _NO_HOST, f"node {node} does not leave {group}")
        for option in ("-de", "-dh"):
            done = self._command("qconf", option, node)
            self._done(done, _NO_HOST, f"node {node} is not removed")
        self._closed.discard(node)

    def requeue(self, job_id: str) -> None:
        """`qmod -rj`; also what a job on a lost host needs, unless reschedule_unknown
        (sge_conf(5)) does it. The job must be rerunnable, or its queue (`rerun TRUE`)."""
        number = _number(job_id)
        job = next((j for j in self.snapshot().jobs if j.id == job_id), None)
        if job is None or job.state is not JobState.RUNNING:
            return
        done = self._command("qmod", "-rj", job_id if "." in job_id else number)
        self._done(done, _NO_JOB, f"job {job_id} is not queued again")

    # Details

    def _movable(self, job_id: str) -> Job | None:
        """A pending job; for an array as a whole ("7"), its first pending task."""
        number = _number(job_id)
        job = self._job(job_id)
        if job is None and job_id == number:
            tasks = (j.id for j in self._seen.jobs if j.id.startswith(f"{number}."))
            job = next((found for task in tasks if (found := self._job(task))), None)
        return job

    def _set_lists(
        self, wanted: Mapping[str, tuple[str, ...]], asked: Mapping[str, Sequence[str]]
    ) -> dict[str, str]:
        problems: dict[str, str] = {}
        together: dict[tuple[str, ...], list[str]] = {}
        for number, listed in wanted.items():
            together.setdefault(listed, []).append(number)
        for listed, numbers in together.items():
            for some in in_chunks(numbers):
                done = self._command("qalter", "-q", ",".join(listed), ",".join(some))
                for number, text in _refused(done, some).items():
                    problems.update(
                        (job, f"job {job} does not get the queues {','.join(listed)}: {text}")
                        for job in asked[number]
                    )
        moved = {n: listed for n, listed in wanted.items() if not {*asked[n]} & {*problems}}
        self._lists = {**self._lists, **moved}
        changed = {
            job.id: tuple(dict.fromkeys(parse.cluster_queue(name) for name in moved[number]))
            for job in self._seen.jobs
            if (number := _number(job.id)) in moved
        }
        self._now_in(changed)
        return problems

    def _queues_of(self, node: Node) -> tuple[str, ...]:
        return tuple(queue for queue in node.partitions if queue in self._partitions)

    def _group(self, queue: str) -> str:
        shown = self._command.must("qconf", "-sq", queue)
        hosts = next((ln for ln in shown.splitlines() if ln.startswith("hostlist")), "")
        found = [name for name in _HOSTGROUP.findall(hosts) if name != "@allhosts"]
        if len(found) != 1:
            raise LrmsError(
                f"queue {queue} has the hostlist {hosts[8:].strip() or 'NONE'}: give it one host "
                f"group of its own for borrowed machines (qconf -ahgrp @burst; hostlist @burst)"
            )
        return str(found[0])

    def _done(self, result: Result, fine: Sequence[str], what: str) -> None:
        if result.status != 0 and not result.says(fine):
            raise LrmsError(f"{what}: {result.said}")


def _refused(done: Result, numbers: Sequence[str]) -> dict[str, str]:
    """What qalter says of single jobs; one that does not exist (any more) is no problem."""
    if done.status == 0:
        return {}
    problems = {}
    for number in numbers:
        about = [line for line in done.lines if re.search(rf"\b{number}\b", line)]
        bad = [line for line in about if "modified" not in line]
        if bad and not any(phrase in bad[0] for phrase in _NO_JOB):
            problems[number] = bad[0]
    if not problems and not done.says(_NO_JOB):
        problems = dict.fromkeys(numbers, done.said)
    return problems


def _number(job_id: str) -> str:
    checked(_JOB_ID, "job id", job_id, "Grid Engine")
    return job_id.partition(".")[0]


def _node(name: str) -> str:
    return checked(_NAME, "node", name, "Grid Engine")

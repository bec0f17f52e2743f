"""The LSF adapter: burst.lrms.base.Lrms by bjobs, bswitch, bhosts and badmin.

A job is in one queue: routing switches it to the queue of the borrowed machines, taking back
returns it to the queue the site file names. LSF does not tell where a job was before, so a pool of
LSF has exactly one queue under `from`. Borrowed machines have the queue's name as a Boolean
resource (LSF_LOCAL_RESOURCES="[resource burst]"), and the queue has RES_REQ = select[burst]. It
must run as an LSF administrator.

LSF is licensed by core: a borrowed machine's cores count as well.
Proven with the documented answers of LSF 10.1; none were recorded.
Sources: the LSF Command Reference (bswitch, badmin, brequeue, lsadmin), lsf.conf(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from burst.lrms import lsf_parse as parse
from burst.lrms.base import LrmsError
from burst.lrms.command import (
    Commands,
    Result,
    Runner,
    checked,
    has,
    in_chunks,
    reason_text,
    subprocess_runner,
)
from burst.lrms.reading import CLOSED, Adapter, only_queue, utc_now
from burst.model import Job, JobState, Node

_JOB_ID = re.compile(r"[0-9]+(?:\[[0-9]+\])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ABOUT_JOB = re.compile(r"Job <(?P<id>\d+(?:\[\d+\])?)>")
_UNAVAILABLE = (
    "lsf is down",
    "batch system daemon not responding",
    "batch daemon not responding",
    "failed in an lsf library call",
    "failed in lsf lib call",
    "cannot connect to lsf",
    "lim is down",
    "mbatchd is down",
    "connection refused",
    "communication time out",
)
_NO_JOBS = ("no unfinished job found", "no job found", "no matching job found")
_GONE = ("is not found", "no matching job", "already finished", "has already", "job has started")
_UNKNOWN_NODE = ("unknown host", "bad host name", "not found", "is not used by", "no such host")

run = subprocess_runner(
    ("LSF_ENVDIR", "LSF_SERVERDIR", "LSF_BINDIR", "LSF_LIBDIR", "LD_LIBRARY_PATH"),
    {"TZ": "UTC", "LSB_DISPLAY_YEAR": "Y"},
    "source LSF's profile.lsf before the gateway is started",
)


class Lsf(Adapter):
    """One LSF cluster, as `Lrms`. Not for several threads at once.

    homes: for each queue of borrowed machines, the queue its jobs come from and return to.
    """

    def __init__(
        self,
        homes: Mapping[str, str],
        *,
        runner: Runner = run,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(clock=clock)
        self._homes = dict(homes)
        self._resources = {parse.resource(queue): queue for queue in homes}
        self._command = Commands(runner, _UNAVAILABLE)
        self._closed: set[str] = set()  # hosts closed by us: bhosts -o does not say why

    def _read_jobs(self, taken: datetime) -> tuple[Job, ...]:
        # -a: with those that ended within CLEAN_PERIOD (lsb.params(5))
        shown = self._command("bjobs", "-u", "all", "-a", "-o", parse.JOB_FIELDS, "-json")
        if shown.status != 0 and not shown.says(_NO_JOBS):
            raise LrmsError(f"bjobs: status {shown.status}: {shown.said}")
        return parse.jobs(parse.records("bjobs", shown.out), taken, self._homes)

    def _read_nodes(self, taken: datetime) -> tuple[Node, ...]:
        # -X: host groups are not condensed into one line
        text = self._command.must("bhosts", "-X", "-o", parse.HOST_FIELDS, "-json")
        hosts = parse.static(self._command.must("lshosts", "-w"))
        listed = parse.records("bhosts", text)
        local = tuple(dict.fromkeys(self._homes.values()))
        return parse.nodes(listed, hosts, self._resources, local)

    def admit(self, node: Node) -> None:
        """Only what this process closed is opened again: an operator meant it."""
        if node.state in CLOSED and node.name in self._closed:
            self._command.must("badmin", "hopen", _node(node.name))
            self._closed.discard(node.name)

    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        problems: dict[str, str] = {}
        together: dict[str, list[str]] = {}
        for job_id, partition in routes:
            checked(_NAME, "queue", partition, "LSF")
            job = self._job(_id(job_id))
            # bswitch takes running jobs as well: only those read as waiting are given to it.
            if job is not None and partition not in job.partitions:
                together.setdefault(partition, []).append(job_id)
        for partition, ids in together.items():
            problems |= self._switch(ids, partition)
        return problems

    def unroute(self, job_id: str, partition: str) -> None:
        job = self._job(_id(job_id))
        if job is None or job.partitions != (partition,):
            return
        if not job.home:
            raise only_queue(job)
        for problem in self._switch([job_id], job.home).values():
            raise LrmsError(problem)

    def drain(self, node: str, reason: str) -> None:
        seen = self._node(_node(node))
        if seen is None or seen.state in CLOSED:
            return
        done = self._command("badmin", "hclose", "-C", reason_text(reason), node)
        if done.status != 0 and not done.says(_UNKNOWN_NODE):
            raise LrmsError(f"node {node} is not closed: {done.said}")
        self._closed.add(node)

    def remove(self, node: str) -> None:
        """`lsadmin expire` (10.1, Fix Pack 14); the host's daemons must be stopped, or stop."""
        seen = self._node(_node(node))
        if seen is None:
            return
        if not set(self._resources) & set(seen.features):
            raise LrmsError(f"node {node} has no resource of a burst queue: it stays")
        if seen.allocated_cores:
            raise LrmsError(f"node {node} is not removed: it is busy, jobs are on it")
        done = self._command("lsadmin", "expire", node)
        if done.status != 0 and not done.says(_UNKNOWN_NODE):
            raise LrmsError(f"node {node} is not removed: {done.said}")
        self._closed.discard(node)

    def requeue(self, job_id: str) -> None:
        _id(job_id)
        job = next((j for j in self.snapshot().jobs if j.id == job_id), None)
        if job is None or job.state is not JobState.RUNNING:
            return
        done = self._command("brequeue", job_id)
        if done.status != 0 and not done.says(_GONE):
            raise LrmsError(f"job {job_id} is not queued again: {done.said}")

    # Details

    def _switch(self, ids: Sequence[str], queue: str) -> dict[str, str]:
        problems: dict[str, str] = {}
        for some in in_chunks(ids):
            for job, text in _refused(self._command("bswitch", queue, *some), some).items():
                problems[job] = f"job {job} does not get to queue {queue}: {text}"
        moved = {job: (queue,) for job in ids if job not in problems}
        self._now_in(moved, home=self._homes.get(queue, ""))
        return problems


def _refused(done: Result, asked: Sequence[str]) -> dict[str, str]:
    """What bswitch says of single jobs; one that is gone is no problem."""
    problems: dict[str, str] = {}
    explained = False
    for line in done.lines:
        found = _ABOUT_JOB.search(line)
        if found is None or found["id"] not in asked:
            continue
        explained = True
        if "is switched to" not in line and not has(line, _GONE):
            problems[found["id"]] = line
    if done.status != 0 and not explained:
        return dict.fromkeys(asked, done.said)
    return problems


def _id(job_id: str) -> str:
    return checked(_JOB_ID, "job id", job_id, "LSF")


def _node(name: str) -> str:
    return checked(_NAME, "node", name, "LSF")

"""The HTCondor adapter: burst.lrms.base.Lrms by condor_q, condor_qedit, condor_status and
condor_drain.

HTCondor has no queues. A job's partitions are its universe ("vanilla") and what its attribute
BurstTarget names; a borrowed machine's START takes only jobs that name its BurstPool. So a routed
job may start here or there, whichever comes first, and its Requirements are never touched: their
defaults differ between versions. It must run where a schedd is, as a queue super user, with the
right to administer the pool. Proven with 23.9 and 25.14.
Sources: condor_qedit(1), condor_drain(1), condor_off(1); the manual on START and draining.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from burst.lrms import htcondor_parse as parse
from burst.lrms.base import LrmsError
from burst.lrms.command import (
    Commands,
    Runner,
    checked,
    in_chunks,
    reason_text,
    subprocess_runner,
)
from burst.lrms.reading import CLOSED, WAITING, Adapter, only_queue, utc_now
from burst.model import Farm, Job, Node, NodeState

_JOB_ID = re.compile(r"[0-9]+\.[0-9]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_UNAVAILABLE = (
    "can't find address of",
    "condor_schedd is not",
    "error: (null)",
    "failed to connect",
    "couldn't contact",
    "could not connect",
    "communication error",
    "unable to locate",
    "failed to fetch ads",
    "can't connect",
    "connection refused",
    "timed out",
)
_UNKNOWN_NODE = ("can't find address for", "unknown host", "not found")
_NO_HISTORY = ("history", "no such file")
_KEPT = timedelta(hours=1)  # how long an ended job stays in a snapshot

run = subprocess_runner(("CONDOR_CONFIG",), hint="install HTCondor's tools on this host")


class HtCondor(Adapter):
    """One schedd and its pool, as `Lrms`. Not for several threads at once."""

    def __init__(self, *, runner: Runner = run, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(clock=clock)
        self._command = Commands(runner, _UNAVAILABLE)

    def _read_jobs(self, taken: datetime) -> tuple[Job, ...]:
        names = parse.machine_names(self._machines(("Machine", parse.NODE)))
        wanted = ",".join(parse.JOB_ATTRIBUTES)
        queue = self._command.must("condor_q", "-allusers", "-json", "-attributes", wanted)
        since = f"EnteredCurrentStatus < {int((taken - _KEPT).timestamp())}"
        past = self._command(
            "condor_history", "-json", "-attributes", wanted, "-since", since, "-limit", "10000"
        )
        if past.status != 0 and not past.says(_NO_HISTORY):
            raise LrmsError(f"condor_history: status {past.status}: {past.said}")
        ended = parse.ads("condor_history", past.out) if past.status == 0 else ()
        jobs = parse.jobs(parse.ads("condor_q", queue), names)
        known = {job.id for job in jobs}
        return (*jobs, *(job for job in parse.jobs(ended, names) if job.id not in known))

    def _read_nodes(self, taken: datetime) -> tuple[Node, ...]:
        return parse.nodes(self._machines(parse.NODE_ATTRIBUTES), taken)

    def snapshot(self) -> Farm:
        farm = super().snapshot()
        self._seen = replace(farm, nodes=parse.with_jobs(farm.nodes, farm.jobs))
        return self._seen

    def _node(self, name: str) -> Node | None:
        now = self._clock()
        nodes = parse.with_jobs(self._read_nodes(now), self._read_jobs(now))
        return next((node for node in nodes if node.name == name), None)

    def admit(self, node: Node) -> None:
        if node.state in CLOSED and parse.drained_by_us(node.reason):
            machine = self._machine(node.name)
            if machine is not None:
                self._command.must("condor_drain", "-cancel", machine)

    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        wanted: dict[str, tuple[str, ...]] = {}
        for job_id, partition in routes:
            job = self._job(_id(job_id))
            checked(_NAME, "partition", partition, "HTCondor")
            if job is not None:
                now = wanted.get(job_id, job.partitions)
                if partition not in now:
                    wanted[job_id] = (*now, partition)
        return self._target(wanted)

    def unroute(self, job_id: str, partition: str) -> None:
        job = self._job(_id(job_id))
        if job is None or partition not in job.partitions:
            return
        if partition == job.partitions[0]:
            raise only_queue(job)
        left = tuple(name for name in job.partitions if name != partition)
        for problem in self._target({job_id: left}).values():
            raise LrmsError(problem)

    def drain(self, node: str, reason: str) -> None:
        """Without MAXJOBRETIREMENTTIME a graceful drain evicts at once: then it is refused while a
        job is there. `burst/join/htcondor.py` sets it on borrowed machines."""
        seen = self._node(_name(node))
        machine = self._machine(node)
        if seen is None or machine is None or seen.state in (*CLOSED, NodeState.DOWN):
            return
        if seen.allocated_cores and not self._retires(machine):
            raise LrmsError(
                f"node {node} has jobs and no MaxJobRetirementTime: draining it would evict them; "
                "set MAXJOBRETIREMENTTIME = 604800 in its configuration"
            )
        done = self._command("condor_drain", "-graceful", "-reason", reason_text(reason), machine)
        if done.status != 0 and not done.says((*_UNKNOWN_NODE, "already in progress")):
            raise LrmsError(f"node {node} is not drained: {done.said}")

    def remove(self, node: str) -> None:
        """Ends the machine's daemons and takes its ads from the collector."""
        _name(node)
        listed = [ad for ad in self._machines(parse.NODE_ATTRIBUTES) if _is(ad, node)]
        if not listed:
            return
        if not all(parse.is_ours(ad) for ad in listed):
            raise LrmsError(f"node {node} has no {parse.POOL}, it is not a borrowed one: it stays")
        seen = parse.nodes(listed, self._clock())[0]
        jobs = self._jobs_on(seen.name)
        if jobs or (seen.allocated_cores and seen.state is not NodeState.DOWN):
            raise LrmsError(f"node {node} is not removed: it is busy with {', '.join(jobs)}")
        machine = str(listed[0]["Machine"])
        if seen.state is not NodeState.DOWN:
            self._command("condor_off", "-master", "-fast", "-name", machine)
        query = (
            'MyType = "Query"\nTargetType = "Machine"\n'
            f"Requirements = Machine == {parse.quoted(machine)}\n"
        )
        told = self._command("condor_advertise", "INVALIDATE_STARTD_ADS", "-", given=query)
        if told.status != 0:
            raise LrmsError(f"node {node} is not taken from the collector: {told.said}")

    def requeue(self, job_id: str) -> None:
        """The job goes back to idle under its id; what it has done is lost unless it checkpoints.

        "Permission denied" and the like are errors; a job that does not run is none.
        """
        job = next((j for j in self.snapshot().jobs if j.id == _id(job_id)), None)
        if job is None or job.state in WAITING or job.ended is not None:
            return
        done = self._command("condor_vacate_job", "-fast", job_id)
        if done.status != 0 and not done.says(("not found", "not running")):
            raise LrmsError(f"job {job_id} is not queued again: {done.said}")

    # Details

    def _machines(self, attributes: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
        """The ads of all slots. With -startd, 23.9 would give one bare ad of each daemon."""
        text = self._command.must("condor_status", "-json", "-attributes", ",".join(attributes))
        return parse.ads("condor_status", text)

    def _machine(self, node: str) -> str | None:
        """The machine's name in the collector."""
        found = (ad for ad in self._machines(("Machine", parse.NODE)) if _is(ad, node))
        return next((str(ad["Machine"]) for ad in found), None)

    def _retires(self, machine: str) -> bool:
        ads = self._machines(("Machine", "MaxJobRetirementTime"))
        return all(ad.get("MaxJobRetirementTime") != 0 for ad in ads if ad["Machine"] == machine)

    def _target(self, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        problems: dict[str, str] = {}
        together: dict[tuple[str, ...], list[str]] = {}
        for job_id, partitions in wanted.items():
            together.setdefault(partitions[1:], []).append(job_id)
        for targets, ids in together.items():
            value = parse.quoted(",".join(targets)) if targets else "undefined"
            for some in in_chunks(ids):
                error = self._edit(some, value)
                problems |= {
                    job: f"job {job} does not get the partitions {','.join(targets)}: {error}"
                    for job in some
                    if error
                }
        self._now_in({job: there for job, there in wanted.items() if job not in problems})
        if len(problems) < len(wanted):
            self._command("condor_reschedule")  # else the next cycle finds out by itself
        return problems

    def _edit(self, ids: Sequence[str], value: str) -> str:
        """By constraint: a job that has ended meanwhile simply does not match."""
        match = [f"(ClusterId=={a} && ProcId=={b})" for a, b in (j.split(".") for j in ids)]
        constraint = f"(JobStatus==1 || JobStatus==5) && ({' || '.join(match)})"
        done = self._command("condor_qedit", "-constraint", constraint, parse.TARGET, value)
        if done.status == 0 or not self._wait_still(ids):
            return ""
        return done.said

    def _wait_still(self, ids: Sequence[str]) -> bool:
        """Whether any of them waits. qedit says the same of a constraint that matches no job and of
        a change it is not allowed."""
        jobs = self._read_jobs(self._clock())
        return any(job.id in ids and job.state in WAITING for job in jobs)


def _is(ad: Mapping[str, Any], node: str) -> bool:
    return node in (ad.get(parse.NODE), ad.get("Machine"))


def _id(job_id: str) -> str:
    return checked(_JOB_ID, "job id", job_id, "HTCondor")


def _name(node: str) -> str:
    return checked(_NAME, "node", node, "HTCondor")

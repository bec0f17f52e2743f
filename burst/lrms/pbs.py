"""The adapters for OpenPBS and Torque: burst.lrms.base.Lrms by qstat, qmove, pbsnodes and qmgr.

A job is in one queue: routing moves it to the queue of the borrowed machines, taking back returns
it to where it was submitted (PBS_O_QUEUE). It must run as a PBS manager.

Borrowed nodes are tied to their queue by a resource, never by the node attribute `queue`: a delete
that PBS *rejects* still clears that queue's hasnodes flag, and its jobs then stray to any node.
OpenPBS: a string_array resource Qlist (flag h), each queue with default_chunk.Qlist. Torque: node
properties, each queue with resources_default.neednodes.
Proven with answers recorded of OpenPBS 23.06.06, and documented ones of Torque 6.1.
Sources: qmove(1B), pbsnodes(8B), qmgr(8B), the PBS Professional Administrator's Guide.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from burst.lrms import pbs_parse as parse
from burst.lrms.base import LrmsError
from burst.lrms.command import (
    DRAIN_PREFIX,
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
from burst.model import Job, JobState, Node, NodeState

_JOB_ID = re.compile(r"[0-9]+(?:\[[0-9]*\])?(?:\.[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_UNAVAILABLE = (
    "cannot connect to server",
    "cannot connect to",
    "connection refused",
    "pbs_iff",
    "no permission to connect",
    "batch_server error",
    "errno=15034",
    "communication failure",
    "server shutting down",
    "end of file",
)
_NOT_PENDING = (
    "request invalid for state",
    "unknown job id",
    "job has finished",
    "unknown job",
)
_UNKNOWN_NODE = ("unknown node", "(15062)", "does not exist", "could not find node")
_EMPTY = ("no node list", "no nodes found")
_THERE = ("already exists", "(15066)")
_LINE = re.compile(
    r"^(?:qmove|qrerun): (?P<text>.*?)(?: (?:of|for) job)? (?P<id>\d+(?:\[\d*\])?\S*)$"
)

run = subprocess_runner(
    ("PBS_CONF_FILE", "PBS_SERVER", "PBSDEFAULT", "PBS_DEFAULT"),
    {"TZ": "UTC"},
    "install the PBS client commands on this host",
)


class _Pbs(Adapter):
    """What the two have in common.

    partitions: the queues of borrowed nodes; no node outside them is ever removed. local: the
    queues that nodes without a queue resource serve.
    """

    def __init__(
        self,
        partitions: Sequence[str],
        *,
        local: Sequence[str] = (),
        runner: Runner = run,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(clock=clock)
        self._partitions = frozenset(partitions)
        self._local = tuple(local)
        self._command = Commands(runner, _UNAVAILABLE)

    @abstractmethod
    def _creation(self, node: str, address: str, cores: int, partition: str) -> tuple[str, ...]:
        """The qmgr directives that declare a node, first of all its creation."""

    @abstractmethod
    def _drain_options(self, reason: str) -> tuple[str, ...]:
        """Of pbsnodes, for an offline node with a reason."""

    @abstractmethod
    def _undrain_options(self) -> tuple[str, ...]:
        """Of pbsnodes, to undo that."""

    def admit(self, node: Node) -> None:
        if node.state in CLOSED and node.reason.startswith(DRAIN_PREFIX):
            self._command.must("pbsnodes", *self._undrain_options(), _node(node.name))

    def announce(self, node: str, *, address: str, cores: int, partition: str) -> None:
        """The name must be known to the server's resolver."""
        checked(_NAME, "partition", partition, "PBS")
        create, *settings = self._creation(_node(node), address, cores, partition)
        made = self._command("qmgr", "-c", create)
        if made.status != 0 and not made.says(_THERE):
            raise LrmsError(f"node {node} is not declared: {made.said}")
        for setting in settings:
            self._command.must("qmgr", "-c", setting)

    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """An array moves as a whole; one that has begun stays where it is."""
        problems: dict[str, str] = {}
        together: dict[str, dict[str, list[str]]] = {}
        for job_id, partition in routes:
            checked(_NAME, "queue", partition, "PBS")
            job = self._movable(job_id)
            if job is not None and partition not in job.partitions:
                moved = parse.array_of(job.id)
                together.setdefault(partition, {}).setdefault(moved, []).append(job_id)
        for partition, asked in together.items():
            problems |= self._move(asked, partition)
        return problems

    def unroute(self, job_id: str, partition: str) -> None:
        job = self._movable(job_id)
        if job is None or job.partitions != (partition,):
            return
        if not job.home:
            raise only_queue(job)
        for problem in self._move({parse.array_of(job.id): [job_id]}, job.home).values():
            raise LrmsError(problem)

    def drain(self, node: str, reason: str) -> None:
        seen = self._node(_node(node))
        if seen is None or seen.state in CLOSED:
            return  # an operator's own drain keeps its comment; a node not known takes no job
        done = self._command("pbsnodes", *self._drain_options(reason_text(reason)), node)
        if done.status != 0 and not done.says(_UNKNOWN_NODE):
            raise LrmsError(f"node {node} is not drained: {done.said}")

    def remove(self, node: str) -> None:
        """Asked only of a node without jobs: a rejected delete would have side effects."""
        seen = self._node(_node(node))
        if seen is None:
            return
        if not self._partitions & set(seen.features):
            raise LrmsError(f"node {node} serves no queue of borrowed nodes: it stays")
        # Torque and PBS hold a lost node's job in state R until it is requeued.
        jobs = self._jobs_on(node)
        if seen.allocated_cores or jobs:
            raise LrmsError(f"node {node} is not removed: it is busy with {', '.join(jobs)}")
        done = self._command("qmgr", "-c", f"delete node {node}")
        if done.status != 0 and not done.says(_UNKNOWN_NODE):
            raise LrmsError(f"node {node} is not removed: {done.said}")

    def requeue(self, job_id: str) -> None:
        """`qrerun`, with -W force where the node does not answer: else it would wait for it."""
        _id(job_id)
        farm = self.snapshot()
        job = next((j for j in farm.jobs if j.id == job_id), None)
        if job is None or job.state is not JobState.RUNNING:
            return
        dead = {node.name for node in farm.nodes if node.state is NodeState.DOWN}
        force = ("-W", "force") if dead & set(job.node_names) else ()
        done = self._command("qrerun", *force, job_id)
        if done.status != 0 and not done.says(_NOT_PENDING):
            raise LrmsError(f"job {job_id} is not queued again: {done.said}")

    # Details

    def _movable(self, job_id: str) -> Job | None:
        """A pending job; for an array as a whole ("6[].head"), its first pending task."""
        job = self._job(_id(job_id))
        if job is None and "[]" in job_id:
            tasks = (j.id for j in self._seen.jobs if parse.array_of(j.id) == job_id)
            job = next((found for task in tasks if (found := self._job(task))), None)
        return None if job is None or job.reason == parse.BEGUN else job

    def _move(self, asked: Mapping[str, Sequence[str]], queue: str) -> dict[str, str]:
        """asked: the job ids that were asked for, by what is moved for them."""
        problems: dict[str, str] = {}
        for some in in_chunks(list(asked)):
            for moved, text in _refused(self._command("qmove", queue, *some), some).items():
                problems |= {
                    job: f"job {job} does not get to queue {queue}: {text}" for job in asked[moved]
                }
        gone = {
            job.id: (queue,)
            for job in self._seen.jobs
            if (moved := parse.array_of(job.id)) in asked and not {*asked[moved]} & {*problems}
        }
        for job in [j for j in self._seen.jobs if j.id in gone]:
            was = job.home or job.partitions[0]
            self._now_in({job.id: (queue,)}, home="" if was == queue else was)
        return problems


class OpenPbs(_Pbs):
    """One OpenPBS server, as `Lrms`. Not for several threads at once."""

    def _read_jobs(self, taken: datetime) -> tuple[Job, ...]:
        text = self._command.must("qstat", "-f", "-t", "-F", "json")
        return parse.jobs(parse.json_objects("qstat", text, "Jobs"))

    def _read_nodes(self, taken: datetime) -> tuple[Node, ...]:
        shown = self._command("pbsnodes", "-av", "-F", "json")
        if shown.status != 0 and shown.says(_EMPTY):
            return ()
        if shown.status != 0:
            raise LrmsError(f"pbsnodes: status {shown.status}: {shown.said}")
        listed = parse.json_objects("pbsnodes", shown.out, "nodes")
        return parse.openpbs_nodes(listed, self._local)

    def _creation(self, node: str, address: str, cores: int, partition: str) -> tuple[str, ...]:
        place = f"resources_available.Qlist={partition}"
        return (
            f"create node {node} {place},resources_available.ncpus={cores}",
            f"set node {node} {place}",
            f"set node {node} resources_available.ncpus={cores}",
        )

    def _drain_options(self, reason: str) -> tuple[str, ...]:
        return ("-o", "-C", reason)

    def _undrain_options(self) -> tuple[str, ...]:
        return ("-r", "-C", "")


class Torque(_Pbs):
    """One Torque server, as `Lrms`. Not for several threads at once."""

    def _read_jobs(self, taken: datetime) -> tuple[Job, ...]:
        text = self._command.must("qstat", "-x", "-t")
        return parse.jobs(parse.xml_objects("qstat", text, "Job", "Job_Id"))

    def _read_nodes(self, taken: datetime) -> tuple[Node, ...]:
        shown = self._command("pbsnodes", "-x")
        if shown.status != 0 and not shown.says(_EMPTY):
            raise LrmsError(f"pbsnodes: status {shown.status}: {shown.said}")
        listed = parse.xml_objects("pbsnodes", shown.out, "Node", "name")
        return parse.torque_nodes(listed, self._local)

    def _creation(self, node: str, address: str, cores: int, partition: str) -> tuple[str, ...]:
        return (
            f"create node {node} np={cores},properties={partition}",
            f"set node {node} np = {cores}",
            f"set node {node} properties = {partition}",
        )

    def _drain_options(self, reason: str) -> tuple[str, ...]:
        return ("-o", "-N", reason)

    def _undrain_options(self) -> tuple[str, ...]:
        return ("-c", "-N", "n")


def _refused(done: Result, asked: Sequence[str]) -> dict[str, str]:
    """What qmove says of single jobs; one that runs or is gone is no problem."""
    if done.status == 0:
        return {}
    problems: dict[str, str] = {}
    explained = False
    for line in done.lines:
        found = _LINE.match(line)
        if found is not None and found["id"] in asked:
            explained = True
            if not has(line, _NOT_PENDING):
                problems[found["id"]] = found["text"]
    return problems if explained else dict.fromkeys(asked, done.said)


def _id(job_id: str) -> str:
    return checked(_JOB_ID, "job id", job_id, "PBS")


def _node(name: str) -> str:
    return checked(_NAME, "node", name, "PBS")

"""A batch system by Slurm's rules: what `scontrol` refuses is refused, and jobs go on meanwhile.

* A node that registers itself (`slurmd -Z`) is known from then on, with its jobs; one that is not
  heard of for SlurmdTimeout is DOWN, and its jobs are queued again (JobRequeue=1, slurm.conf(5)).
* `scontrol delete` refuses a node with a job on it, running or completing. A slurmd whose node was
  deleted may register it once more.
* Jobs are read first and nodes second, and both go on changing in between.
* A pending job may get another partition; one that started meanwhile may not, and that is no error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.model import Farm, Job, JobState, Node, NodeState
from lab.simulated.faults import Broken
from lab.simulated.site import BATCH, EPOCH, LIMIT, SLURMD_TIMEOUT

if TYPE_CHECKING:
    from lab.simulated.world import World

OURS = "dvn: "
_COMPLETING = timedelta(seconds=5)
_RUSHES = 6  # jobs of that kind in one story


@dataclass(slots=True)
class SimulatedJob:
    job: Job
    runtime: timedelta
    completed: int = 0
    cancelled: bool = False
    cleaning_until: datetime | None = None  # its node is not free yet

    @property
    def on(self) -> str:
        return self.job.node_names[0] if self.job.node_names else ""


@dataclass(slots=True)
class SimulatedNode:
    """A borrowed node as slurmctld knows it."""

    node: Node
    drain_reason: str = ""
    silent_since: datetime | None = None

    def down(self, now: datetime) -> bool:
        return self.silent_since is not None and now - self.silent_since >= SLURMD_TIMEOUT


class SimulatedFarm:
    """Implements `burst.lrms.base.Lrms`: one local node of two cores, and dynamic ones."""

    def __init__(self, world: World, accounts: tuple[str, ...]) -> None:
        self.world = world
        self.local = Node("wn1", NodeState.IDLE, 2, 0, 8192, partitions=(BATCH,))
        self.borrowed: dict[str, SimulatedNode] = {}
        self.jobs: dict[str, SimulatedJob] = {}
        self.away_until = EPOCH
        self._rushes = 0
        rng = world.rng
        for number in range(1, rng.randint(7, 20)):
            account = rng.choice(accounts)
            # Some users name the borrowed machines' partition themselves.
            both = (BATCH, f"burst-{account}") if rng.random() < 0.2 else (BATCH,)
            job = Job(
                id=str(number),
                user="alice",
                account=account,
                state=JobState.PENDING,
                partitions=both,
                cores=rng.choice([1, 1, 1, 2]),
                nodes=1,
                memory_mb=500,
                time_limit=LIMIT,
                submitted=EPOCH + timedelta(seconds=rng.choice([0, 0, rng.randint(1, 900)])),
            )
            runtime = timedelta(seconds=rng.randint(20, 200))
            self.jobs[job.id] = SimulatedJob(job, runtime)

    # -- what the controller calls -----------------------------------------------------------------

    def snapshot(self) -> Farm:
        taken = self.world.gateway_now()
        self._answer("squeue")
        now = self.world.now
        jobs = tuple(one.job for one in self.jobs.values() if one.job.submitted <= now)
        self._answer("sinfo")
        nodes = [self._local(), *(self._view(one) for one in self.borrowed.values())]
        return Farm(taken, jobs, tuple(nodes))

    def admit(self, node: Node) -> None:
        def act() -> None:
            one = self.borrowed.get(node.name)
            if one is not None and one.drain_reason.startswith(OURS):
                one.drain_reason = ""

        if node.state in (NodeState.DRAINED, NodeState.DRAINING) and node.reason.startswith(OURS):
            self._do(f"undrain {node.name}", act)

    def route(self, job_id: str, partition: str) -> None:
        self._do(f"route {job_id} to {partition}", lambda: self._route(job_id, partition))

    def unroute(self, job_id: str, partition: str) -> None:
        self._do(f"unroute {job_id} from {partition}", lambda: self._unroute(job_id, partition))

    def requeue(self, job_id: str) -> None:
        def act() -> None:
            one = self.jobs[job_id]
            if one.job.state is JobState.RUNNING:
                self.world.requeued(one)
                self._queue_again(one, "requeued")

        self._do(f"requeue {job_id}", act)

    def drain(self, node: str, reason: str) -> None:
        if not reason:
            raise Broken(f"node {node} is drained without a reason")

        def act() -> None:
            one = self.borrowed.get(node)
            if one is not None and not one.drain_reason:
                one.drain_reason = OURS + reason

        self.rush(node)
        self._do(f"drain {node}: {reason[:60]}", act)

    def remove(self, node: str) -> None:
        def act() -> None:
            if node == self.local.name:
                raise LrmsError(f"node {node} is in slurm.conf, not a borrowed one")
            if self.jobs_on(node):
                raise LrmsError(f"node {node} is not deleted: Node is busy")
            if self.borrowed.pop(node, None) is not None:
                self.world.removed(node)

        self.rush(node)
        self._do(f"delete {node}", act)

    def _do(self, what: str, act: Callable[[], None]) -> None:
        self._answer(what)
        act()
        if self.world.chance(self.world.faults.duplicate):
            act()
        self.world.tell(f"slurm: {what}")
        self.world.may_die(f"after {what}")
        if self.world.chance(self.world.faults.lost_after):
            self.world.tell(f"slurm: {what}: the answer is lost")
            raise LrmsUnavailable("scontrol: no answer in 30 s")

    def _answer(self, what: str) -> None:
        world = self.world
        world.takes_time()
        world.may_die(f"before {what}")
        if world.chance(world.faults.outage):
            self.away_until = world.now + timedelta(seconds=world.rng.uniform(10, 60))
        if world.now < self.away_until or world.fails("slurm", world.faults.lost_before):
            world.tell(f"slurm: {what}: no answer")
            raise LrmsUnavailable("unable to contact slurm controller")

    def _route(self, job_id: str, partition: str) -> None:
        one = self.jobs[job_id]
        if one.job.state is JobState.PENDING and partition not in one.job.partitions:
            one.job = replace(one.job, partitions=(*one.job.partitions, partition))

    def _unroute(self, job_id: str, partition: str) -> None:
        one = self.jobs[job_id]
        if one.job.state is JobState.PENDING and partition in one.job.partitions:
            left = tuple(name for name in one.job.partitions if name != partition)
            if not left:
                raise LrmsError(f"job {job_id} may start in {partition} only")
            one.job = replace(one.job, partitions=left)

    # -- what happens by itself --------------------------------------------------------------------

    def register(self, name: str, cores: int, memory_mb: int, address: str, partition: str) -> None:
        """A slurmd came up, or came back."""
        if name in self.borrowed:
            return
        node = Node(name, NodeState.IDLE, cores, 0, memory_mb, address, (partition,), (partition,))
        drained = OURS + "left from before" if self.world.rng.random() < 0.1 else ""
        self.borrowed[name] = SimulatedNode(node, drained)
        self.world.tell(f"slurm: node {name} registers{' (drained)' if drained else ''}")

    def live(self, now: datetime) -> None:
        for name, node in self.borrowed.items():
            if self.world.heard_by_farm(name):
                node.silent_since = None
            else:
                node.silent_since = node.silent_since or now
            if node.down(now):
                for one in self._running(name):
                    self._queue_again(one, f"its node {name} is down")
        self._end_jobs(now)
        self._start_jobs(now)

    def _running(self, name: str) -> list[SimulatedJob]:
        return [
            one
            for one in self.jobs.values()
            if one.job.state is JobState.RUNNING and one.on == name
        ]

    def _queue_again(self, one: SimulatedJob, why: str) -> None:
        self.world.tell(f"slurm: job {one.job.id} is queued again: {why}")
        one.job = replace(one.job, state=JobState.PENDING, started=None, node_names=())

    def _end_jobs(self, now: datetime) -> None:
        for one in self.jobs.values():
            job = one.job
            if job.state is JobState.RUNNING and job.started is not None:
                works = one.on == self.local.name or self.world.runs_jobs(one.on)
                if works and now >= job.started + one.runtime:
                    one.completed += 1
                    one.job = replace(job, state=JobState.COMPLETING, ended=now)
                    one.cleaning_until = now + _COMPLETING
                    self.world.tell(f"slurm: job {job.id} ends on {one.on}")
            elif job.state is JobState.COMPLETING:
                node = self.borrowed.get(one.on)
                lost = one.on != self.local.name and (node is None or node.down(now))
                if one.cleaning_until is None or now >= one.cleaning_until or lost:
                    one.job = replace(job, state=JobState.DONE, node_names=())

    def _start_jobs(self, now: datetime) -> None:
        for one in self.jobs.values():
            job = one.job
            if job.state is not JobState.PENDING or job.submitted > now:
                continue
            for name in self._places(job, now):
                self._start(one, name)
                break

    def _start(self, one: SimulatedJob, name: str) -> None:
        one.job = replace(
            one.job, state=JobState.RUNNING, started=self.world.now, node_names=(name,)
        )
        self.world.tell(f"slurm: job {one.job.id} starts on {name}")

    def _places(self, job: Job, now: datetime) -> list[str]:
        places = []
        if BATCH in job.partitions and self.free_on(self.local) >= job.cores:
            places.append(self.local.name)
        for name, one in self.borrowed.items():
            usable = not one.drain_reason and one.silent_since is None
            fits = set(one.node.partitions) & set(job.partitions)
            if usable and fits and self.free_on(one.node) >= job.cores:
                places.append(name)
        return places

    def rush(self, name: str) -> None:
        """A user sends a job in the worst moment: it starts on this node if any can."""
        one = self.borrowed.get(name)
        if one is None or self._rushes >= _RUSHES or not self.world.chance(self.world.faults.rush):
            return
        self._rushes += 1
        job = Job(
            id=str(1000 + self._rushes),
            user="alice",
            account=name.split("-")[0],
            state=JobState.PENDING,
            partitions=(BATCH, *one.node.partitions),
            cores=1,
            nodes=1,
            memory_mb=500,
            time_limit=LIMIT,
            submitted=self.world.now,
        )
        one_more = self.jobs[job.id] = SimulatedJob(job, timedelta(seconds=60))
        self.world.tell(f"user: job {job.id} is submitted")
        if name in self._places(job, self.world.now):
            self._start(one_more, name)

    def cancel(self, one: SimulatedJob) -> None:
        one.cancelled = True
        one.job = replace(
            one.job, state=JobState.FAILED, ended=self.world.now, node_names=(), started=None
        )
        self.world.tell(f"user: job {one.job.id} is cancelled")

    def free_on(self, node: Node) -> int:
        return node.cores - sum(one.job.cores for one in self.jobs_on(node.name))

    def jobs_on(self, name: str) -> list[SimulatedJob]:
        states = (JobState.RUNNING, JobState.COMPLETING)
        return [one for one in self.jobs.values() if one.job.state in states and one.on == name]

    def done(self) -> bool:
        return all(one.job.state in (JobState.DONE, JobState.FAILED) for one in self.jobs.values())

    # -- how nodes look ----------------------------------------------------------------------------

    def _local(self) -> Node:
        used = self.local.cores - self.free_on(self.local)
        state = NodeState.MIXED if used else NodeState.IDLE
        return replace(self.local, allocated_cores=used, state=state)

    def _view(self, one: SimulatedNode) -> Node:
        used = one.node.cores - self.free_on(one.node)
        if one.down(self.world.now):
            state = NodeState.DOWN
        elif one.drain_reason:
            state = NodeState.DRAINING if used else NodeState.DRAINED
        else:
            state = NodeState.MIXED if used else NodeState.IDLE
        return replace(one.node, allocated_cores=used, state=state, reason=one.drain_reason)

"""What every stand-in remembers: jobs, nodes, and a scheduler that starts what fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from burst.lrms.command import Result

EPOCH = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)  # when the recordings were made


@dataclass
class SimJob:
    """One job or task of an array, as the batch system keeps it."""

    number: int
    task: int | None
    user: str
    cores: int
    memory_mb: int
    limit: timedelta
    submitted: datetime
    queues: list[str]  # where it may start
    origin: str  # where it was submitted
    held: bool = False
    node: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    starts: int = 0

    @property
    def waiting(self) -> bool:
        return not self.node and self.ended is None

    @property
    def running(self) -> bool:
        return bool(self.node) and self.ended is None


@dataclass
class SimNode:
    name: str
    cores: int
    memory_mb: int
    queues: tuple[str, ...]
    borrowed: bool
    up: bool = True
    closed: str | None = None  # why it takes no job
    heard: datetime = EPOCH
    tags: dict[str, str] = field(default_factory=dict)


class StandIn(ABC):
    """A batch system; called like a `burst.lrms.command.Runner`.

    Its clock stands still but for `pass_time`. A job starts when `schedule` is called. An answer
    that the real commands would not give is never made up: what is not known is a usage error.
    """

    local = "batch"  # the queue of the site's own node
    burst = "burst"  # the queue of the borrowed ones
    requeues_lost_jobs = True  # by itself, when it has given a node up

    def __init__(self, *, now: datetime = EPOCH) -> None:
        self.now = now
        self.jobs: list[SimJob] = []
        self.nodes: dict[str, SimNode] = {}
        self.away = False  # the server does not answer
        self.calls: list[str] = []
        self._next = 1
        self.nodes["node1"] = SimNode("node1", 2, 2000, (self.local,), borrowed=False, heard=now)

    def __call__(self, argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        self.calls.append(" ".join(argv))
        if self.away:
            return self.silence(argv[0])
        return self.answer(list(argv), given)

    @abstractmethod
    def answer(self, argv: list[str], given: str) -> Result:
        """What the command says and does while the server is there."""

    @abstractmethod
    def silence(self, command: str) -> Result:
        """What it says while the server is away."""

    # What users, machines and time do

    def submit(
        self, *, cores: int = 1, held: bool = False, tasks: int = 0, user: str = "alice"
    ) -> list[SimJob]:
        """Submit to the site's own queue; the job, or the tasks of the array."""
        made = [
            SimJob(
                number=self._next,
                task=task,
                user=user,
                cores=cores,
                memory_mb=100,
                limit=timedelta(minutes=20),
                submitted=self.now,
                queues=[self.local],
                origin=self.local,
                held=held,
            )
            for task in (range(1, tasks + 1) if tasks else [None])
        ]
        self._next += 1
        self.jobs += made
        return made

    def register(self, name: str, cores: int, memory_mb: int = 2000) -> None:
        """A borrowed machine's daemon comes up and reports."""
        known = self.nodes.get(name)
        if known is None:
            self.nodes[name] = SimNode(name, cores, memory_mb, (self.burst,), borrowed=True)
        self.nodes[name].up = True
        self.nodes[name].heard = self.now

    def schedule(self) -> None:
        for job in self.jobs:
            if not job.waiting or job.held:
                continue
            for node in self.nodes.values():
                free = node.cores - self.used(node.name)
                is_open = node.up and node.closed is None
                if is_open and free >= job.cores and self.accepts(node, job):
                    job.node, job.started = node.name, self.now
                    job.starts += 1
                    break

    def accepts(self, node: SimNode, job: SimJob) -> bool:
        return bool(set(node.queues) & set(job.queues))

    def end(self, job: SimJob) -> None:
        job.ended = self.now

    def power_off(self, name: str) -> None:
        self.nodes[name].up = False

    def pass_time(self, span: timedelta) -> None:
        """Nodes that are up report; lost ones are given up, and their jobs queued again where the
        batch system does that by itself."""
        self.now += span
        for node in self.nodes.values():
            if node.up:
                node.heard = self.now
            elif self.requeues_lost_jobs:
                for job in self.on(node.name):
                    self.queue_again(job)

    def queue_again(self, job: SimJob) -> None:
        job.node, job.started = "", None

    # What commands look up

    def on(self, node: str) -> list[SimJob]:
        return [job for job in self.jobs if job.running and job.node == node]

    def used(self, node: str) -> int:
        return sum(job.cores for job in self.on(node))

    def find(self, job_id: str) -> list[SimJob]:
        """The job, the task, or all tasks of the array of that id."""
        found = [job for job in self.jobs if self.job_id(job) == job_id]
        return found or [job for job in self.jobs if self.array_id(job) == job_id]

    @abstractmethod
    def job_id(self, job: SimJob) -> str:
        """As the batch system writes it."""

    def array_id(self, job: SimJob) -> str:
        return str(job.number)


def ok(out: str = "", err: str = "") -> Result:
    return Result(0, out, err)


def no(status: int, err: str, out: str = "") -> Result:
    return Result(status, out, err + "\n")


def usage(argv: Iterable[str]) -> Result:
    """A command or option the stand-in does not know, as getopt would put it."""
    words = list(argv)
    return Result(2, "", f"{words[0]}: not known to the stand-in: {' '.join(words)}\n")

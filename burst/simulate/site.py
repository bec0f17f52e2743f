"""A simulated batch farm: so many local cores, and borrowed machines beside them.

First come, first served with EASY backfilling on time limits (D. Lifka, "The ANL/IBM SP scheduling
system", JSSPP 1995): a later job may start if it does not delay the first that waits. Borrowed
nodes take the jobs that may start there, in order, each on the fullest machine it fits on and of
equals on the one used last, so that idle machines stay idle and can be returned.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable

from burst.simulate.swf import TraceJob

BACKFILL_DEPTH = (
    200  # jobs behind the first that waits which are looked at (Slurm's bf_max_job_test)
)


class Work:
    """A job of the trace and what has become of it. Times in seconds of virtual time."""

    # fmt: off
    __slots__ = ("cores", "limit", "nodes", "number", "on", "ordinal", "per_node", "place",
                 "requeues", "run", "start", "submit", "user")
    # fmt: on

    def __init__(self, job: TraceJob, ordinal: int, node_cores: int) -> None:
        self.ordinal = ordinal
        self.number = job.number
        self.submit = job.submit
        self.run = job.run
        self.limit = job.limit if job.limit is not None else job.run
        self.cores = job.cores
        self.user = job.user
        self.nodes = max(-(-job.cores // max(node_cores, 1)), 1)  # on borrowed machines
        self.per_node = -(-job.cores // self.nodes)
        self.start = -1.0
        self.place = ""  # "local", "borrowed"; empty while it waits
        self.on: tuple[Rented, ...] = ()
        self.requeues = 0


class Rented:
    """A borrowed machine as the provider has it."""

    # fmt: off
    __slots__ = ("cores", "draining", "ended", "free", "idle_since", "launched", "name",
                 "price", "provider", "type", "up", "works")
    # fmt: on

    def __init__(
        self, name: str, provider: str, kind: str, cores: int, price: float, now: float
    ) -> None:
        self.name, self.provider, self.type = name, provider, kind
        self.cores, self.price, self.launched = cores, price, now
        self.free = cores
        self.up = False  # a node of the farm, and open
        self.draining = False
        self.ended: float | None = None
        self.idle_since: float | None = None
        self.works: dict[int, Work] = {}


class Site:
    """Local cores, borrowed nodes, and who waits. It knows no provider and no money."""

    def __init__(self, cores: int, on_start: Callable[[Work], None]) -> None:
        self.cores = cores
        self.free = cores
        self.now = 0.0
        self.queue: dict[int, Work] = {}  # waiting, in order of submission
        self.routed: dict[int, Work] = {}  # of these, who may start on borrowed nodes
        self.everybody_routed = False
        self.whole_machines = False  # a job on a borrowed machine has it for itself
        self.local: dict[int, Work] = {}  # running here
        self.remote: dict[int, Work] = {}  # running on borrowed nodes
        self.waiting_cores = 0
        self.open_cores = 0  # of borrowed nodes that take jobs
        self.busy_cores = 0  # of borrowed nodes
        self.turns = 0  # counts what happens to borrowed nodes
        self._on_start = on_start
        self._ends: list[tuple[float, int, int]] = []  # expected end, ordinal, cores: local ones
        self._open: dict[int, dict[str, Rented]] = {}  # open nodes by free cores; last used is last

    # Jobs come and go

    def submit(self, work: Work) -> None:
        self.queue[work.ordinal] = work
        self.waiting_cores += work.cores
        if self.everybody_routed:
            self.routed[work.ordinal] = work

    def requeue(self, work: Work) -> None:
        """It lost its machine: it waits again, with the rank it had."""
        self._leave(work)
        work.start, work.place, work.on = -1.0, "", ()
        work.requeues += 1
        self.submit(work)
        self.queue = dict(sorted(self.queue.items()))
        self.routed = dict(sorted(self.routed.items()))

    def end(self, work: Work) -> None:
        self._leave(work)

    def _leave(self, work: Work) -> None:
        if work.place == "local":
            del self.local[work.ordinal]
            self.free += work.cores
            key = (work.start + work.limit, work.ordinal, work.cores)
            del self._ends[bisect_left(self._ends, key)]
            return
        del self.remote[work.ordinal]
        self.turns += 1
        for machine in work.on:
            del machine.works[work.ordinal]
            self._resize(machine, machine.cores if self.whole_machines else work.per_node)
            if not machine.works:
                machine.idle_since = self.now

    def route(self, work: Work) -> None:
        if work.ordinal in self.queue:
            self.routed[work.ordinal] = work

    def unroute(self, work: Work) -> None:
        self.routed.pop(work.ordinal, None)

    # Machines come and go

    def open(self, machine: Rented) -> None:
        self.turns += 1
        machine.up, machine.idle_since = True, self.now
        self.open_cores += machine.cores
        self._open.setdefault(machine.free, {})[machine.name] = machine

    def drain(self, machine: Rented) -> None:
        """It takes no more jobs."""
        self.turns += 1
        if machine.up and not machine.draining:
            del self._open[machine.free][machine.name]
            self.open_cores -= machine.cores
        machine.draining = True

    def _resize(self, machine: Rented, by: int) -> None:
        takes_jobs = machine.up and not machine.draining
        if takes_jobs:
            del self._open[machine.free][machine.name]
        machine.free += by
        self.busy_cores -= by
        if takes_jobs:
            self._open.setdefault(machine.free, {})[machine.name] = machine

    # Starting jobs

    def start_jobs(self) -> None:
        """Start what can start now."""
        if not self.queue:
            return
        if self.free:
            self._start_here()
        if self.routed and self.open_cores > 0 and self._start_borrowed() and self.free:
            self._start_here()

    def _start_here(self) -> None:
        started: list[Work] = []
        blocked: Work | None = None
        shadow, extra, looked = math.inf, 0, 0
        for work in self.queue.values():
            if blocked is None:
                if work.cores <= self.free:
                    self._here(work)
                    started.append(work)
                    continue
                blocked = work
                if not self.free:
                    break
                shadow, extra = self._reservation(work.cores)
                continue
            looked += 1
            if looked > BACKFILL_DEPTH:
                break
            if work.cores > self.free:
                continue
            if self.now + work.limit > shadow:
                if work.cores > extra:
                    continue
                extra -= work.cores
            self._here(work)
            started.append(work)
            if not self.free:
                break
        self._started(started)

    def _reservation(self, cores: int) -> tuple[float, int]:
        """When the first that waits can start by the limits, and what is left beside it then."""
        free = self.free
        for end, _, more in self._ends:
            free += more
            if free >= cores:
                return end, free - cores
        return math.inf, free

    def _here(self, work: Work) -> None:
        self.free -= work.cores
        work.place, work.start = "local", self.now
        self.local[work.ordinal] = work
        insort(self._ends, (self.now + work.limit, work.ordinal, work.cores))

    def _start_borrowed(self) -> bool:
        started: list[Work] = []
        failed_cores = (
            math.inf
        )  # for fewer nodes than that; what was refused once is not asked again
        looked = 0
        for work in self.routed.values():
            if work.nodes == 1:
                if work.per_node >= failed_cores:
                    continue
                machine = self._fullest(work.per_node)
                on = [machine] if machine is not None else []
            else:
                on = self._several(work.nodes, work.per_node)
            if on:
                self._there(work, on)
                started.append(work)
                continue
            if work.nodes == 1:
                failed_cores = work.per_node
                if failed_cores <= 1:
                    break
            looked += 1
            if looked > BACKFILL_DEPTH:
                break
        self._started(started)
        return bool(started)

    def _fullest(self, cores: int) -> Rented | None:
        best = min((free for free, some in self._open.items() if some and free >= cores), default=0)
        return next(reversed(self._open[best].values())) if best else None

    def _several(self, count: int, cores: int) -> list[Rented]:
        """All or nothing: `count` machines with so many free cores each."""
        fitting = [free for free, some in self._open.items() if free >= cores and some]
        if sum(len(self._open[free]) for free in fitting) < count:
            return []
        found: list[Rented] = []
        for free in sorted(fitting):
            found.extend(reversed(self._open[free].values()))
            if len(found) >= count:
                break
        return found[:count]

    def _there(self, work: Work, on: Iterable[Rented]) -> None:
        work.place, work.start, work.on = "borrowed", self.now, tuple(on)
        self.remote[work.ordinal] = work
        self.turns += 1
        for machine in work.on:
            self._resize(machine, -(machine.free if self.whole_machines else work.per_node))
            machine.works[work.ordinal] = work
            machine.idle_since = None

    def _started(self, works: list[Work]) -> None:
        for work in works:
            del self.queue[work.ordinal]
            self.routed.pop(work.ordinal, None)
            self.waiting_cores -= work.cores
            self._on_start(work)

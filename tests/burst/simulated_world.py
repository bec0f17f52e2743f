"""A small world to be wrong in: a cloud, a batch farm, a network and a store with seeded faults.

Everything the burst engine meets, in virtual time, by the rules of the real things: launches are
idempotent by token, lists lag, answers get lost *after* the act, requests are throttled, machines
never boot or die, the LRMS requeues the jobs of a dead node, and the controller is killed between
any two calls, before or after the call took effect. Only the store survives a kill.

The decisions and the executor are the production ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

from burst.decide import decide
from burst.execute import apply
from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.model import (
    Budget,
    Facts,
    Farm,
    Job,
    JobState,
    Lease,
    LeaseState,
    LinkHealth,
    Machine,
    MachineState,
    Node,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.policy import money
from burst.providers.base import LaunchRequest, NoCapacity, ProviderError, Throttled, Unreachable

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
TICK = timedelta(seconds=5)
BATCH, BURST = "batch", "burst-cms"
LIMIT = timedelta(minutes=4)

POLICY = Policy(
    min_job_age=timedelta(seconds=5),
    expected_start_cost=timedelta(seconds=60),
    margin=timedelta(seconds=10),
    idle_release=timedelta(seconds=40),
    request_timeout=timedelta(seconds=60),
    boot_timeout=timedelta(seconds=120),
    tunnel_timeout=timedelta(seconds=60),
    join_timeout=timedelta(seconds=60),
    lost_timeout=timedelta(seconds=40),
    backoff_first=timedelta(seconds=5),
    backoff_limit=timedelta(seconds=60),
    failures_to_pause=2,
    pause=timedelta(minutes=5),
    reserve_hours=Decimal("0.1"),
    orphan_age=timedelta(seconds=60),
    return_time=timedelta(minutes=4),
)
POOL = Pool(
    name="cms-aws",
    tenant="cms",
    network="farm",
    provider="aws",
    partition=BURST,
    from_partitions=(BATCH,),
    types=("small", "large"),
    max_machines=4,
    addresses=tuple(f"10.9.0.{n}" for n in range(101, 107)),
)
OFFERS = (
    Offer("aws", "small", "a", 2, 4096, Decimal("0.60")),
    Offer("aws", "large", "a", 4, 8192, Decimal("1.20")),
)


class Killed(BaseException):
    """kill -9 of the controller; nothing may catch it but the world."""


class Broken(AssertionError):  # noqa: N818 - the world is
    """An invariant does not hold."""


@dataclass
class Clock:
    now: datetime = EPOCH

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Faults:
    """How often things go wrong, drawn from the seed."""

    kill: float
    lost_answer: float
    throttle: float
    no_capacity: float
    lrms_silent: float
    never_boots: float
    no_tunnel: float
    dies: float
    lag: float  # seconds at most until a machine is listed
    operator: float

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        def rate(most: float) -> float:
            return rng.choice([0.0, most * rng.random(), most * rng.random()])

        return cls(
            kill=rate(0.15),
            lost_answer=rate(0.3),
            throttle=rate(0.5),
            no_capacity=rate(0.4),
            lrms_silent=rate(0.2),
            never_boots=rate(0.6),
            no_tunnel=rate(0.6),
            dies=rate(0.5),
            lag=rng.choice([0.0, 10.0, 45.0]),
            operator=rate(0.03),
        )


@dataclass
class SimulatedMachine:
    id: str
    lease_id: str
    name: str
    type: str
    price: Decimal
    launched: datetime
    listed: datetime
    runs: datetime
    enrols: datetime | None
    tunnels: datetime | None
    dies: datetime | None
    ended: datetime | None = None

    def state(self, now: datetime) -> MachineState:
        if self.ended is not None:
            late = now - self.ended > timedelta(seconds=10)
            return MachineState.TERMINATED if late else MachineState.STOPPING
        return MachineState.RUNNING if now >= self.runs else MachineState.PENDING

    def bill(self, now: datetime) -> Decimal:
        return money.billed(self.price, self.launched, self.ended or now)


class World:
    """One seed's world; `run` lives it to the end and raises `Broken` if an invariant fails."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.faults = Faults.draw(self.rng)
        self.limit = Decimal(self.rng.choice(["0.30", "1.00", "20"]))
        self.store = Store(self)
        self.cloud = Cloud(self)
        self.farm = BatchFarm(self)
        self.watching_since = EPOCH
        self.calm = False  # faults over: the world may settle
        self.ids = itertools.count(1)
        self.kills = 0

    def chance(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability

    def called(self, act: Callable[[], None]) -> None:
        """A call of the controller, that may be killed before or after it took effect."""
        self.clock.now += timedelta(milliseconds=50)
        if self.chance(self.faults.kill):
            if self.rng.random() < 0.5:
                act()
            raise Killed
        act()

    def run(self, patience: timedelta = timedelta(hours=6)) -> None:
        for _ in range(int(patience / TICK)):
            self.clock.now += TICK
            self.cloud.live()
            self.farm.live()
            self.operate()
            self.calm = self.clock.now - EPOCH > timedelta(hours=1)
            try:
                self.round()
            except Killed:
                self.kills += 1
                self.clock.now += timedelta(seconds=self.rng.choice([0, 5, 30]))
                self.watching_since = self.clock.now
            self.check()
            if self.farm.done() and self.at_rest():
                self.check_end()
                return
        raise Broken(f"not at rest after {patience}: {self.describe()}")

    def round(self) -> None:
        """What the daemon does every few seconds: look (cloud before store), decide, act."""
        machines, error = self.cloud.try_list()
        farm = self.farm.try_snapshot()
        facts = Facts(
            now=self.clock.now,
            farm=farm,
            leases=self.store.recent(),
            providers={"aws": ProviderFacts("aws", OFFERS, machines, error)},
            links=self.cloud.links(),
            enrolled=self.cloud.enrolled(),
            budgets={"cms": self.store.budget()},
            network_error="agent restarts" if self.chance(0.02) else "",
            watching_since=self.watching_since,
        )
        decision = decide(facts, [POOL], POLICY, self.new_id)
        explained = {reason.id for reason in decision.reasons if reason.subject == "job"}
        unexplained = {
            job.id
            for job in (farm.jobs if farm else ())
            if job.state is JobState.PENDING and job.id not in explained
        }
        if unexplained:
            raise Broken(f"no reason for jobs {sorted(unexplained)}")
        self.farm.live()  # it does not stand still while we think
        apply(
            decision.actions,
            store=self.store,
            lrms=self.farm,
            providers={"aws": self.cloud},
            user_data=lambda lease: f"join {lease.node}",
            policy=POLICY,
            clock=self.clock,
        )

    def operate(self) -> None:
        """An operator who wants a machine back, whatever it does."""
        living = self.store.living()
        if living and self.chance(self.faults.operator):
            lease = self.rng.choice(living)
            self.store.update_now(replace(lease, drain_requested="operator says so"))

    def new_id(self) -> str:
        return f"{next(self.ids):08x}{'0' * 24}"

    def at_rest(self) -> bool:
        now = self.clock.now
        return (
            all(not lease.living for lease in self.store.leases.values())
            and all(m.state(now) is MachineState.TERMINATED for m in self.cloud.by_token.values())
            and not self.farm.borrowed
        )

    def check(self) -> None:
        now = self.clock.now
        bill = sum((m.bill(now) for m in self.cloud.by_token.values()), Decimal(0))
        if bill > self.limit:
            raise Broken(f"the bill of {bill} exceeds the budget of {self.limit}")
        budget = self.store.budget()
        if budget.free < 0:
            raise Broken(f"more than the budget is spent or reserved: {budget}")

    def check_end(self) -> None:
        for job in self.farm.jobs.values():
            if job.completed != 1:
                raise Broken(f"job {job.job.id} completed {job.completed} times")
        bill = sum((m.bill(self.clock.now) for m in self.cloud.by_token.values()), Decimal(0))
        if self.store.budget().spent < bill:
            raise Broken(f"settled {self.store.budget().spent}, but the bill is {bill}")
        if any(lease.reserved for lease in self.store.leases.values()):
            raise Broken("money is still reserved")

    def describe(self) -> str:
        leases = [f"{lse.node} {lse.state} {lse.failure}" for lse in self.store.living()]
        jobs = [j.job.id for j in self.farm.jobs.values() if not j.completed]
        return f"leases {leases}, jobs {jobs}, nodes {sorted(self.farm.borrowed)}, {self.faults}"


class Store:
    """Durable, transactional, and all that is left after a kill."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leases: dict[str, Lease] = {}

    def lease(self, lease_id: str) -> Lease | None:
        return self.leases.get(lease_id)

    def want(self, lease: Lease) -> bool:
        if lease.id in self.leases or self.budget().free < lease.reserved:
            return False
        self.world.called(lambda: self.update_now(lease))
        return True

    def update(self, lease: Lease) -> None:
        if lease.id not in self.leases:
            raise Broken(f"lease {lease.id} is updated, but was never stored")
        self.world.called(lambda: self.update_now(lease))

    def update_now(self, lease: Lease) -> None:
        self.leases[lease.id] = lease

    def living(self) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.living]

    def recent(self) -> tuple[Lease, ...]:
        since = self.world.clock.now - POLICY.pause
        return tuple(
            lease
            for lease in self.leases.values()
            if lease.living or (lease.ended is not None and lease.ended >= since)
        )

    def budget(self) -> Budget:
        spent = sum((lse.cost for lse in self.leases.values() if not lse.living), Decimal(0))
        reserved = sum((lse.reserved for lse in self.living()), Decimal(0))
        return Budget("cms", self.world.limit, spent, reserved)


class Cloud:
    """EC2 as it behaves on a bad day."""

    name = "aws"

    def __init__(self, world: World) -> None:
        self.world = world
        self.by_token: dict[str, SimulatedMachine] = {}
        self.link_since: dict[str, tuple[bool, datetime]] = {}

    def offers(self) -> Sequence[Offer]:
        return OFFERS

    def machines(self) -> Sequence[Machine]:
        self._refuse()
        now = self.world.clock.now
        return [self._view(m) for m in self.by_token.values() if m.listed <= now]

    def launch(self, request: LaunchRequest) -> Machine:
        self._refuse()
        known = request.lease_id in self.by_token
        if not known and self.world.chance(self.world.faults.no_capacity):
            raise NoCapacity("InsufficientInstanceCapacity")
        if request.lease_id not in self.world.store.leases:
            raise Broken("a machine is launched that is not in the store")

        def start() -> None:
            if not known:
                self.by_token[request.lease_id] = self._new(request)

        self.world.called(start)
        if self.world.chance(self.world.faults.lost_answer):
            raise Unreachable("read timeout")
        return self._view(self.by_token[request.lease_id])

    def terminate(self, machine_ids: Sequence[str]) -> None:
        self._refuse()
        by_id = {machine.id: machine for machine in self.by_token.values()}
        for name in machine_ids:
            machine = by_id.get(name)
            if machine is None or machine.ended is not None:
                continue
            busy = self.world.farm.running_on(machine.name)
            if busy:
                raise Broken(f"{machine.name} is terminated with jobs {busy} on it")
            self.world.called(partial(self._end, machine))
        if self.world.chance(self.world.faults.lost_answer):
            raise Unreachable("read timeout")

    def _end(self, machine: SimulatedMachine) -> None:
        machine.ended = self.world.clock.now

    def _refuse(self) -> None:
        if self.world.chance(self.world.faults.throttle):
            raise Throttled("RequestLimitExceeded")
        if self.world.chance(self.world.faults.lost_answer / 3):
            raise Unreachable("connect timeout")

    def _new(self, request: LaunchRequest) -> SimulatedMachine:
        world, now = self.world, self.world.clock.now
        runs = now + timedelta(seconds=world.rng.uniform(5, 30))
        boots = not world.chance(world.faults.never_boots)
        tunnel = boots and not world.chance(world.faults.no_tunnel)
        dies = world.chance(world.faults.dies)
        price = next(offer.price_per_hour for offer in OFFERS if offer.type == request.type)
        return SimulatedMachine(
            id=f"i-{len(self.by_token):04x}",
            lease_id=request.lease_id,
            name=request.name,
            type=request.type,
            price=price,
            launched=now,
            listed=now + timedelta(seconds=world.rng.uniform(0, world.faults.lag)),
            runs=runs,
            enrols=runs + timedelta(seconds=10) if boots else None,
            tunnels=runs + timedelta(seconds=12) if tunnel else None,
            dies=now + timedelta(seconds=world.rng.uniform(10, 900)) if dies else None,
        )

    def _view(self, machine: SimulatedMachine) -> Machine:
        state = machine.state(self.world.clock.now)
        address = f"198.51.100.{int(machine.id[2:], 16) % 250}"
        return Machine(
            id=machine.id,
            provider="aws",
            lease_id=machine.lease_id,
            state=state,
            type=machine.type,
            zone="a",
            public_address=address if state is MachineState.RUNNING else "",
            launched=machine.launched,
            ended=machine.ended,
        )

    def live(self) -> None:
        now = self.world.clock.now
        for machine in self.by_token.values():
            if machine.ended is None and machine.dies is not None and now >= machine.dies:
                machine.ended = now

    def try_list(self) -> tuple[tuple[Machine, ...] | None, str]:
        try:
            return tuple(self.machines()), ""
        except ProviderError as error:
            return None, str(error)

    def tunnelled(self, lease: Lease) -> bool:
        """Both ends there: the machine's, and ours, which follows the lease."""
        machine, now = self.by_token.get(lease.id), self.world.clock.now
        if machine is None or machine.tunnels is None or machine.ended is not None:
            return False
        return now >= machine.tunnels and bool(lease.underlay)

    def links(self) -> Mapping[str, LinkHealth]:
        now = self.world.clock.now
        links: dict[str, LinkHealth] = {}
        for lease in self.world.store.living():
            if not lease.underlay:
                continue
            up = self.tunnelled(lease)
            if self.link_since.get(lease.id, (not up, now))[0] != up:
                self.link_since[lease.id] = (up, now)
            links[lease.id] = LinkHealth(up=up, since=self.link_since[lease.id][1])
        return links

    def enrolled(self) -> Mapping[str, datetime]:
        now = self.world.clock.now
        return {
            m.lease_id: m.enrols
            for m in self.by_token.values()
            if m.enrols is not None and now >= m.enrols
        }


@dataclass
class SimulatedJob:
    job: Job
    runtime: timedelta
    completed: int = 0


@dataclass
class SimulatedNode:
    node: Node
    drained: bool = False
    joined: datetime = EPOCH
    silent_since: datetime | None = None


class BatchFarm:
    """An LRMS with one local node of two cores, and dynamic nodes."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = world.rng
        self.local = Node("wn1", NodeState.IDLE, 2, 0, 8192, partitions=(BATCH,))
        self.borrowed: dict[str, SimulatedNode] = {}
        self.came: set[str] = set()
        self.jobs: dict[str, SimulatedJob] = {}
        for number in range(1, rng.randint(6, 16)):
            runtime = timedelta(seconds=rng.randint(20, 200))
            job = Job(
                id=str(number),
                user="alice",
                account="cms",
                state=JobState.PENDING,
                partitions=(BATCH,),
                cores=rng.choice([1, 1, 1, 2]),
                nodes=1,
                memory_mb=500,
                time_limit=LIMIT,
                submitted=EPOCH + timedelta(seconds=rng.choice([0, 0, 60, 300])),
            )
            self.jobs[job.id] = SimulatedJob(job, runtime)

    # What the controller calls

    def snapshot(self) -> Farm:
        self._answer()
        now = self.world.clock.now
        jobs = [one.job for one in self.jobs.values() if one.job.submitted <= now]
        nodes = [self._local(), *(self._view(one) for one in self.borrowed.values())]
        return Farm(now, tuple(jobs), tuple(nodes))

    def try_snapshot(self) -> Farm | None:
        try:
            return self.snapshot()
        except LrmsUnavailable:
            return None

    def admit(self, node: Node) -> None:
        self._do(lambda: self._set_drained(node.name, False))

    def route(self, job_id: str, partition: str) -> None:
        self._do(lambda: self._partitions(job_id, add=partition))

    def unroute(self, job_id: str, partition: str) -> None:
        self._do(lambda: self._partitions(job_id, remove=partition))

    def drain(self, node: str, reason: str) -> None:
        assert reason
        self._do(lambda: self._set_drained(node, True))

    def remove(self, node: str) -> None:
        self._answer()
        if self.running_on(node):
            raise LrmsError(f"node {node} has jobs")
        self._do(lambda: self.borrowed.pop(node, None))

    def _do(self, act: Callable[[], object]) -> None:
        self._answer()

        def told() -> None:
            act()

        self.world.called(told)
        if self.world.chance(self.world.faults.lost_answer / 3):
            raise LrmsUnavailable("no answer")

    def _answer(self) -> None:
        if self.world.chance(self.world.faults.lrms_silent):
            raise LrmsUnavailable("no answer")

    def _set_drained(self, name: str, drained: bool) -> None:
        if name in self.borrowed:
            self.borrowed[name].drained = drained

    def _partitions(self, job_id: str, *, add: str = "", remove: str = "") -> None:
        one = self.jobs[job_id]
        if one.job.state is not JobState.PENDING:
            return
        kept = [name for name in one.job.partitions if name not in (add, remove)]
        one.job = replace(one.job, partitions=(*kept, add) if add else tuple(kept))
        if not one.job.partitions:
            raise Broken(f"job {job_id} may start nowhere")

    # What happens by itself

    def live(self) -> None:
        now = self.world.clock.now
        self._register(now)
        self._end_jobs(now)
        for name, one in self.borrowed.items():
            if not self._alive(name):
                one.silent_since = one.silent_since or now
                if now - one.silent_since > timedelta(seconds=30):
                    self._requeue(name)
        self._start_jobs(now)

    def _register(self, now: datetime) -> None:
        for lease in self.world.store.living():
            machine = self.world.cloud.by_token.get(lease.id)
            ready = (
                lease.state in (LeaseState.TUNNELLED, LeaseState.BOOTING)
                and machine is not None
                and machine.enrols is not None
                and now >= machine.enrols + timedelta(seconds=15)
                and self.world.cloud.tunnelled(lease)
            )
            if ready and lease.node not in self.came:
                self.came.add(lease.node)
                node = Node(lease.node, NodeState.IDLE, lease.cores, 0, 4000, partitions=(BURST,))
                drained = self.world.rng.random() < 0.2
                self.borrowed[lease.node] = SimulatedNode(node, drained, now)

    def _alive(self, name: str) -> bool:
        machines = self.world.cloud.by_token.values()
        return any(m.name == name and m.ended is None for m in machines)

    def _requeue(self, name: str) -> None:
        for one in self.jobs.values():
            if one.job.state is JobState.RUNNING and one.job.node_names == (name,):
                one.job = replace(one.job, state=JobState.PENDING, started=None, node_names=())

    def _end_jobs(self, now: datetime) -> None:
        for one in self.jobs.values():
            job = one.job
            if job.state is not JobState.RUNNING or job.started is None:
                continue
            if now >= job.started + one.runtime:
                on = job.node_names[0]
                if on == self.local.name or self._alive(on):
                    one.completed += 1
                    one.job = replace(job, state=JobState.DONE, ended=now)

    def _start_jobs(self, now: datetime) -> None:
        for one in self.jobs.values():
            job = one.job
            if job.state is not JobState.PENDING or job.submitted > now:
                continue
            for name in self._places(job):
                one.job = replace(job, state=JobState.RUNNING, started=now, node_names=(name,))
                break

    def _places(self, job: Job) -> list[str]:
        places: list[str] = []
        if BATCH in job.partitions and self.free_on(self.local) >= job.cores:
            places.append(self.local.name)
        if BURST in job.partitions:
            for name, one in self.borrowed.items():
                usable = not one.drained and one.silent_since is None
                if usable and self.free_on(one.node) >= job.cores:
                    places.append(name)
        return places

    def free_on(self, node: Node) -> int:
        return node.cores - sum(self.jobs[name].job.cores for name in self.running_on(node.name))

    def running_on(self, name: str) -> list[str]:
        return [
            one.job.id
            for one in self.jobs.values()
            if one.job.state is JobState.RUNNING and name in one.job.node_names
        ]

    def done(self) -> bool:
        return all(one.job.state is JobState.DONE for one in self.jobs.values())

    def _local(self) -> Node:
        used = self.local.cores - self.free_on(self.local)
        state = NodeState.MIXED if used else NodeState.IDLE
        return replace(self.local, allocated_cores=used, state=state)

    def _view(self, one: SimulatedNode) -> Node:
        used = one.node.cores - self.free_on(one.node)
        now = self.world.clock.now
        if one.silent_since and now - one.silent_since > timedelta(seconds=30):
            state = NodeState.DOWN
        elif one.drained:
            state = NodeState.DRAINING if used else NodeState.DRAINED
        else:
            state = NodeState.MIXED if used else NodeState.IDLE
        return replace(one.node, allocated_cores=used, state=state)

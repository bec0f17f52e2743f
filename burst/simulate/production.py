"""Our policy in the simulator: the `decide` of the daemon, with facts made of virtual things.

Nothing is decided here. What the daemon would read from LRMS, provider, tunnel and store is put
together from the simulated site, and what `decide` asks for is done to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

from burst import leases as life
from burst.actions import Action, Drain, Launch, Remove, Route, Terminate, Unroute, Update, Want
from burst.decide import decide
from burst.model import (
    Budget,
    Facts,
    FailureClass,
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
from burst.simulate.engine import Offered, Run
from burst.simulate.site import Rented, Site, Work

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
BATCH, BURST, TENANT = "batch", "burst", "site"
_LOOK_AGAIN_S = 600.0  # with jobs waiting, though nothing has happened
_LEFT = (LeaseState.LEAVING, LeaseState.TERMINATING)  # their tunnels are closed, or will be
_SOON_S = 5.0  # after something was done: the daemon's next round


def instant(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


class Production:
    """`decide`, for one tenant with one pool for each provider."""

    def __init__(
        self,
        policy: Policy,
        *,
        cap: int = 1_000_000,
        budget: Decimal = Decimal(10**9),
        name: str = "ours",
    ) -> None:
        self.name = name
        self.policy = policy
        self.cap, self.budget = cap, budget
        self._leases: dict[str, Lease] = {}
        self._ended: dict[str, Lease] = {}
        self._rented: dict[str, Rented] = {}  # by lease id
        self._ready: dict[str, datetime] = {}  # by lease id: when its tunnel came up
        self._jobs: dict[int, Job] = {}
        self._listed: dict[str, Machine] = {}
        self._offers: dict[tuple[str, str], Offered] = {}
        self._pools: tuple[Pool, ...] = ()
        self._spent = Decimal(0)
        self._ids = count(1)
        self._settled: tuple[int, float] = (-1, 0.0)  # nothing to do: at which turn, until when

    def begin(self, run: Run) -> None:
        self._offers = {(offer.provider, offer.type): offer for offer in run.offers}
        addresses = tuple(f"n{i}" for i in range(min(self.cap, 4096)))
        self._pools = tuple(
            Pool(
                name=provider,
                tenant=TENANT,
                network="farm",
                provider=provider,
                partition=f"{BURST}-{provider}",
                from_partitions=(BATCH,),
                max_machines=min(self.cap, 4096),
                addresses=addresses,
                max_nodes=1_000_000,
            )
            for provider in sorted(run.providers)
        )

    def act(self, run: Run) -> float:
        site = run.site
        if not site.queue and not self._leases:
            return math.inf
        turn, until = self._settled
        if not site.queue and turn == site.turns and run.now < until:
            return until  # only the site's own nodes and jobs have changed
        now = instant(run.now)
        decision = decide(self._facts(run, now), self._pools, self.policy, self._new_id)
        acted = False
        for action in decision.actions:
            acted = self._do(run, action, now) or acted
        wake = self._next(run, acted)
        quiet = not acted and not site.queue
        self._settled = (site.turns, wake) if quiet else (-1, 0.0)
        return wake

    def _new_id(self) -> str:
        number = next(self._ids)
        return f"{number & 0xFFFFFFFF:08x}{number:024x}"

    def _next(self, run: Run, acted: bool) -> float:
        if acted:
            return run.now + _SOON_S
        wake = run.now + _LOOK_AGAIN_S if run.site.queue or self._leases else math.inf
        age = self.policy.min_job_age.total_seconds()
        last = next(reversed(run.site.queue.values()), None)
        if last is not None and last.submit + age > run.now:
            wake = min(wake, max(last.submit + age, run.now + _SOON_S))
        patience = self.policy.idle_release.total_seconds()
        for rented in self._rented.values():
            if rented.up and rented.idle_since is not None:
                for turn in (1, 3):
                    due = rented.idle_since + turn * patience + 1
                    if due > run.now:
                        wake = min(wake, due)
                        break
                billing = run.providers[rented.provider].billing_s
                if billing > 60:
                    wake = min(wake, run.now + 60)
        return wake

    # The facts

    def _facts(self, run: Run, now: datetime) -> Facts:
        site = run.site
        jobs = [self._job(work) for work in site.queue.values()]
        jobs += [self._running(work) for work in site.local.values()]
        jobs += [self._running(work) for work in site.remote.values()]
        self._forget(site)
        used = site.cores - site.free
        nodes = [
            Node(
                "local",
                NodeState.MIXED if used else NodeState.IDLE,
                site.cores,
                used,
                2048 * site.cores,
                partitions=(BATCH,),
            )
        ]
        nodes += [self._node(lease) for lease in self._leases.values() if self._has_node(lease)]
        links = {}
        for lease_id, rented in self._rented.items():
            lease = self._leases.get(lease_id)
            if rented.up and lease is not None and lease.state not in _LEFT:
                since = self._ready.setdefault(lease_id, now)
                links[lease_id] = LinkHealth(up=True, since=since)
        spent = self._spent
        reserved = sum((lease.reserved for lease in self._leases.values()), Decimal(0))
        horizon = now - self.policy.pause
        self._ended = {k: v for k, v in self._ended.items() if v.ended and v.ended > horizon}
        return Facts(
            now=now,
            farm=Farm(now, tuple(jobs), tuple(nodes)),
            leases=(*self._leases.values(), *self._ended.values()),
            providers=self._provider_facts(run),
            links=links,
            enrolled=self._ready,
            budgets={TENANT: Budget(TENANT, self.budget, spent, reserved)},
            watching_since=EPOCH,
        )

    def _provider_facts(self, run: Run) -> Mapping[str, ProviderFacts]:
        facts = {}
        for name, model in run.providers.items():
            offers = tuple(
                Offer(
                    name,
                    offer.type,
                    "",
                    offer.machine.cores,
                    offer.machine.memory,
                    offer.machine.price,
                    run.available(offer),
                    offer.machine.spot,
                )
                for offer in run.offers
                if offer.provider == name
            )
            machines = tuple(m for m in self._listed.values() if m.provider == name)
            facts[name] = ProviderFacts(
                name, offers, machines, billing=timedelta(seconds=model.billing_s)
            )
        return facts

    def _forget(self, site: Site) -> None:
        """The jobs that have ended: a trace may have a million."""
        here = (site.queue, site.local, site.remote)
        if len(self._jobs) > 1000 + 2 * sum(map(len, here)):
            self._jobs = {n: self._jobs[n] for some in here for n in some if n in self._jobs}

    def _job(self, work: Work) -> Job:
        job = self._jobs.get(work.ordinal)
        if job is None:
            job = self._jobs[work.ordinal] = Job(
                id=str(work.ordinal),
                user=work.user,
                account="",
                state=JobState.PENDING,
                partitions=(BATCH,),
                cores=work.cores,
                nodes=work.nodes,
                memory_mb=0,
                time_limit=timedelta(seconds=work.limit),
                submitted=instant(work.submit),
            )
        elif job.state is not JobState.PENDING:  # it came back
            job = replace(job, state=JobState.PENDING, started=None, node_names=())
            self._jobs[work.ordinal] = job
        return job

    def _running(self, work: Work) -> Job:
        job = self._jobs.get(work.ordinal) or self._job(work)
        if job.state is not JobState.RUNNING:
            names = tuple(self._leases[machine.name].node for machine in work.on) or ("local",)
            job = replace(
                job, state=JobState.RUNNING, started=instant(work.start), node_names=names
            )
            self._jobs[work.ordinal] = job
        return job

    def _has_node(self, lease: Lease) -> bool:
        rented = self._rented.get(lease.id)
        return rented is not None and rented.up

    def _node(self, lease: Lease) -> Node:
        rented = self._rented[lease.id]
        used = rented.cores - rented.free
        if rented.draining:
            state = NodeState.DRAINING if used else NodeState.DRAINED
        else:
            state = NodeState.MIXED if used else NodeState.IDLE
        return Node(
            lease.node, state, lease.cores, used, lease.memory_mb, lease.address,
            partitions=(BURST,),
        )  # fmt: skip

    # The acts

    def _do(self, run: Run, action: Action, now: datetime) -> bool:
        """Whether the world changed by it, so that another look is due."""
        match action:
            case Want(lease):
                self._leases[lease.id] = lease
            case Update(lease):
                return self._store(lease)
            case Launch(lease_id):
                self._launch(run, self._leases[lease_id], now)
            case Route(job_id, partition) | Unroute(job_id, partition):
                self._reroute(run, int(job_id), partition, isinstance(action, Route))
                return False
            case Drain(node, _):
                self._drain(run, node)
            case Remove(node):
                for lease in self._leases.values():
                    if lease.node == node and lease.id in self._rented:
                        self._rented[lease.id].up = False
            case Terminate(_, machine_ids, _):
                for name in machine_ids:
                    self._end(run, name, now)
            case _:
                return False
        return True

    def _store(self, lease: Lease) -> bool:
        before = self._leases.get(lease.id)
        if lease.living:
            self._leases[lease.id] = lease
        else:
            self._leases.pop(lease.id, None)
            self._ended[lease.id] = lease
            self._spent += lease.cost
            self._rented.pop(lease.id, None)
            self._ready.pop(lease.id, None)
            self._listed.pop(lease.id, None)
        return before is None or before.state is not lease.state

    def _launch(self, run: Run, lease: Lease, now: datetime) -> None:
        rented = run.launch(self._offers[lease.provider, lease.type], lease.id)
        if rented is None:
            text = f"{lease.provider} has no more {lease.type}"
            lease = life.launch_failed(lease, FailureClass.NO_CAPACITY, text, self.policy, now)
            self._leases[lease.id] = lease
            return
        self._rented[lease.id] = rented
        machine = Machine(
            lease.id,
            lease.provider,
            lease.id,
            MachineState.RUNNING,
            lease.type,
            "",
            public_address="198.51.100.1",
            launched=now,
        )
        self._listed[lease.id] = machine
        self._leases[lease.id] = life.launched(life.launching(lease, now), machine, now)

    def _reroute(self, run: Run, ordinal: int, partition: str, to: bool) -> None:
        job, work = self._jobs[ordinal], run.works[ordinal]
        kept = tuple(name for name in job.partitions if name != partition)
        self._jobs[ordinal] = replace(job, partitions=(*kept, partition) if to else kept)
        if to:
            run.site.route(work)
        elif len(kept) == 1:
            run.site.unroute(work)

    def _drain(self, run: Run, node: str) -> None:
        for lease in self._leases.values():
            if lease.node == node and lease.id in self._rented:
                run.drain(self._rented[lease.id])

    def _end(self, run: Run, name: str, now: datetime) -> None:
        machine = self._listed.get(name)
        if machine is None:
            return
        run.end(self._rented[name])
        self._listed[name] = replace(machine, state=MachineState.TERMINATED, ended=now)

"""A real queue overflows: the production decision and adapter with real HTCondor, Grid Engine or
Slurm 24.11 daemons on lab hosts.

    python -m lab.scenarios.overflow htcondor|gridengine|slurm-24.11

What is real: the batch system, the jobs, `decide`, `execute` and the adapter. What is not: machines
are lab hosts in the farm's own network, without cloud, tunnel or gateway daemon, which
`./run demo --lrms` has. Needs root, debootstrap and a Debian mirror, but no full kernel.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from burst import execute
from burst.actions import Update
from burst.decide import decide
from burst.lrms.base import Announces
from burst.model import (
    Budget,
    Facts,
    JobState,
    Lease,
    LeaseState,
    LinkHealth,
    Machine,
    MachineState,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.providers.base import LaunchRequest
from lab.farm.gridengine import GridEngineCell
from lab.farm.ground import NETWORK, RealGround
from lab.farm.htcondor import HtCondorPool
from lab.farm.realslurm import SlurmTrixie

FARMS: dict[str, Callable[[], RealGround]] = {
    "htcondor": HtCondorPool,
    "gridengine": GridEngineCell,
    "slurm-24.11": SlurmTrixie,
}
_CORES, _MEMORY_MB = 2, 2400
_LIMIT = Decimal("1.00")
_POLICY = Policy(
    min_job_age=timedelta(0),
    expected_start_cost=timedelta(seconds=5),
    margin=timedelta(seconds=1),
    idle_release=timedelta(seconds=5),
)


@dataclass
class Hosts:
    """A provider whose machines are lab hosts that join at once."""

    ground: RealGround
    name: str = "lab"
    listed: dict[str, Machine] = field(default_factory=dict)

    def offers(self) -> Sequence[Offer]:
        return [Offer("lab", "lab.2", "here", _CORES, _MEMORY_MB, Decimal("0.30"))]

    def launch(self, request: LaunchRequest) -> Machine:
        if request.lease_id not in self.listed:
            lrms = self.ground.adapter()
            host = self.ground.add_host(request.name, request.address)
            if isinstance(lrms, Announces):
                lrms.announce(
                    request.name,
                    address=request.address,
                    cores=_CORES,
                    partition=self.ground.burst,
                )
            self.ground.start_machine(host, request.name, _CORES)
            self.listed[request.lease_id] = Machine(
                request.name, "lab", request.lease_id, MachineState.RUNNING, request.type, "here",
                public_address=request.address, launched=datetime.now(UTC),
            )  # fmt: skip
        return self.listed[request.lease_id]

    def machines(self) -> Sequence[Machine]:
        return list(self.listed.values())

    def terminate(self, machine_ids: Sequence[str]) -> None:
        for lease_id, machine in self.listed.items():
            if machine.id in machine_ids and machine.state is MachineState.RUNNING:
                self.ground.power_off(machine.id)
                self.listed[lease_id] = replace(
                    machine, state=MachineState.TERMINATED, ended=datetime.now(UTC)
                )


@dataclass
class Store:
    """Leases in memory."""

    leases: dict[str, Lease] = field(default_factory=dict)

    def lease(self, lease_id: str) -> Lease | None:
        return self.leases.get(lease_id)

    def want(self, lease: Lease) -> bool:
        if self.budget().free < lease.reserved:
            return False
        self.leases[lease.id] = lease
        return True

    def update(self, lease: Lease) -> None:
        self.leases[lease.id] = lease

    def budget(self) -> Budget:
        leases = self.leases.values()
        spent = sum((one.cost for one in leases if not one.living), Decimal(0))
        return Budget("cms", _LIMIT, spent, sum((one.reserved for one in leases), Decimal(0)))


@dataclass(frozen=True)
class Told:
    """How a story ended: where each job ran, by its id, and what was left behind."""

    ran: dict[str, str]
    machines: int
    leftovers: tuple[str, ...]
    cost: Decimal


def play(ground: RealGround, *, jobs: int = 5, limit_s: float = 180) -> Told:
    """Fill the site's own node, queue `jobs` more, and wait until all is done and gone."""
    hosts, store = Hosts(ground), Store()
    pool = Pool(
        "cms-lab", "cms", "farm", "lab", ground.burst, (ground.local,), types=("lab.2",),
        max_machines=2, addresses=tuple(f"{NETWORK}.{n}" for n in range(101, 105)),
    )  # fmt: skip
    (blocker,) = ground.submit(cores=2)
    ground.until(
        lambda farm: any(j.id == blocker and j.state is JobState.RUNNING for j in farm.jobs),
        "the site's own node is full",
    )
    queued = [ground.submit()[0] for _ in range(jobs)]
    ran: dict[str, str] = {}
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        now, farm = datetime.now(UTC), ground.lrms.snapshot()
        for job in farm.jobs:
            if job.id in queued and job.state is JobState.RUNNING and job.id not in ran:
                ran[job.id] = ",".join(job.node_names)
                print(f"job {job.id} runs on {ran[job.id]}")  # noqa: T201
                ground.end(job.id)
        known = list(store.leases.values())
        up = {one.id: now for one in known if one.id in hosts.listed}
        facts = Facts(
            now=now,
            farm=farm,
            leases=tuple(known),
            providers={"lab": ProviderFacts("lab", tuple(hosts.offers()), tuple(hosts.machines()))},
            links={
                one.id: LinkHealth(up=True, since=now)
                for one in known
                if one.id in up and one.state not in (LeaseState.LEAVING, LeaseState.TERMINATING)
            },
            enrolled=up,
            budgets={"cms": store.budget()},
            watching_since=now - timedelta(hours=1),
        )
        decision = decide(facts, [pool], _POLICY, lambda: uuid.uuid4().hex)
        for outcome in execute.apply(
            decision.actions, store=store, lrms=ground.lrms, providers={"lab": hosts},
            user_data=lambda lease: "", policy=_POLICY, clock=lambda: datetime.now(UTC),
        ):  # fmt: skip
            if not isinstance(outcome.action, Update):
                print(f"{type(outcome.action).__name__}: {outcome.error or 'done'}")  # noqa: T201
        over = len(ran) == jobs and all(not lease.living for lease in store.leases.values())
        if over:
            break
        time.sleep(1)
    return _told(ground, hosts, store, ran)


def _told(ground: RealGround, hosts: Hosts, store: Store, ran: dict[str, str]) -> Told:
    ours = {lease.node for lease in store.leases.values()}
    nodes = [
        node.name
        for node in ground.lrms.snapshot().nodes
        if node.name in ours and node.state is not NodeState.UNKNOWN
    ]
    left = [f"node {name}" for name in nodes]
    left += [f"machine {m.id}" for m in hosts.machines() if m.state is MachineState.RUNNING]
    left += [f"lease {one.id}" for one in store.leases.values() if one.living]
    cost = sum((one.cost for one in store.leases.values()), Decimal(0))
    return Told(ran, len(store.leases), tuple(left), cost)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in FARMS:
        print(f"one of {', '.join(FARMS)}", file=sys.stderr)  # noqa: T201
        return 2
    with FARMS[arguments[0]]() as ground:
        told = play(ground)
    print(  # noqa: T201
        f"{len(told.ran)} jobs done on {told.machines} borrowed machines; cost {told.cost:.4f}; "
        f"leftovers: {', '.join(told.leftovers) or 0}"
    )
    return 1 if told.leftovers or len(told.ran) < 5 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

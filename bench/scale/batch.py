"""A flash of 1,000 machines, from the decision to the leases that know their machines.

The provider is the real one for EC2 with the real pace; behind it EC2's answer is made up at once,
as is the store: what is measured is our own work, and counted are EC2's calls and the store's
transactions. The peers do the comparable parts of theirs beside it, see `bench.scale.peers`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from bench.scale import decide as big
from bench.scale import peers, spread
from burst.actions import Decision
from burst.decide import decide
from burst.execute import apply
from burst.model import (
    Budget,
    Facts,
    Farm,
    Flash,
    Lease,
    LeaseState,
    Node,
    NodeState,
    Offer,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.providers.ec2 import Ec2Config, Ec2Provider

NOW = datetime(2024, 1, 1, tzinfo=UTC)
MACHINES = 1_000
LEASES = 2_000
_CORES = 8
_REPEATS = 5
OFFER = Offer("aws", "c5.2xlarge", "a", _CORES, 16_384, Decimal("0.34"))
CONFIG = Ec2Config(
    region="eu-south-1",
    image="ami-0123456789abcdef0",
    subnet="subnet-1",
    security_groups=("sg-1",),
    types=(OFFER.type,),
    site="cnaf",
)


@dataclass(slots=True)
class Cloud:
    """EC2's client: each call is counted, and answered with as many instances as were asked for."""

    launches: list[int] = field(default_factory=list)  # machines, by call
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def run_instances(self, **asked: Any) -> dict[str, Any]:
        self.launches.append(asked["MaxCount"])
        tags = asked["TagSpecifications"][0]["Tags"]
        return {"Instances": [self._instance(asked, i, tags) for i in range(asked["MaxCount"])]}

    def _instance(
        self, asked: Mapping[str, Any], index: int, tags: Sequence[Mapping[str, str]]
    ) -> dict[str, Any]:
        number = next(self._numbers)
        return {
            "InstanceId": f"i-{number:017x}",
            "InstanceType": asked["InstanceType"],
            "AmiLaunchIndex": index,
            "State": {"Name": "pending"},
            "LaunchTime": NOW,
            "PrivateIpAddress": f"10.20.{number // 250 % 250}.{number % 250 + 1}",
            "Placement": {"AvailabilityZone": "a"},
            "Tags": tags,
        }


@dataclass(slots=True)
class Memory:
    """A store of leases and batches without a disk; every method is one transaction."""

    leases: dict[str, Lease] = field(default_factory=dict)
    transactions: int = 0

    def lease(self, lease_id: str) -> Lease | None:
        return self.leases.get(lease_id)

    def want(self, lease: Lease) -> bool:
        self.transactions += 1
        self.leases[lease.id] = lease
        return True

    def update(self, lease: Lease) -> None:
        self.update_all([lease])

    def update_all(self, leases: Sequence[Lease]) -> None:
        self.transactions += 1
        self.leases.update((lease.id, lease) for lease in leases)

    def members(self, batch: str) -> Sequence[Lease]:
        found = [lease for lease in self.leases.values() if lease.batch == batch]
        return sorted(found, key=lambda lease: lease.batch_index)


class NoLrms:
    """No batch system is asked anything by a launch."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a launch asked the batch system: {name}")


def flash(machines: int) -> tuple[Facts, Pool]:
    """A standing request for so many machines, in a pool where one has joined before."""
    pool = Pool(
        name="cms-aws",
        tenant="cms",
        network="farm",
        provider="aws",
        partition="burst",
        from_partitions=("batch",),
        max_machines=machines + 10,
        addresses=tuple(f"10.9.{i // 250}.{i % 250 + 1}" for i in range(machines + 10)),
    )
    asked = Flash("f1", "cms", machines * _CORES, NOW, NOW + timedelta(hours=2))
    facts = Facts(
        now=NOW,
        farm=Farm(NOW, (), (Node("wn1", NodeState.IDLE, 64, 0, 262_144),)),
        leases=(_joined_before(),),
        providers={"aws": ProviderFacts("aws", (OFFER,), ())},
        budgets={"cms": Budget("cms", Decimal(10**6), Decimal(0), Decimal(0))},
        flashes=(asked,),
        watching_since=NOW - timedelta(days=1),
    )
    return facts, pool


def _joined_before() -> Lease:
    then = NOW - timedelta(minutes=10)
    return Lease(
        id=f"{1:032x}",
        pool="cms-aws",
        tenant="cms",
        network="farm",
        provider="aws",
        type=OFFER.type,
        zone="a",
        cores=_CORES,
        memory_mb=OFFER.memory_mb,
        price_per_hour=OFFER.price_per_hour,
        state=LeaseState.GONE,
        node="cms-aws-00000001",
        address="10.9.0.1",
        gre_key=2**31,
        wanted=then,
        joined=then,
        ended=then,
    )


def launch(facts: Facts, pool: Pool, store: Memory, cloud: Cloud) -> Decision:
    """One round: what is decided, and all of it done. The user data is a fixed text."""
    ids = count(2)
    found = decide(facts, [pool], Policy(), lambda: f"{next(ids):08x}{'0' * 24}")
    apply(
        found.actions,
        store=store,
        lrms=NoLrms(),
        providers={"aws": Ec2Provider("aws", CONFIG, client=cloud, clock=lambda: facts.now)},
        user_data=lambda _: "#!/bin/bash\n",
        policy=Policy(),
        clock=lambda: facts.now,
    )
    return found


def one(machines: int) -> dict[str, Any]:
    facts, pool = flash(machines)
    cpus: list[float] = []
    for _ in range(_REPEATS):
        store, cloud = Memory(), Cloud()
        gc.collect()
        worked = time.process_time()
        launch(facts, pool, store, cloud)
        cpus.append(time.process_time() - worked)
        started = sum(lease.state is LeaseState.REQUESTED for lease in store.leases.values())
        if started != machines:
            raise RuntimeError(f"{started} of {machines} machines were asked for")
    return {
        "machines": machines,
        "cpu_seconds": spread.middle(cpus),
        "cpu_seconds_spread": spread.ends(cpus),
        "provider_calls": len(cloud.launches),
        "store_transactions": store.transactions,
    }


def round_of(leases: int) -> dict[str, Any]:
    """A decision about so many machines while nobody waits: what a control loop does at rest."""
    found = big.one(0, leases, big.OFFERS)
    names = ("leases", "cpu_seconds", "cpu_seconds_spread")
    return {name: found[name] for name in names}


def measure(share: float = 1.0) -> dict[str, Any]:
    """`flash_cpu_s`, `flash_calls`, `round_cpu_s`, and beside them what the peers' take."""
    machines, leases = int(MACHINES * share), int(LEASES * share)
    flash_, round_ = one(machines), round_of(leases)
    return {
        "flash_cpu_s": flash_["cpu_seconds"],
        "flash_calls": flash_["provider_calls"],
        "round_cpu_s": round_["cpu_seconds"],
        "flash": flash_,
        "round": round_,
        "peers": peers.measure(machines, leases),
    }

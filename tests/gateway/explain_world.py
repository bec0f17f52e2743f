"""A site where every reason there is holds somewhere at once: one pool for each condition.

Each pool `x` has a tenant, a partition `q-x` full of local work, and a partition `b-x` of its own,
so that nothing but its condition decides about its jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from burst.model import (
    Facts,
    Failure,
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
)
from burst.providers.base import ProviderError
from gateway import sitefile
from gateway.sitefile import SiteFile

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGO = NOW - timedelta(minutes=10)
S = LeaseState

POOLS: dict[str, dict[str, Any]] = {
    "open": {
        "users": ["alice"], "features": ["x86"], "opt_out": ["stay"], "not_accounts": ["theory"],
        "max_nodes": 2, "max_machines": 300, "addresses": "10.1.0.2-10.1.3.200",
    },
    "optin": {"opt_in": ["cloud"]},
    "pair": {"max_nodes": 2, "max_machines": 8},
    "soon": {},
    "coming": {},
    "there": {},
    "nonode": {},
    "tight": {},
    "dear": {"types": ["p5.gold"]},
    "cap": {"max_machines": 1},
    "tcap": {"max_machines": 300, "addresses": "10.2.0.2-10.2.3.200"},
    "noaddr": {"max_machines": 1, "addresses": "10.9.9.9"},
    "poor": {},
    "soft": {},
    "quota": {"provider": "bari"},
    "broke": {},
    "nooffer": {"types": ["m9.unheard"]},
    "soldout": {"types": ["g5.rare"]},
    "backoff": {"types": ["c5.2xlarge"]},
    "slow": {"provider": "slow"},
    "paused": {},
    "proving": {},
    "mute": {"provider": "mute"},
    "zoo": {},
    "over": {},
}  # fmt: skip
BUDGETS: dict[str, dict[str, Any]] = {
    "tight": {"limit": 0.40}, "poor": {"limit": 0.01}, "soft": {"limit": 90, "soft": 0.01},
    "dear": {"limit": 900_000_000_000}, "over": {"limit": 0.20},
}  # fmt: skip
OFFERS = {
    "aws": [
        Offer("aws", "c5.large", "a", 2, 4096, Decimal("0.10")),
        Offer("aws", "c5.2xlarge", "a", 8, 16384, Decimal("0.40")),
        Offer("aws", "p5.gold", "a", 2, 4096, Decimal(900_000_000)),
        Offer("aws", "g5.rare", "a", 2, 4096, Decimal("0.10"), available=0),
    ],
    "bari": [Offer("bari", "c5.large", "a", 2, 4096, Decimal(2), unit="core-hours")],
    "slow": [Offer("slow", "c5.large", "a", 2, 4096, Decimal("0.10"))],
    "mute": [],
}


def site_text(directory: Path) -> str:
    """The site file."""
    ec2 = {
        "type": "ec2", "region": "eu-south-1", "image": "ami-1", "subnet": "subnet-1",
    }  # fmt: skip
    tenants, pools, budgets = {}, {}, {}
    for number, (name, changes) in enumerate(POOLS.items()):
        net = f"10.{number + 20}.0"
        pool: dict[str, Any] = {
            "tenant": f"t-{name}", "network": "farm", "provider": "aws", "types": ["c5.large"],
            "partition": f"b-{name}", "from": [f"q-{name}"],
            "max_machines": 4, "addresses": f"{net}.101-{net}.120",
        } | changes  # fmt: skip
        prefix = {"open": "10.1.0.0/22", "tcap": "10.2.0.0/22", "noaddr": "10.9.9.0/24"}.get(
            name, f"{net}.0/24"
        )
        tenants[f"t-{name}"] = {"networks": {"farm": {"prefix": prefix, "access": "open"}}}
        pools[name] = pool
        if name not in ("broke", "quota"):
            budgets[f"t-{name}"] = {"period": "month"} | BUDGETS.get(name, {"limit": 1000})
    policy = {
        "min_job_age": "60s", "expected_start_cost": "4m", "margin": "1m", "tenant_machines": 20,
        "failures_to_pause": 3, "pause": "30m", "reserve_hours": 0.5, "min_value": 0.0001,
        "return_time": "3m", "default_job_time": "1h", "backoff_first": "10s",
    }  # fmt: skip
    return yaml.safe_dump(
        {
            "site": "cnaf",
            "host": "gw1",
            "underlay": {"interface": "wan0", "address": "198.51.100.1"},
            "tenants": tenants,
            "gateway": {"state": f"sqlite:///{directory}/gateway.sqlite"},
            "burst": {
                "lrms": {"type": "slurm", "munge_key": "/k", "slurm_conf": "/etc/slurm.conf"},
                "providers": {name: ec2 | {"security_groups": ["sg-1"]} for name in OFFERS},
                "pools": pools,
                "budgets": budgets,
                "quotas": {"t-quota": {"bari": {"core_hours": 1}}},
                "policy": policy,
            },
        },
        sort_keys=False,
    )


def site(directory: Path) -> SiteFile:
    path = directory / "site.yaml"
    path.write_text(site_text(directory))
    return sitefile.load(path)


# -- what is there ----------------------------------------------------------------------------


def lease_id(pool: str, number: int) -> str:
    return f"{sorted(POOLS).index(pool):04x}{number:04x}{'0' * 24}"


def lease(pool: str, number: int, state: LeaseState, **changes: Any) -> Lease:
    name = lease_id(pool, number)
    after_request: dict[str, Any] = {}
    if state is not S.WANTED:
        after_request = {"requested": AGO, "machine": f"i-{name[:8]}"}
    base = Lease(
        id=name,
        pool=pool,
        tenant=f"t-{pool}",
        network="farm",
        provider=POOLS[pool].get("provider", "aws"),
        type=POOLS[pool].get("types", ["c5.large"])[0],
        zone="a",
        cores=2,
        memory_mb=4096,
        price_per_hour=Decimal("0.10"),
        state=state,
        node=f"{pool}-{name[:8]}",
        address=f"10.9.{number}.1",
        gre_key=0x8000_0000 + int(name[:8], 16),
        wanted=AGO,
        reserved=Decimal("0.05"),
        **after_request,
    )
    return replace(base, **changes)


def failed(pool: str, number: int, kind: FailureClass, **changes: Any) -> Lease:
    """It failed a moment ago, and was returned."""
    just = NOW - timedelta(seconds=2 + number)
    why = Failure(kind, "seen in the lab")
    return lease(
        pool, number, S.FAILED, failure=why, failed=just, ended=just, reserved=Decimal(0), **changes
    )


JOINED = {"joined": AGO, "tunnelled": AGO, "enrolled": AGO, "booted": AGO}
LEASES = (
    # These two are proved: somebody has joined before.
    lease("open", 1, S.GONE, ended=NOW, reserved=Decimal(0), **JOINED),
    lease("pair", 1, S.GONE, ended=NOW, reserved=Decimal(0), **JOINED),
    lease("coming", 1, S.BOOTING, booted=NOW),
    lease("there", 1, S.JOINED, used=NOW, **JOINED),
    lease("tight", 1, S.JOINED, used=NOW, **JOINED),
    lease("cap", 1, S.TERMINATING, terminating=NOW, **JOINED),
    *(lease("tcap", n, S.TERMINATING, terminating=NOW, **JOINED) for n in range(1, 21)),
    failed("backoff", 1, FailureClass.NO_CAPACITY),
    lease(
        "slow", 1, S.WANTED, attempted=NOW, retry_after=NOW + timedelta(seconds=30),
        setback=Failure(FailureClass.THROTTLED, "RequestLimitExceeded"), launch_attempts=3,
    ),
    *(failed("paused", n, FailureClass.JOIN) for n in range(1, 4)),
    *(lease("proving", n, S.BOOTING, booted=NOW) for n in range(1, 4)),
    # One of each state, for `explain LEASE`.
    lease("zoo", 1, S.REQUESTED),
    lease("zoo", 2, S.BOOTING, booted=NOW, underlay="203.0.113.9"),
    lease("zoo", 3, S.TUNNELLED, booted=AGO, tunnelled=NOW),
    lease("zoo", 4, S.JOINED, used=NOW, **JOINED),
    lease("zoo", 5, S.DRAINING, draining=AGO, stop_reason="idle since 9 min", **JOINED),
    lease("zoo", 6, S.LEAVING, draining=AGO, left=AGO, stop_reason="operator: disk", **JOINED),
    lease("zoo", 7, S.TERMINATING, terminating=NOW, stop_reason="idle since 9 min", **JOINED),
    lease("zoo", 8, S.GONE, ended=NOW, reserved=Decimal(0), cost=Decimal("0.02"), **JOINED),
    failed("zoo", 9, FailureClass.LOST),
    lease("over", 1, S.DRAINING, draining=NOW, reserved=Decimal("0.02"), **JOINED),
)  # fmt: skip
ON_NODE = {"r-zoo-5": ("zoo", 5), "r-over-1": ("over", 1)}  # jobs on borrowed nodes


def stored(pool: str, number: int) -> Lease:
    return next(one for one in LEASES if one.id == lease_id(pool, number))


def nodes() -> tuple[Node, ...]:
    local = tuple(
        Node(
            f"wn-{name}",
            NodeState.IDLE if name == "soon" else NodeState.ALLOCATED,
            256 if name == "soon" else 4,
            0 if name == "soon" else 4,
            65_536,
            "10.9.9.9" if name == "noaddr" else "",  # somebody was given the pool's only address
            partitions=(f"q-{name}",),
        )
        for name in POOLS
    )
    seen = [
        ("there", 1, 0),
        ("tight", 1, 0),
        ("zoo", 4, 0),
        ("zoo", 5, 1),
        ("zoo", 6, 0),
        ("over", 1, 1),
    ]
    borrowed = []
    for pool, number, busy in seen:
        one = stored(pool, number)
        leaves = {S.DRAINING: NodeState.DRAINING, S.LEAVING: NodeState.DRAINED}
        state = leaves.get(one.state, NodeState.IDLE)
        borrowed.append(
            Node(one.node, state, 2, busy, 3800, one.address, (f"b-{pool}",), (f"b-{pool}",))
        )
    return (*local, *borrowed)


def machines(provider: str) -> list[Machine]:
    alive = {S.REQUESTED: MachineState.PENDING, S.TERMINATING: MachineState.STOPPING}
    return [
        Machine(
            one.machine, provider, one.id, alive.get(one.state, MachineState.RUNNING), one.type,
            "a", "10.20.1.5", "203.0.113.9", AGO,
        )
        for one in LEASES
        if one.living and one.machine and one.provider == provider
    ]  # fmt: skip


class Provider:
    def __init__(self, name: str) -> None:
        self.name = name

    def offers(self) -> list[Offer]:
        return OFFERS[self.name]

    def machines(self) -> list[Machine]:
        if self.name == "mute":
            raise ProviderError(FailureClass.CONFIG, "its credentials expired")
        return machines(self.name)


# -- the queue --------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """All that a decision is made of."""

    facts: Facts
    pools: tuple[Pool, ...]
    policy: Policy

    def with_job(self, job_id: str, **changes: Any) -> World:
        assert self.facts.farm is not None
        jobs = tuple(
            replace(one, **changes) if one.id == job_id else one for one in self.facts.farm.jobs
        )
        return self.with_facts(farm=replace(self.facts.farm, jobs=jobs))

    def with_facts(self, **changes: Any) -> World:
        return replace(self, facts=replace(self.facts, **changes))

    def with_pool(self, name: str, **changes: Any) -> World:
        pools = (replace(p, **changes) if p.name == name else p for p in self.pools)
        return replace(self, pools=tuple(pools))

    def with_policy(self, **changes: Any) -> World:
        return replace(self, policy=replace(self.policy, **changes))

    def with_budget(self, account: str, **changes: Any) -> World:
        budgets = dict(self.facts.budgets)
        budgets[account] = replace(budgets[account], **changes)
        return self.with_facts(budgets=budgets)

    def with_offer(self, kind: str, **changes: Any) -> World:
        one = self.facts.providers["aws"]
        offers = tuple(replace(o, **changes) if o.type == kind else o for o in one.offers)
        providers = {**self.facts.providers, "aws": replace(one, offers=offers)}
        return self.with_facts(providers=providers)

    def with_lease(self, pool: str, number: int, **changes: Any) -> World:
        leases = tuple(
            replace(one, **changes) if one.id == lease_id(pool, number) else one
            for one in self.facts.leases
        )
        return self.with_facts(leases=leases)

    def without_leases(self, pool: str) -> World:
        return self.with_facts(leases=tuple(le for le in self.facts.leases if le.pool != pool))

    def with_node(self, name: str, **changes: Any) -> World:
        assert self.facts.farm is not None
        found = tuple(replace(n, **changes) if n.name == name else n for n in self.facts.farm.nodes)
        return self.with_facts(farm=replace(self.facts.farm, nodes=found))

    def with_machine(self, pool: str, number: int, **changes: Any) -> World:
        one = self.facts.providers["aws"]
        wanted = lease_id(pool, number)
        listed = (replace(m, **changes) if m.lease_id == wanted else m for m in one.machines or ())
        providers = {**self.facts.providers, "aws": replace(one, machines=tuple(listed))}
        return self.with_facts(providers=providers)

    def with_link(self, pool: str, number: int) -> World:
        up = LinkHealth(up=True, since=NOW, rx_packets=9)
        return self.with_facts(links={**self.facts.links, lease_id(pool, number): up})

    def with_new_node(self, pool: str, number: int) -> World:
        assert self.facts.farm is not None
        one = stored(pool, number)
        node = Node(one.node, NodeState.IDLE, 2, 0, 3800, one.address, (f"b-{pool}",))
        found = (*self.facts.farm.nodes, node)
        return self.with_facts(farm=replace(self.facts.farm, nodes=found))

    def without_node(self, pool: str, number: int) -> World:
        assert self.facts.farm is not None
        name = stored(pool, number).node
        found = tuple(node for node in self.facts.farm.nodes if node.name != name)
        return self.with_facts(farm=replace(self.facts.farm, nodes=found))

    def with_idle(self, pool: str, number: int) -> World:
        name = stored(pool, number).node
        return self.with_node(name, state=NodeState.DRAINED, allocated_cores=0)

    def without_job(self, job_id: str) -> World:
        assert self.facts.farm is not None
        jobs = tuple(one for one in self.facts.farm.jobs if one.id != job_id)
        return self.with_facts(farm=replace(self.facts.farm, jobs=jobs))


Cure = Callable[[World, str], World]  # the world and a job's id -> the same, but for one input


@dataclass(frozen=True)
class Kind:
    """Jobs alike. `says` is in the answer's sentence: the number, or the word, that decided.
    `shows` names inputs that must be told."""

    code: str
    pool: str
    count: int
    says: str
    shows: tuple[str, ...]
    cure: Cure
    job: Mapping[str, Any] = field(default_factory=dict)


def job(number: int, kind: Kind) -> Job:
    base = Job(
        id=str(5000 + number),
        user="alice",
        account="cms",
        state=JobState.PENDING,
        partitions=(f"q-{kind.pool}",),
        cores=1 + number % 2,
        nodes=1,
        memory_mb=100 * (1 + number % 7),
        time_limit=timedelta(minutes=10 + number % 50),
        submitted=NOW - timedelta(minutes=5 + number % 60),
        reason="Resources",
        name="reco",
    )
    return replace(base, **kind.job)


def running() -> list[Job]:
    """What fills the local nodes, and works on borrowed ones."""
    base = Job(
        "r",
        "carol",
        "cms",
        JobState.RUNNING,
        ("x",),
        4,
        1,
        100,
        timedelta(hours=9),
        AGO,
        started=AGO,
    )
    local = [
        replace(base, id=f"r-{name}", partitions=(f"q-{name}",), node_names=(f"wn-{name}",))
        for name in POOLS
        if name != "soon"
    ]
    remote = [
        replace(base, id=name, cores=1, node_names=(stored(*of).node,))
        for name, of in ON_NODE.items()
    ]
    return [*local, *remote]


def farm(jobs: list[Job]) -> Farm:
    return Farm(NOW, (*jobs, *running()), nodes())

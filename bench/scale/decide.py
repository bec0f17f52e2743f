"""The decision: 100,000 queued jobs, 2,000 leases, 20 offers; and smaller ones, for the growth.

Jobs of 200 users in 20 accounts with sizes, limits and ages as queues have them; five pools of
five tenants at two providers. Each size is measured in a process of its own, for its memory.
"""

from __future__ import annotations

import gc
import json
import math
import random
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from bench.scale import spread
from burst.actions import Decision
from burst.decide import decide
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

NOW = datetime(2024, 1, 1, tzinfo=UTC)
JOBS, LEASES, OFFERS = 100_000, 2_000, 20
SHARES = (0.125, 0.25, 0.5, 1.0)  # of all of it: the growth is fitted through these
# Words and numbers that many jobs share are one object each, as the reader of Slurm's answers has
# them (burst/lrms/slurm_records.py).
_LIMITS = tuple(timedelta(minutes=m) for m in (5, 10, 30, 60, 120, 240, 720, 1440))
_USERS = tuple(f"user{i}" for i in range(200))
_ACCOUNTS = tuple(f"acct{i}" for i in range(20))
_MEMORY = {cores: 2048 * cores for cores in (1, 2, 4, 8, 16, 32)}
_TENANTS = 5
_REPEATS = 7


def facts(jobs: int, leases: int, offers: int, seed: int = 1) -> tuple[Facts, list[Pool]]:
    """A big site at a busy moment; leases are joined and half busy."""
    rng = random.Random(seed)
    pools = [_pool(number, leases) for number in range(_TENANTS)]
    held = [_lease(number, pools) for number in range(leases)]
    local = [
        Node(f"wn{i}", NodeState.ALLOCATED, 64, 64, 262_144, partitions=("batch",))
        for i in range(max(leases // 4, 1))
    ]
    running = [_job(rng, 10**6 + i, (node.name,)) for i, node in enumerate(local)]
    nodes, busy = [], []
    for number, lease in enumerate(held):
        used = lease.cores if number % 2 else 0
        state = NodeState.ALLOCATED if used else NodeState.IDLE
        partition = next(pool.partition for pool in pools if pool.name == lease.pool)
        nodes.append(
            Node(lease.node, state, lease.cores, used, 60_000, lease.address, (), (partition,))
        )
        if used:
            busy.append(_job(rng, 2 * 10**6 + number, (lease.node,)))
    queue = [_job(rng, number, ()) for number in range(jobs)]
    machines = {
        name: tuple(_machine(lease) for lease in held if lease.provider == name)
        for name in ("aws", "partner")
    }
    providers = {
        name: ProviderFacts(name, _offers(name, offers // 2), machines[name]) for name in machines
    }
    budgets = {
        pool.tenant: Budget(pool.tenant, Decimal(10**6), Decimal(0), Decimal(1000))
        for pool in pools
    }
    farm = Farm(NOW, (*running, *busy, *queue), (*local, *nodes))
    up = LinkHealth(up=True, since=NOW - timedelta(hours=1))
    seen = Facts(
        now=NOW,
        farm=farm,
        leases=tuple(held),
        providers=providers,
        links={lease.id: up for lease in held},
        enrolled={lease.id: NOW - timedelta(hours=1) for lease in held},
        budgets=budgets,
        watching_since=NOW - timedelta(days=1),
    )
    return seen, pools


def _pool(number: int, leases: int) -> Pool:
    return Pool(
        name=f"pool{number}",
        tenant=f"t{number}",
        network="farm",
        provider="partner" if number % 2 else "aws",
        partition=f"burst{number}",
        from_partitions=("batch",),
        accounts=tuple(f"acct{i}" for i in range(number, 20, _TENANTS)),
        max_machines=leases // _TENANTS + 50,
        addresses=tuple(f"10.{number}.{i // 250}.{i % 250 + 1}" for i in range(leases)),
        max_nodes=8,
    )


def _lease(number: int, pools: list[Pool]) -> Lease:
    pool = pools[number % len(pools)]
    then = NOW - timedelta(hours=1)
    name = f"{number:08x}{number:024x}"
    used = bool(number % 2)
    return Lease(
        id=name,
        pool=pool.name,
        tenant=pool.tenant,
        network=pool.network,
        provider=pool.provider,
        type="type3",
        zone="a",
        cores=16,
        memory_mb=65_536,
        price_per_hour=Decimal("0.80"),
        state=LeaseState.JOINED,
        node=f"{pool.name}-{name[:8]}",
        address=pool.addresses[number // len(pools)],
        gre_key=2**31 + number,
        wanted=then,
        requested=then,
        booted=then,
        tunnelled=then,
        enrolled=then,
        joined=then,
        machine=f"i-{number:x}",
        underlay="198.51.100.7",
        reserved=Decimal(10),
        launch_attempts=1,
        used=then if used else None,
        idle_since=None if used else NOW - timedelta(minutes=1),
    )


def _machine(lease: Lease) -> Machine:
    return Machine(
        lease.machine,
        lease.provider,
        lease.id,
        MachineState.RUNNING,
        lease.type,
        "a",
        "10.20.1.5",
        "198.51.100.7",
        lease.requested,
    )


def _offers(provider: str, count_: int) -> tuple[Offer, ...]:
    return tuple(
        Offer(provider, f"type{i}", "a", 2 << (i % 6), 4096 << (i % 6), Decimal(2 << (i % 6)) / 20)
        for i in range(count_)
    )


def _job(rng: random.Random, number: int, on: tuple[str, ...]) -> Job:
    cores = 1 << rng.randrange(6)
    waits = timedelta(seconds=rng.randrange(90, 86_400))
    return Job(
        id=str(number),
        user=_USERS[rng.randrange(200)],
        account=_ACCOUNTS[rng.randrange(20)],
        state=JobState.RUNNING if on else JobState.PENDING,
        partitions=("batch",),
        cores=16 if on else cores,
        nodes=2 if cores == 32 and not on else 1,
        memory_mb=_MEMORY[cores],
        time_limit=rng.choice(_LIMITS),
        submitted=NOW - waits,
        started=NOW - waits / 2 if on else None,
        node_names=on,
        reason="" if on else rng.choice(("Priority", "Priority", "Resources", "Dependency")),
    )


def one(jobs: int, leases: int, offers: int) -> dict[str, Any]:
    """Seconds of one decision, by the clock and of this process alone, and the most memory the
    process ever had: the medians of a few, and the least and most."""
    seen, pools = facts(jobs, leases, offers)
    ids = count(10**6)
    walls: list[float] = []
    cpus: list[float] = []
    actions, reasons = 0, 0
    found: Decision | None
    for _ in range(_REPEATS):
        found = None  # its end is not part of the next
        gc.collect()
        begin, worked = time.perf_counter(), time.process_time()
        found = decide(seen, pools, Policy(), lambda: f"{next(ids):08x}{'0' * 24}")
        cpus.append(time.process_time() - worked)
        walls.append(time.perf_counter() - begin)
        actions, reasons = len(found.actions), len(found.reasons)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "jobs": jobs,
        "leases": leases,
        "offers": offers,
        "seconds": spread.middle(walls),
        "seconds_spread": spread.ends(walls),
        "cpu_seconds": spread.middle(cpus),
        "cpu_seconds_spread": spread.ends(cpus),
        "rss_mb": peak,
        "actions": actions,
        "reasons": reasons,
    }


def measure(share: float = 1.0) -> dict[str, Any]:
    """`decide_s`, `decide_rss_mb`, `growth_exponent`, and the measurements behind them."""
    sizes = []
    for part in SHARES:
        jobs, leases = int(JOBS * share * part), int(LEASES * share * part)
        sizes.append(_apart(jobs, leases, OFFERS))
    largest = sizes[-1]
    return {
        "decide_s": round(largest["seconds"], 3),
        "decide_cpu_s": round(largest["cpu_seconds"], 3),
        "decide_rss_mb": round(largest["rss_mb"], 1),
        "growth_exponent": round(exponent([(s["jobs"], s["cpu_seconds"]) for s in sizes]), 3),
        "decide_sizes": sizes,
    }


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of seconds over jobs on logarithmic scales, by least squares."""
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(y) for _, y in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return above / sum((a - x) ** 2 for a in xs)


def _apart(jobs: int, leases: int, offers: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.scale.decide", str(jobs), str(leases), str(offers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one(*(int(word) for word in sys.argv[1:4]))) + "\n")

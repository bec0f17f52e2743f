"""The made-up site: two tenants with a pool each, a cloud with two types, a small farm.

The policy's times are some ten times shorter than a real cloud's, and so are the machines'.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from burst.model import Policy, Pool

EPOCH = datetime(2024, 1, 1, 12, tzinfo=UTC)
BATCH = "batch"
LIMIT = timedelta(minutes=4)  # of every job
SLURMD_TIMEOUT = timedelta(seconds=30)  # slurm.conf(5): then a silent node is DOWN
HEARTBEAT = timedelta(seconds=15)
WATCHDOG = timedelta(minutes=4)
PRICES = {"small": Decimal("0.60"), "large": Decimal("1.20")}
CORES = {"small": 2, "large": 4}
MEMORY = {"small": 4096, "large": 8192}

POLICY = Policy(
    min_job_age=timedelta(seconds=5),
    expected_start_cost=timedelta(seconds=60),
    margin=timedelta(seconds=10),
    idle_release=timedelta(seconds=40),
    request_timeout=timedelta(seconds=60),
    boot_timeout=timedelta(seconds=120),
    tunnel_timeout=timedelta(seconds=60),
    join_timeout=timedelta(seconds=60),
    lost_timeout=timedelta(seconds=50),
    backoff_first=timedelta(seconds=5),
    backoff_limit=timedelta(seconds=60),
    failures_to_pause=2,
    pause=timedelta(minutes=5),
    reserve_hours=Decimal("0.1"),
    orphan_age=timedelta(seconds=60),
    return_time=timedelta(minutes=5),
    silence_timeout=timedelta(seconds=90),
)


def pool(tenant: str, net: int) -> Pool:
    return Pool(
        name=f"{tenant}-aws",
        tenant=tenant,
        network="farm",
        provider="aws",
        partition=f"burst-{tenant}",
        from_partitions=(BATCH,),
        accounts=(tenant,),
        types=("small", "large"),
        max_machines=4,
        addresses=tuple(f"10.{net}.0.{n}" for n in range(101, 107)),
    )


POOLS = (pool("cms", 9), pool("atlas", 8))

"""How long jobs would wait for the site's own nodes.

List scheduling (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969) of the queue in
its order onto the cores of the local nodes, each job for its full time limit. No job overtakes
another: an LRMS with backfilling does better, so the forecast is an upper bound for small jobs
behind a big one. Limits are all a batch system promises; a site whose limits are far above what
jobs use will see longer forecasts than waits.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from burst.model import Job

FOREVER = math.inf


def limit_of(job: Job, default: timedelta) -> timedelta:
    """The time the job may take; `default` if it has no limit."""
    return job.time_limit if job.time_limit is not None else default


def remaining(job: Job, now: datetime, default: timedelta) -> timedelta:
    """How much longer a running job may take. One that outlived the default may take as long
    again as it has run (Lindy's law); one past its limit is about to be ended."""
    elapsed = now - job.started if job.started is not None else timedelta(0)
    left = limit_of(job, default) - elapsed
    if left > timedelta(0):
        return left
    return timedelta(0) if job.time_limit is not None else max(elapsed, timedelta(0))


def local_waits(
    pending: Sequence[Job],
    running: Sequence[Job],
    cores: int,
    now: datetime,
    default: timedelta,
    exact_until: timedelta,
) -> list[float]:
    """Seconds each pending job would wait for `cores` local cores; `FOREVER` if it cannot start.

    `pending` in queue order. Exact up to `exact_until`; behind that only the order of magnitude
    matters, and the queue is taken as a fluid, which keeps 100,000 jobs cheap.
    """
    if cores <= 0:
        return [FOREVER] * len(pending)
    free_at = _release_times(running, cores, now, default)
    horizon = exact_until.total_seconds()
    waits: list[float] = []
    start = 0.0
    fluid = False
    for job in pending:
        wanted = max(job.cores, 1)
        if wanted > cores or job.nodes > 1:
            waits.append(FOREVER if wanted > cores else start)
            continue
        seconds = limit_of(job, default).total_seconds()
        if fluid:
            waits.append(start)
            start += wanted * seconds / cores
            continue
        for _ in range(wanted):
            start = max(start, heapq.heappop(free_at))
        for _ in range(wanted):
            heapq.heappush(free_at, start + seconds)
        waits.append(start)
        if start > horizon:
            fluid = True
    return waits


def _release_times(
    running: Sequence[Job], cores: int, now: datetime, default: timedelta
) -> list[float]:
    """When each local core becomes free, in seconds from now; a heap."""
    busy: list[float] = []
    for job in running:
        seconds = remaining(job, now, default).total_seconds()
        busy.extend([seconds] * max(job.cores, 1))
    if len(busy) > cores:  # shared or over-committed: the earliest of them decide
        busy = sorted(busy)[:cores]
    free_at = busy + [0.0] * (cores - len(busy))
    heapq.heapify(free_at)
    return free_at

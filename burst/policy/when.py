"""How long jobs would wait for the site's own nodes.

List scheduling (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969) of the queue in
its order onto the cores of the local nodes, each job for its time limit, or for the share of it
that its user's jobs are known to take (D. Tsafrir, Y. Etsion and D. Feitelson, "Backfilling using
system-generated predictions rather than user runtime estimates", IEEE TPDS 18(6), 2007). No job
overtakes another: an LRMS with backfilling does better, so the forecast is an upper bound for small
jobs behind a big one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
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


def expected_left(job: Job, now: datetime, default: timedelta, share: float) -> float:
    """Seconds that a running job will likely still take, never more than it may: the rest of what
    its user's jobs usually take; once past that, as long again as it has run."""
    may = remaining(job, now, default).total_seconds()
    if share >= 1.0 or job.started is None:
        return may
    elapsed = (now - job.started).total_seconds()
    usual = limit_of(job, default).total_seconds() * share
    return min(may, usual - elapsed if elapsed < usual else max(elapsed, 0.0))


def local_waits(
    pending: Sequence[Job],
    running: Sequence[Job],
    cores: int,
    now: datetime,
    default: timedelta,
    exact_until: timedelta,
    habits: Mapping[str, float] | None = None,
) -> list[float]:
    """Seconds each pending job would wait for `cores` local cores; `FOREVER` if it cannot start.

    `pending` in queue order. Exact up to `exact_until`; behind that only the order of magnitude
    matters, and the queue is taken as a fluid, which keeps 100,000 jobs cheap. `habits`: the share
    of their limits that a user's jobs take.
    """
    if cores <= 0:
        return [FOREVER] * len(pending)
    habits = habits or {}
    free_at = _release_times(running, cores, now, default, habits)
    horizon = exact_until.total_seconds()
    waits: list[float] = []
    start = 0.0
    otherwise = default.total_seconds()
    rest = iter(pending)
    for job in rest:
        wanted = job.cores or 1
        if wanted > cores:
            waits.append(FOREVER)
            continue
        limit = job.time_limit
        seconds = limit.total_seconds() if limit is not None else otherwise
        if habits:
            seconds *= habits.get(job.user, 1.0)
        start = max(start, _take(free_at, wanted))
        heapq.heappush(free_at, (start + seconds, wanted))
        waits.append(start)
        if start > horizon:
            break
    for job in rest:
        wanted = job.cores or 1
        if wanted > cores:
            waits.append(FOREVER)
            continue
        waits.append(start)
        limit = job.time_limit
        seconds = limit.total_seconds() if limit is not None else otherwise
        if habits:
            seconds *= habits.get(job.user, 1.0)
        start += wanted * seconds / cores
    return waits


def _take(free_at: list[tuple[float, int]], wanted: int) -> float:
    """Take so many cores, those free first; when the last of them is free."""
    when = 0.0
    while wanted > 0:
        when, some = heapq.heappop(free_at)
        if some > wanted:
            heapq.heappush(free_at, (when, some - wanted))
        wanted -= some
    return when


def _release_times(
    running: Sequence[Job],
    cores: int,
    now: datetime,
    default: timedelta,
    habits: Mapping[str, float],
) -> list[tuple[float, int]]:
    """When how many local cores become free, in seconds from now; a heap."""
    busy: list[tuple[float, int]] = []
    for job in running:
        seconds = expected_left(job, now, default, habits.get(job.user, 1.0))
        busy.append((seconds, max(job.cores, 1)))
    busy.sort()
    free_at: list[tuple[float, int]] = []
    rest = cores
    for seconds, some in busy:  # shared or over-committed: the earliest of them decide
        if rest <= 0:
            break
        free_at.append((seconds, min(some, rest)))
        rest -= some
    if rest > 0:
        free_at.append((0.0, rest))
    heapq.heapify(free_at)
    return free_at

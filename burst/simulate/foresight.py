"""What it costs one who knows the future to let nobody wait at all.

A schedule that could be carried out: each job starts when it is submitted, on the site's own cores
if they are free then, else on machines that were ordered in time to be ready at that instant. A
machine that stands empty is returned when the time that is paid for is over. Whoever has this much
money need not let any job wait; so where a policy spent more, the best that could be had for its
money is a slowdown of one, and a lower bound of one is not weak but exact.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from burst.simulate.model import MachineType, ProviderModel
from burst.simulate.swf import Trace


@dataclass(slots=True)
class _Machine:
    kind: MachineType
    ordered: float
    free: int
    empty: float = math.inf  # since when


def cost_of_no_wait(trace: Trace, provider: ProviderModel, *, cores: int | None = None) -> float:
    """In the currency of the prices; `cores`: of the local farm, those of the trace's machine
    unless given. Machines take the longest of their boot times to start."""
    kinds = sorted(provider.machines.values(), key=lambda kind: kind.cores)
    here, cost = cores or trace.cores, 0.0
    ends: list[tuple[float, int, int, list[_Machine], int]] = []  # when, whose, what is given back
    rented: list[_Machine] = []

    def until(now: float) -> None:
        nonlocal here, cost
        while ends and ends[0][0] <= now:
            when, _, local, machines, each = heapq.heappop(ends)
            here += local
            for machine in machines:
                machine.free += each
                if machine.free == machine.kind.cores:
                    machine.empty = when
        for machine in [one for one in rented if one.empty < math.inf]:
            paid = provider.charged_s(machine.empty - machine.ordered)
            if machine.ordered + paid <= now:
                rented.remove(machine)
                cost += float(machine.kind.price) * paid / 3600

    for ordinal, job in enumerate(trace.jobs):
        until(job.submit)
        end = job.submit + job.run
        if job.cores <= here:
            here -= job.cores
            heapq.heappush(ends, (end, ordinal, job.cores, [], 0))
            continue
        count = -(-job.cores // kinds[-1].cores)
        each = -(-job.cores // count)
        used = sorted((one for one in rented if one.free >= each), key=lambda one: one.free)[:count]
        while len(used) < count:
            kind = next(kind for kind in kinds if kind.cores >= each)
            used.append(_Machine(kind, job.submit - provider.boot_s[1], kind.cores))
            rented.append(used[-1])
        for machine in used:
            machine.free -= each
            machine.empty = math.inf
        heapq.heappush(ends, (end, ordinal, 0, used, each))
    until(math.inf)
    return cost

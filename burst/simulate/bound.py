"""A clairvoyant lower bound: what no policy can beat for its money, knowing the whole future.

Let each job either start on the site's own cores at some instant S at or after its submission, or
at once on borrowed cores that are there and paid only while it runs: no boot, no idling, no
rounding, no fragments. Put a price u(t) on a local core-second at each time and a price l on a
borrowed one. For *any* such prices, by weak duality, the sum over the jobs of

    min( bsld(0) + l x cores x run,
         min over S of bsld(S - submit) + cores x integral of u from S to S + run )

less local cores x integral of u, less l x the core-seconds that the money buys, is a lower bound
of the sum of bounded slowdowns of every schedule that spends no more (A. M. Geoffrion, "Lagrangean
relaxation for integer programming", 1974). Subgradient steps look for good prices (M. Held, P.
Wolfe and H. Crowder, 1974); however far they get, the bound holds. u is constant over each of many
equal pieces of time, so the inner minimum is at a break point of a piecewise linear function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burst.simulate.metrics import BOUND_S
from burst.simulate.swf import Trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PIECE_S = 1800.0
AHEAD = 48  # pieces a start is looked for; what waits longer counts as waiting just that long
STEPS = 200


class BoundMissing(Exception):  # noqa: N818 - numpy is missing, and that is all
    """The bound needs numpy."""


@dataclass(frozen=True, slots=True)
class Starts:
    """The instants at which a job may start at best, and what they cost whatever the prices."""

    slowdown: Any  # jobs x starts: bounded slowdown
    begin: Any  # jobs x starts: position in pieces of the start ...
    end: Any  # ... and of the end
    beyond: Any  # jobs: the slowdown of starting later than all of these


def lower_bound(
    trace: Trace, cost: float, core_hour: float, *, cores: int | None = None, steps: int = STEPS
) -> float:
    """The least mean bounded slowdown that `cost` can buy at `core_hour` for a borrowed core."""
    try:
        import numpy as np
    except ImportError:
        raise BoundMissing("the clairvoyant bound needs numpy: pip install numpy") from None

    here = float(cores or trace.cores)
    submit = np.array([job.submit for job in trace.jobs]) - trace.jobs[0].submit
    run = np.array([job.run for job in trace.jobs])
    width = np.array([float(job.cores) for job in trace.jobs])
    length = np.maximum(run, BOUND_S)
    best_slowdown = np.maximum(run / length, 1.0)
    area = width * run
    money = cost / core_hour * 3600 if core_hour > 0 else float(area.sum())
    pieces = int((submit[-1] + run.max()) / PIECE_S) + AHEAD + 2
    starts = _starts(np, submit, run, length, pieces)
    never_here = width > here

    prices: Floats = np.zeros(pieces)
    rent = 0.0
    scale = float(len(run)) / max(
        float(area.sum()), 1.0
    )  # one slowdown a job, spread over the work
    best = 0.0
    for step in range(steps):
        local, chosen = _cheapest(np, starts, prices, width)
        local = np.where(never_here, np.inf, local)
        borrowed = best_slowdown + rent * area
        value = float(np.minimum(local, borrowed).sum())
        value -= here * PIECE_S * float(prices.sum()) + rent * money
        best = max(best, value / len(run))
        is_local = local <= borrowed
        used = _usage(np, starts, chosen, is_local, width, pieces)
        size = 0.15 * scale / (1 + step) ** 0.5
        prices = np.maximum(prices + size * (used / (here * PIECE_S) - 1.0), 0.0)
        gone = float(area[~is_local].sum())
        rent = max(rent + size * (gone - money) / max(money, float(area.sum()) / 50), 0.0)
    return max(best, 1.0)


def _starts(np: Any, submit: Floats, run: Floats, length: Floats, pieces: int) -> Starts:
    first = np.floor(submit / PIECE_S) + 1
    edges = (first[:, None] + np.arange(AHEAD)) * PIECE_S  # starts at an edge of a piece ...
    ends = (np.floor((submit + run) / PIECE_S) + 1)[:, None] + np.arange(AHEAD)
    columns = [submit[:, None], edges, ends * PIECE_S - run[:, None]]  # ... or ends there
    columns.append((submit + np.maximum(BOUND_S - run, 0.0))[:, None])  # the bound's own kink
    start = np.maximum(np.concatenate(columns, axis=1), submit[:, None])
    wait = start - submit[:, None]
    slowdown = np.maximum((wait + run[:, None]) / length[:, None], 1.0)
    least = np.minimum(edges[:, -1], ends[:, -1] * PIECE_S - run) - submit
    beyond = np.maximum((least + run) / length, 1.0)
    top = float(pieces)
    begin = np.minimum(start / PIECE_S, top)
    end = np.minimum((start + run[:, None]) / PIECE_S, top)
    return Starts(slowdown, begin, end, beyond)


def _cheapest(np: Any, starts: Starts, prices: Floats, width: Floats) -> tuple[Floats, Any]:
    """Each job's least cost of starting here, and which start it is; -1 for one beyond."""
    knots = np.arange(len(prices) + 1, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(prices)]) * PIECE_S
    paid = np.interp(starts.end, knots, total) - np.interp(starts.begin, knots, total)
    cost = starts.slowdown + width[:, None] * paid
    chosen = cost.argmin(axis=1)
    local = cost[np.arange(len(chosen)), chosen]
    late = starts.beyond < local
    least: Floats = np.where(late, starts.beyond, local)
    return least, np.where(late, -1, chosen)


def _usage(
    np: Any, starts: Starts, chosen: Any, is_local: Any, width: Floats, pieces: int
) -> Floats:
    """Local core-seconds in each piece of time."""
    rows = np.flatnonzero(is_local & (chosen >= 0))
    begin, end = starts.begin[rows, chosen[rows]], starts.end[rows, chosen[rows]]
    # The derivative of usage over time, as steps that are summed up twice.
    rate, share = np.zeros(pieces + 2), np.zeros(pieces + 2)
    for position, sign in ((begin, 1.0), (end, -1.0)):
        whole = np.floor(position).astype(int)
        np.add.at(rate, whole + 1, sign * width[rows])
        np.add.at(share, whole, sign * width[rows] * (1.0 - (position - whole)))
    used = np.cumsum(rate)[:pieces] + share[:pieces]
    spent: Floats = used * PIECE_S
    return spent

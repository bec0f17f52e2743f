"""Which of the waiting jobs deserve a borrowed machine most, and whether they deserve it at all.

*Who first.* A job that waits gains most, for what it costs, if it is short and small: an hour of
waiting is sixty times the length of a one-minute job and a twenty-fourth of a day's. So jobs are
ordered by their response ratio for each core-second they will cost, (age + wait) / length / (cores
x length). The ratio grows with age, so none is passed over for ever (P. Brinch Hansen, "An analysis
of response ratio scheduling", IFIP Congress 1971); among jobs alike the oldest is first. It is the
greedy rule for a knapsack (G. Dantzig, "Discrete-variable extremum problems", 1957) filled with
slowdown saved, by its price.

*Whether at all.* `Policy.min_value` says what slowdown may cost the site. Spending the same
everywhere at the margin is what makes a total smallest for its cost (Lagrange); one number says it
for short and long jobs, few and many.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from operator import attrgetter

from burst.model import Job, Policy
from burst.policy.demand import SHORTEST_S, Candidate


def by_urgency(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The most deserving first; of equals, the first in the queue."""
    return sorted(candidates, key=attrgetter("urgency"), reverse=True)


def urgency(job: Job, seconds: float, age: float) -> float:
    """The response ratio so far, for each core-second. `age`: seconds since it was submitted."""
    if seconds < SHORTEST_S:
        seconds = SHORTEST_S
    return (age + seconds) / (seconds * seconds * (job.cores or 1))


def pays(candidate: Candidate, core_hour: float, start_cost: float, policy: Policy) -> bool:
    """Whether it deserves what it takes of a machine that is there anyway."""
    least = float(policy.min_value)
    if least <= 0 or core_hour <= 0:
        return True
    cores = max(candidate.job.cores, 1)
    cost = core_hour * cores * candidate.seconds / 3600
    return candidate.gain(start_cost) >= least * cost


def value(
    candidates: Iterable[Candidate],
    hour: float,
    machines: int,
    policy: Policy,
    billing: timedelta,
) -> float:
    """What renting `machines` for these jobs gains for each unit of money: with their start, the
    longest of the jobs, and their idling at the end, in whole pieces of `billing`."""
    start_cost = policy.expected_start_cost.total_seconds()
    gain, longest = 0.0, 0.0
    for candidate in candidates:
        gain += candidate.gain(start_cost)
        longest = max(longest, candidate.seconds)
    piece = billing.total_seconds()
    held = start_cost + longest + policy.idle_release.total_seconds()
    if piece > 120:
        held = -(-(start_cost + longest) // piece) * piece
    cost = hour * machines * held / 3600
    return gain / cost if cost > 0 else float("inf")

"""Policies at equal cost.

Each other policy has knobs (a cap on machines, thresholds), so it is a curve: what slowdown it has
for what money. A site can also switch between two settings, or to "never", part of the time, and
get what lies between. So a policy's slowdown at a cost is taken from the lower convex hull of all
its points and of "never", at no more than that cost: each gets the best of all the settings tried
and of their mixtures, and none is asked to spend more than it likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from bench.policy.experiment import Point


@dataclass(frozen=True, slots=True)
class Spent:
    """One possible outcome of a policy: what was spent, and what for."""

    cost: float
    bsld: float
    mean_wait: float


def hull(points: Iterable[Spent]) -> list[Spent]:
    """The lower convex hull, by cost, falling: spending more and getting less is no option."""
    found: list[Spent] = []
    for point in sorted(points, key=lambda one: (one.cost, one.bsld)):
        if found and point.bsld >= found[-1].bsld:
            continue
        while len(found) > 1 and _above(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    return found


def _above(left: Spent, middle: Spent, right: Spent) -> bool:
    """Whether `middle` is on or above the line from `left` to `right`."""
    share = (middle.cost - left.cost) / (right.cost - left.cost)
    return middle.bsld >= left.bsld + share * (right.bsld - left.bsld)


def at_cost(points: Iterable[Spent], cost: float) -> Spent:
    """The best that can be had for `cost`, mixing two settings where that is better."""
    line = hull(points)
    if not line or cost <= line[0].cost:
        return line[0]
    for left, right in pairwise(line):
        if left.cost <= cost <= right.cost:
            share = (cost - left.cost) / (right.cost - left.cost)
            return Spent(
                cost,
                left.bsld + share * (right.bsld - left.bsld),
                left.mean_wait + share * (right.mean_wait - left.mean_wait),
            )
    return line[-1]


def at_its_best(points: Iterable[Spent]) -> Spent:
    """Where it has its lowest slowdown, at the least cost of those: it asks for no more money."""
    return hull(points)[-1]


def spent(points: Iterable[Point], policy: str) -> list[Spent]:
    """The outcomes of one policy, with "never" among them."""
    return [
        Spent(point.cost, point.outcome.bsld, point.outcome.mean_wait)
        for point in points
        if point.task.policy in (policy, "never")
    ]

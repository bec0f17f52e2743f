"""What a simulated run comes to: waits, slowdowns, money, and how well supply followed demand.

Bounded slowdown: (wait + run) / max(run, 10 s), at least 1 (Feitelson and others, "Theory and
practice in parallel job scheduling", JSSPP 1997). Elasticity: the metrics of SPEC's Cloud group
(Herbst and others, "Ready for rain? A view from SPEC Research on the future of cloud metrics",
SPEC-RG-2016-01), for borrowed cores:

- accuracy under, over: how many cores were missing, or too many, as a share of those demanded,
  averaged over time;
- timeshare under, over: the share of time in which some were missing, or too many;
- adaptations: launches and returns an hour.

Demand is what runs on borrowed cores and what waits beyond the free local ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from burst.simulate.site import Rented, Site, Work
from burst.simulate.swf import Trace

BOUND_S = 10.0


@dataclass(frozen=True, slots=True)
class Elasticity:
    under: float
    over: float
    time_under: float
    time_over: float
    adaptations_per_hour: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Times in seconds, money in the currency of the prices."""

    policy: str
    trace: str
    jobs: int
    mean_wait: float
    median_wait: float
    p95_wait: float
    bsld: float
    cost: float
    machines: int
    machine_hours: float
    borrowed_jobs: int
    requeues: int
    elasticity: Elasticity
    makespan: float
    questions: int
    bills: tuple[tuple[float, float], ...]  # of each machine: its price an hour, seconds held

    def cost_at(self, billing_s: float, minimum_s: float) -> float:
        """What the same machines would have cost if time were sold in such pieces."""
        total = 0.0
        for price, held in self.bills:
            pieces = -(-max(held, minimum_s) // billing_s)
            total += price * pieces * billing_s / 3600
        return total

    def row(self) -> dict[str, object]:
        """Flat, for JSON and CSV."""
        aside = ("elasticity", "bills")
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in aside}
        return flat | {f.name: getattr(self.elasticity, f.name) for f in fields(Elasticity)}


def bounded_slowdown(wait: float, run: float) -> float:
    return max((wait + run) / max(run, BOUND_S), 1.0)


class Meter:
    """Sums over one run; also the curve of demand and supply, thinned, for a plot."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._since = 0.0
        self._area_under = self._area_over = 0.0
        self._time_under = self._time_over = self._time = 0.0
        self._adaptations = 0
        self.waits: list[float] = []
        self._slowdowns = 0.0
        self.cost = 0.0
        self._bills: list[tuple[float, float]] = []
        self._borrowed = self._requeues = 0
        self.last_end = 0.0
        self.curve: list[tuple[float, int, int]] = []  # time, cores demanded, cores supplied

    def until(self, now: float) -> None:
        """Before anything changes at `now`: account for the time since the last change."""
        span = now - self._since
        if span <= 0:
            return
        site = self._site
        demand = site.busy_cores + max(site.waiting_cores - site.free, 0)
        supply = site.open_cores
        if not self.curve or self.curve[-1][1:] != (demand, supply):
            self.curve.append((self._since, demand, supply))
        self._since = now
        self._time += span
        if demand > supply:
            self._time_under += span
            self._area_under += span * (demand - supply) / demand
        elif supply > demand:
            self._time_over += span
            self._area_over += span * (supply - demand) / max(demand, 1)

    def ended(self, work: Work, now: float) -> None:
        wait = work.start - work.submit
        self.waits.append(wait)
        self._slowdowns += bounded_slowdown(wait, work.run)
        self._borrowed += work.place == "borrowed"
        self._requeues += work.requeues
        self.last_end = now

    def launched(self, _now: float) -> None:
        self._adaptations += 1

    def returned(self, machine: Rented, now: float, charged_s: float) -> None:
        self._adaptations += 1
        self._bills.append((machine.price, now - machine.launched))
        self.cost += machine.price * charged_s / 3600

    def outcome(self, policy: str, trace: Trace, questions: int) -> Outcome:
        waits = sorted(self.waits)
        count = max(len(waits), 1)
        time = max(self._time, 1.0)
        return Outcome(
            policy=policy,
            trace=trace.name,
            jobs=len(waits),
            mean_wait=sum(waits) / count,
            median_wait=waits[len(waits) // 2] if waits else 0.0,
            p95_wait=waits[int(len(waits) * 0.95)] if waits else 0.0,
            bsld=self._slowdowns / count,
            cost=self.cost,
            machines=len(self._bills),
            machine_hours=sum(held for _, held in self._bills) / 3600,
            borrowed_jobs=self._borrowed,
            requeues=self._requeues,
            elasticity=Elasticity(
                self._area_under / time,
                self._area_over / time,
                self._time_under / time,
                self._time_over / time,
                self._adaptations / time * 3600,
            ),
            makespan=self.last_end - (trace.jobs[0].submit if trace.jobs else 0.0),
            questions=questions,
            bills=tuple(self._bills),
        )

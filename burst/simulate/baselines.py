"""The policies beside ours. All of them let every waiting job start on their machines, in order.

Each gets what a site would give it: a cap on machines. `LinearController` is COBalD's own class
(https://cobald.readthedocs.io), asked as its daemon would; install `cobald` to have it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from burst.simulate.engine import Offered, Run
from burst.simulate.site import Rented


class Never:
    """Borrow nothing."""

    name = "never"

    def begin(self, run: Run) -> None:
        """Nothing to prepare."""

    def act(self, run: Run) -> float:
        return math.inf


class OnePerJob:
    """A machine for each job that waits (or as many as it has nodes), the smallest it fits on, for
    itself alone; returned when it is idle."""

    def __init__(self, cap: int = 1_000_000) -> None:
        self.name = "one-per-job"
        self.cap = cap

    def begin(self, run: Run) -> None:
        run.site.everybody_routed = run.site.whole_machines = True

    def act(self, run: Run) -> float:
        wanted: Counter[int] = Counter()  # machines by size, for the first in the queue
        room = self.cap
        sizes = sorted({offer.machine.cores for offer in run.offers})
        for work in run.site.queue.values():
            if work.nodes > room:
                continue
            room -= work.nodes
            wanted[next(size for size in sizes if size >= work.per_node)] += work.nodes
            if not room:
                break
        for size in sizes:
            free = [m for m in run.machines.values() if m.cores == size and not m.works]
            missing = min(wanted[size] - len(free), self.cap - len(run.machines))
            offers = [offer for offer in run.offers if offer.machine.cores == size]
            for _ in range(missing):
                if _launch(run, offers) is None:
                    break
            if wanted[size] < len(free):
                _return(run, [m for m in free if m.up], len(free) - wanted[size])
        return math.inf


class Utilisation:
    """Target tracking, as clouds' own autoscalers do it: so many cores that `target` of them are
    busy; it sees no queue."""

    def __init__(self, cap: int = 1_000_000, target: float = 0.8, cooldown: float = 300.0) -> None:
        self.name = "utilisation"
        self.cap, self.target, self.cooldown = cap, target, cooldown
        self._next = 0.0

    def begin(self, run: Run) -> None:
        run.site.everybody_routed = True

    def act(self, run: Run) -> float:
        if run.now < self._next:
            return self._next
        site = run.site
        node = max(run.offers, key=lambda offer: offer.machine.cores).machine.cores
        busy = site.cores - site.free + site.busy_cores
        wanted = busy / self.target - site.cores
        machines = min(max(math.ceil(wanted / node), 0), self.cap)
        living = [m for m in run.machines.values() if not m.draining]
        self._next = run.now + self.cooldown
        if machines > len(living):
            for _ in range(machines - len(living)):
                if _launch(run) is None:
                    break
        elif machines < len(living):
            idle = [m for m in living if m.up and not m.works]
            _return(run, idle, len(living) - machines)
        return self._next if run.machines or busy >= self.target * site.cores else math.inf


class _DronePool:
    """What COBalD's controller sees: cores that there are, that are wanted, that are in use."""

    def __init__(self, run: Run, cap_cores: float) -> None:
        self._run, self._cap = run, cap_cores
        self._demand = 0.0

    @property
    def demand(self) -> float:
        return self._demand

    @demand.setter
    def demand(self, value: float) -> None:
        self._demand = min(max(value, 0.0), self._cap)  # as its decorator Limiter does

    @property
    def supply(self) -> float:
        return float(self._run.site.open_cores)

    def _share(self, of: Iterable[float]) -> float:
        shares = list(of)
        return sum(shares) / len(shares) if shares else 1.0  # as its FactoryPool says it

    @property
    def utilisation(self) -> float:
        up = (m for m in self._run.machines.values() if m.up and not m.draining)
        return self._share(1 - m.free / m.cores for m in up)

    @property
    def allocation(self) -> float:
        return self.utilisation


class LinearController:
    """COBalD's: demand falls or grows linearly with utilisation and allocation."""

    def __init__(
        self,
        cap: int = 1_000_000,
        low: float = 0.5,
        high: float = 0.5,
        rate: float = 1.0,
        interval: float = 60.0,
    ) -> None:
        self.name = "cobald-linear"
        self.cap, self.interval = cap, interval
        self._settings = {"low_utilisation": low, "high_allocation": high, "rate": rate}
        self._controller: Any = None
        self._pool: _DronePool | None = None
        self._next = 0.0

    def begin(self, run: Run) -> None:
        try:
            from cobald.controller.linear import LinearController as Cobald
        except ImportError:
            raise PolicyMissing("cobald-linear needs COBalD itself: pip install cobald") from None
        run.site.everybody_routed = True
        node = max(run.offers, key=lambda offer: offer.machine.cores).machine.cores
        self._pool = _DronePool(run, self.cap * float(node))
        self._controller = Cobald(self._pool, interval=self.interval, **self._settings)

    def act(self, run: Run) -> float:
        assert self._pool is not None
        if run.now < self._next:
            return self._next
        self._controller.regulate(self.interval)
        self._next = run.now + self.interval
        living = [m for m in run.machines.values() if not m.draining]
        ordered = sum(m.cores for m in living)
        while ordered < self._pool.demand:  # as its FactoryPool grows, and below, as it shrinks
            machine = _launch(run)
            if machine is None:
                break
            ordered += machine.cores
        for machine in sorted(living, key=lambda m: m.cores - m.free):
            if ordered - machine.cores < self._pool.demand or not machine.up or machine.works:
                continue
            ordered -= machine.cores
            _return(run, [machine], 1)
        return self._next


class PolicyMissing(Exception):  # noqa: N818 - it is missing, and that is all
    """A policy's package is not installed."""


def _launch(run: Run, offers: Sequence[Offered] = ()) -> Rented | None:
    """The cheapest machine a core, and of equals the largest: any job fits on those."""
    for offer in sorted(offers or run.offers, key=_by_price):
        machine = run.launch(offer)
        if machine is not None:
            return machine
    return None


def _by_price(offer: Offered) -> tuple[float, int]:
    return offer.price / offer.machine.cores, -offer.machine.cores


def _return(run: Run, idle: list[Rented], most: int) -> None:
    """Those idle for longest first."""
    for machine in sorted(idle, key=lambda m: m.idle_since or 0.0)[:most]:
        run.end(machine)

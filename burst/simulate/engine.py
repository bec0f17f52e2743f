"""Discrete events: jobs arrive and end, machines come and go, and a policy is asked when something
has changed. Time is a float of seconds; nothing but the seed is random.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from burst.simulate.metrics import Meter, Outcome
from burst.simulate.model import MachineType, ProviderModel
from burst.simulate.site import Rented, Site, Work
from burst.simulate.swf import Trace

AFTER_S = 86_400.0  # what a policy still holds so long after the last job is taken from it
_END, _READY, _FAILS = 0, 1, 2


class PolicyDriver(Protocol):
    """A policy in the simulator."""

    name: str

    def begin(self, run: Run) -> None:
        """Once, before the first job."""

    def act(self, run: Run) -> float:
        """Look at the site, order and return machines. The instant at which to be asked again even
        if nothing changes; infinite: not before something does."""


@dataclass(frozen=True, slots=True)
class Offered:
    """One type of one provider."""

    provider: str
    type: str
    machine: MachineType

    @property
    def price(self) -> float:
        return float(self.machine.price)


class Run:
    """One trace, one policy, one set of providers."""

    def __init__(
        self,
        trace: Trace,
        policy: PolicyDriver,
        providers: Mapping[str, ProviderModel],
        *,
        interval: float = 30.0,
        seed: int = 1,
        cores: int | None = None,
    ) -> None:
        """`interval`: the least seconds between two questions to the policy; `cores`: of the local
        farm, those of the trace's machine unless given."""
        self.trace, self.policy, self.providers = trace, policy, providers
        self.interval = interval
        self.offers = [
            Offered(name, kind, machine)
            for name, provider in sorted(providers.items())
            for kind, machine in sorted(provider.machines.items())
        ]
        self.node_cores = max((offer.machine.cores for offer in self.offers), default=1)
        self.site = Site(cores or trace.cores, self._started)
        self.works = [Work(job, i, self.node_cores) for i, job in enumerate(trace.jobs)]
        self.machines: dict[str, Rented] = {}  # those that cost money
        self.held: dict[tuple[str, str], int] = {}  # machines by provider and type
        self.changed = True
        self.meter = Meter(self.site)
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, int, Work | Rented, int]] = []
        self._count = 0
        self.questions = 0

    @property
    def now(self) -> float:
        return self.site.now

    def outcome(self) -> Outcome:
        self.policy.begin(self)
        self._loop()
        for machine in list(self.machines.values()):
            self.end(machine)
        return self.meter.outcome(self.policy.name, self.trace, self.questions)

    def _loop(self) -> None:
        works, site, events = self.works, self.site, self._events
        arrived, last, wake = 0, -math.inf, math.inf
        while True:
            asked_at = min(last + self.interval, math.inf) if self.changed else wake
            asked_at = max(asked_at, site.now)
            arrival = works[arrived].submit if arrived < len(works) else math.inf
            event = events[0][0] if events else math.inf
            now = min(asked_at, arrival, event)
            if now == math.inf or self._over(arrived, now):
                return
            self.meter.until(now)
            site.now = now
            while arrived < len(works) and works[arrived].submit <= now:
                site.submit(works[arrived])
                arrived += 1
                self.changed = True
            while events and events[0][0] <= now:
                self._happen(heapq.heappop(events))
                self.changed = True
            site.start_jobs()
            if (self.changed and now >= last + self.interval) or now >= wake:
                self.changed = False
                wake = max(self.policy.act(self), now + min(self.interval, 1.0))
                last = now
                self.questions += 1
                site.start_jobs()

    def _over(self, arrived: int, now: float) -> bool:
        site = self.site
        idle = arrived == len(self.works) and not (site.queue or site.local or site.remote)
        return idle and (not self.machines or now > self.meter.last_end + AFTER_S)

    def _happen(self, event: tuple[float, int, int, Work | Rented, int]) -> None:
        _, _, kind, subject, turn = event
        if isinstance(subject, Work):
            if subject.place and subject.requeues == turn:
                self.site.end(subject)
                self.meter.ended(subject, self.now)
            return
        if subject.ended is not None:
            return
        if kind == _READY:
            if not subject.draining:
                self.site.open(subject)
            return
        for work in list(subject.works.values()):
            self.site.requeue(work)
        self.end(subject)

    def _at(self, when: float, kind: int, subject: Work | Rented, turn: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, subject, turn))

    def _started(self, work: Work) -> None:
        self._at(self.now + work.run, _END, work, work.requeues)

    # What a policy may do

    def available(self, offer: Offered) -> int | None:
        """How many more of it can be had; None: as many as one likes."""
        if offer.machine.capacity is None:
            return None
        return max(offer.machine.capacity - self.held.get((offer.provider, offer.type), 0), 0)

    def launch(self, offer: Offered, name: str = "") -> Rented | None:
        """A machine, on its way; None if there is no more."""
        if self.available(offer) == 0:
            return None
        provider = self.providers[offer.provider]
        name = name or f"m{self._count}"
        self._count += 1
        machine = Rented(
            name, offer.provider, offer.type, offer.machine.cores, offer.price, self.now
        )
        self.machines[name] = machine
        key = (offer.provider, offer.type)
        self.held[key] = self.held.get(key, 0) + 1
        boot = self._random.uniform(*provider.boot_s)
        if self._random.random() >= provider.never_boots:
            self._at(self.now + boot, _READY, machine)
        rate = provider.crashes_per_hour + offer.machine.interruptions_per_hour
        if rate:
            self._at(self.now + self._random.expovariate(rate / 3600), _FAILS, machine)
        self.meter.launched(self.now)
        return machine

    def drain(self, machine: Rented) -> None:
        self.site.drain(machine)

    def end(self, machine: Rented) -> None:
        """Return it; jobs still on it would be lost, so there must be none."""
        assert not machine.works, f"{machine.name} is returned with a job on it"
        if machine.ended is not None:
            return
        self.site.drain(machine)
        machine.ended = self.now
        del self.machines[machine.name]
        self.held[machine.provider, machine.type] -= 1
        held = self.now - machine.launched
        charged = self.providers[machine.provider].charged_s(held)
        self.meter.returned(machine, self.now, charged)
        self.changed = True

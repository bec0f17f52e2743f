"""Reading a provider: its machines in every round, its offers now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from burst.model import Machine, Offer, ProviderFacts
from burst.money.prices import Pricing
from burst.providers.base import LaunchesMany, LaunchRequest, Provider, ProviderError

OFFERS_LAST = timedelta(minutes=5)  # prices and zones change seldom, and listing them is slow


class Switch:
    """Whether a host is in mixed mode; asked before each machine, and after each look."""

    def __init__(self) -> None:
        self.ask: Callable[[], bool] = lambda: True

    def __call__(self) -> bool:
        return self.ask()


class LazyProvider:
    """A provider made when it is first asked: its library takes seconds to load, in the thread
    that asks, while the loops run already. Making it may fail, and is tried again."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Provider],
        pricing: Callable[[], Pricing] = Pricing,
    ) -> None:
        """`pricing` is asked at each look at the offers, so that a changed price file counts; it
        may raise a `ProviderError`, and then the offers of last time stay."""
        self.name = name
        self.switch: Switch | None = None  # of a host that can be in mixed mode
        self._make = make
        self._pricing = pricing
        self._made: Provider | None = None
        self._lock = threading.Lock()

    @property
    def offers_last(self) -> timedelta:
        return _offers_last(self._made)

    def _provider(self) -> Provider:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def offers(self) -> Sequence[Offer]:
        pricing = self._pricing()
        return tuple(pricing.price(offer) for offer in self._provider().offers())

    def launch(self, request: LaunchRequest) -> Machine:
        return self._provider().launch(request)

    def machines(self) -> Sequence[Machine]:
        return self._provider().machines()

    def terminate(self, machine_ids: Sequence[str]) -> None:
        self._provider().terminate(machine_ids)


class LazyBatches(LazyProvider):
    """One that starts many machines with one call."""

    def __init__(
        self,
        name: str,
        make: Callable[[], LaunchesMany],
        at_once: int,
        pricing: Callable[[], Pricing] = Pricing,
    ) -> None:
        super().__init__(name, make, pricing)  # type: ignore[arg-type]
        self.at_once = at_once

    def launch_many(self, request: LaunchRequest, count: int) -> Sequence[Machine]:
        provider = self._provider()
        assert isinstance(provider, LaunchesMany)
        return provider.launch_many(request, count)


def _offers_last(provider: Provider | None) -> timedelta:
    """How long this provider's offers are good for; it may say so itself."""
    own: timedelta = getattr(provider, "offers_last", OFFERS_LAST)
    return own


class ProviderReader:
    """The question the burst loop asks; raises what the provider raises for its machines.

    Offers that cannot be had now are those of last time: without any, nothing is launched, and
    machines are still taken care of.
    """

    def __init__(self, provider: Provider, clock: Callable[[], datetime]) -> None:
        self._provider = provider
        self._clock = clock
        self._offers: tuple[Offer, ...] = ()
        self._offered: datetime | None = None

    def __call__(self) -> ProviderFacts:
        machines = tuple(self._provider.machines())
        now, error = self._clock(), ""
        if self._offered is None or now - self._offered >= _offers_last(self._provider):
            try:
                self._offers = tuple(self._provider.offers())
                self._offered = now
            except ProviderError as problem:
                error = f"offers: {problem}"
        return ProviderFacts(self._provider.name, self._offers, machines, error)

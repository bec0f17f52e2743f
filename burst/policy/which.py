"""Which offer to take for which jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from burst.model import Job, Offer, Policy, Pool

_SYSTEM_SHARE = 12  # the machine's own system takes a twelfth of its memory ...
_SYSTEM_LEAST_MB = 200  # ... and never less than this


def usable_memory_mb(memory_mb: int) -> int:
    """The memory of a machine that jobs may have; its node should announce no less."""
    return max(memory_mb - max(memory_mb // _SYSTEM_SHARE, _SYSTEM_LEAST_MB), 0)


def fits(job: Job, offer: Offer) -> bool:
    """Whether machines of this kind, one for each of the job's nodes, are enough for it."""
    if job.nodes > 1:
        enough = job.memory_a_node <= usable_memory_mb(offer.memory_mb)
        return job.cores_a_node <= offer.cores and enough
    return job.cores <= offer.cores and job.memory_mb <= usable_memory_mb(offer.memory_mb)


def ranked(offers: Iterable[Offer], types: Sequence[str]) -> list[Offer]:
    """The offers a pool may take, in a stable order."""
    allowed = [
        offer
        for offer in offers
        if (not types or offer.type in types) and (offer.available is None or offer.available > 0)
    ]
    return sorted(allowed, key=lambda o: (o.price_per_hour, o.type, o.zone))


def cheapest(job: Job, wanted_cores: int, offers: Sequence[Offer]) -> Offer | None:
    """The offer on which the job fits with the lowest price per core that would be *used*.

    `wanted_cores` is all that waits, the job's own included: a big machine is no bargain if most
    of it stays idle. Of equals the cheapest, and then the first by name.
    """
    prices = [Priced(offer, float(offer.price_per_hour), offer.cores) for offer in offers]
    found = best(job, wanted_cores, prices)
    return found.offer if found is not None else None


@dataclass(frozen=True, slots=True)
class Priced:
    """An offer and what an hour of it is really worth to the pool."""

    offer: Offer
    hour: float  # in the site's currency: price, data, and for spot the work that may be lost
    cores: int

    def a_core(self, wanted_cores: int) -> float:
        return self.hour / max(min(self.cores, wanted_cores), 1)


def priced(offers: Iterable[Offer], pool: Pool, policy: Policy, length: timedelta) -> list[Priced]:
    """The offers with what an hour really costs, for jobs of about this length.

    A job of length L that starts again at each interruption, which come at rate r, takes
    (e^(rL) - 1) / r on average instead of L (Poisson interruptions; W. Feller, "An Introduction to
    Probability Theory and Its Applications" I, XIII.7): so a spot machine is that much dearer for
    long jobs, and cheap for short ones.
    """
    return [Priced(offer, real_hour(offer, pool, policy, length), offer.cores) for offer in offers]


def real_hour(offer: Offer, pool: Pool, policy: Policy, length: timedelta) -> float:
    hour = float(offer.price_per_hour + pool.data_cost)
    if not offer.spot:
        return hour
    exposed = float(policy.spot_interruptions) * length.total_seconds() / 3600
    return hour * (math.expm1(exposed) / exposed if exposed > 1e-9 else 1.0)


def best(job: Job, wanted_cores: int, offers: Sequence[Priced]) -> Priced | None:
    """`cheapest`, by what an hour really costs."""
    found: Priced | None = None
    least: tuple[float, Decimal, str, str] | None = None
    for one in offers:
        offer = one.offer
        if not fits(job, offer):
            continue
        key = (one.a_core(wanted_cores), offer.price_per_hour, offer.type, offer.zone)
        if least is None or key < least:
            found, least = one, key
    return found

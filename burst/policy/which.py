"""Which offer to take for which jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from burst.model import Job, Offer

_SYSTEM_SHARE = 12  # the machine's own system takes a twelfth of its memory ...
_SYSTEM_LEAST_MB = 200  # ... and never less than this


def usable_memory_mb(memory_mb: int) -> int:
    """The memory of a machine that jobs may have; its node should announce no less."""
    return max(memory_mb - max(memory_mb // _SYSTEM_SHARE, _SYSTEM_LEAST_MB), 0)


def fits(job: Job, offer: Offer) -> bool:
    """Whether one machine of this kind is enough for the job."""
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
    fitting = [offer for offer in offers if fits(job, offer)]

    def price(offer: Offer) -> tuple[Decimal, Decimal, str, str]:
        used = max(min(offer.cores, wanted_cores), 1)
        return offer.price_per_hour / used, offer.price_per_hour, offer.type, offer.zone

    return min(fitting, key=price, default=None)

"""A flash request: so many cores, now, for so long, for at most so much.

The choice of machines is one function, used for the quote and for the renting: what was quoted is
what is rented, as long as offers, budget and room stay as they were. A machine counts against
`max_cost` with what it will have cost at the flash's end, from the moment it is wanted; so the sum
cannot pass it, whatever happens later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from burst.model import Facts, Flash, Lease, LeaseState, Offer, Policy
from burst.policy import money

SERVING = (
    LeaseState.WANTED,
    LeaseState.REQUESTED,
    LeaseState.BOOTING,
    LeaseState.TUNNELLED,
    LeaseState.JOINED,
)


def active(facts: Facts) -> list[Flash]:
    """Those that stand now, the oldest first."""
    standing = (flash for flash in facts.flashes if flash.active(facts.now))
    return sorted(standing, key=lambda flash: (flash.asked, flash.id))


def kept_until(lease: Lease, facts: Facts) -> datetime | None:
    """Until when the lease's flash wants it; None if it has none that stands."""
    for flash in facts.flashes if lease.flash else ():
        if flash.id == lease.flash and flash.active(facts.now):
            return flash.ends
    return None


def serving(flash: Flash, leases: Iterable[Lease]) -> list[Lease]:
    """Its machines that are there or on their way."""
    return [
        lease
        for lease in leases
        if lease.flash == flash.id
        and lease.state in SERVING
        and not lease.failure
        and not lease.stop_reason
    ]


def committed(flash: Flash, leases: Iterable[Lease], facts: Facts, policy: Policy) -> Decimal:
    """What all machines of the flash will have cost at its end, those that failed too. `leases`
    are those of the facts as this round leaves them; what ended before is in `flash_spent`."""
    now = facts.now
    total = facts.flash_spent.get(flash.id, Decimal(0))
    settled = {lease.id for lease in facts.leases if not lease.living}
    for lease in leases:
        if lease.flash != flash.id or lease.id in settled:
            continue
        if lease in serving(flash, [lease]):
            start = money.billed_from(lease) or lease.wanted
            total += cost_of(lease.price_per_hour, start, max(flash.ends, now))
        elif lease.living:
            rest = money.price_of(lease.price_per_hour, policy.return_time)
            total += money.accrued(lease, now) + rest
        else:
            total += lease.cost
    return total


def cost_of(price_per_hour: Decimal, start: datetime, end: datetime) -> Decimal:
    return money.billed(price_per_hour, start, end) if price_per_hour else Decimal(0)


@dataclass(frozen=True, slots=True)
class Means:
    """What may be had of one pool now."""

    offers: Sequence[Offer]
    machines: int  # at most so many
    free: Decimal  # money of its account
    left: Callable[[Offer], int | None] = lambda _offer: None  # stock; None: not known


@dataclass(frozen=True, slots=True)
class Choice:
    """Machines for a flash: `reserve` is what each must have set aside, `cost` what each will
    have cost at the flash's end. `short` says why it is fewer cores than wanted; empty if not."""

    offers: tuple[Offer, ...]
    cores: int
    cost: Decimal
    reserve: Decimal
    short: str
    code: str = ""


def reserve_for(offer: Offer, flash: Flash, now: datetime, policy: Policy) -> Decimal:
    """What is set aside before the launch: the whole time, and the way back."""
    return money.first_reservation(offer.price_per_hour, max(flash.ends - now, _NOTHING), policy)


_NOTHING = timedelta(0)


def choose(
    flash: Flash, cores: int, spent: Decimal, means: Means, now: datetime, policy: Policy
) -> Choice:
    """The machines with the lowest price per wanted core, one after the other, until the cores are
    there or something is used up. `spent` is what the flash is committed to already."""
    picked: list[Offer] = []
    counted: dict[tuple[str, str, bool], int] = {}
    cost, reserve, got = Decimal(0), Decimal(0), 0
    short = code = ""
    while got < cores:
        if len(picked) >= means.machines:
            code = "flash-cap"
            short = f"the pool may have {means.machines} more machines, its cap or its addresses"
            break
        stocked = [one for one in means.offers if _in_stock(one, counted, means)]
        if not stocked:
            code, short = "flash-no-offer", "the provider offers no (more) machine of the pool"
            break
        offer = min(stocked, key=lambda one: _price_a_core(one, cores - got))
        more = cost_of(offer.price_per_hour, now, flash.ends)
        aside = reserve_for(offer, flash, now, policy)
        if flash.max_cost is not None and spent + cost + more > flash.max_cost:
            code = "flash-max-cost"
            short = (
                f"one more {offer.type} would cost {more:.4f} until the end, and of max_cost "
                f"{flash.max_cost} {flash.max_cost - spent - cost:.4f} are left"
            )
            break
        if offer.price_per_hour and reserve + aside > means.free:
            code = "flash-budget"
            short = (
                f"one more {offer.type} needs {aside:.4f} set aside, and of the budget "
                f"{max(means.free - reserve, Decimal(0)):.4f} are free"
            )
            break
        picked.append(offer)
        kind = (offer.type, offer.zone, offer.spot)
        counted[kind] = counted.get(kind, 0) + 1
        cost, reserve, got = cost + more, reserve + aside, got + offer.cores
    return Choice(tuple(picked), got, cost, reserve, short, code)


def _in_stock(offer: Offer, counted: dict[tuple[str, str, bool], int], means: Means) -> bool:
    left = means.left(offer)
    if left is None:
        left = offer.available
    taken = counted.get((offer.type, offer.zone, offer.spot), 0)
    return offer.cores > 0 and (left is None or left > taken)


def _price_a_core(offer: Offer, wanted: int) -> tuple[Decimal, Decimal, str, str, bool]:
    """Only cores that are wanted count; a flash is served by what stays: on demand before spot
    among equals."""
    used = max(min(offer.cores, wanted), 1)
    return offer.price_per_hour / used, offer.price_per_hour, offer.type, offer.zone, offer.spot

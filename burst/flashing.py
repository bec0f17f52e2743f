"""Pass before the queue's: machines for the flash requests that stand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from burst.model import Flash, Lease, LeaseState, Offer, Pool
from burst.newlease import free_addresses, want
from burst.observe import duration_text
from burst.policy import breaker, flash
from burst.policy.which import ranked
from burst.round import Round


def ahead(paper: Round) -> None:
    """Want what active flashes still lack. Nothing is remembered: a machine that failed is lacking
    again in the next round, under the same bars as any other."""
    facts = paper.world.facts
    for request in flash.active(facts):
        if facts.farm is None:
            text = "the batch system does not answer: nothing is rented until it does"
            paper.say("flash", request.id, "no-answer", text)
            continue
        mine = list(paper.leases.values())
        serving = flash.serving(request, mine)
        lacking = request.cores - sum(lease.cores for lease in serving)
        spent = flash.committed(request, mine, facts, paper.policy)
        told: list[tuple[str, str]] = []
        for pool in pools_for(request, paper):
            if lacking <= 0:
                break
            got = _rent(paper, request, pool, lacking, spent, told)
            lacking -= sum(lease.cores for lease in got)
            spent += sum(
                (flash.cost_of(le.price_per_hour, facts.now, request.ends) for le in got),
                Decimal(0),
            )
        _explain(paper, request, told)


def pools_for(request: Flash, paper: Round) -> list[Pool]:
    """The pools of its tenant that it may use: quotas before money, then the cheapest core."""

    def order(pool: Pool) -> tuple[bool, Decimal]:
        provider = paper.world.facts.providers.get(pool.provider)
        offers = ranked(provider.offers, pool.types) if provider else []
        cores = [offer.price_per_hour / max(offer.cores, 1) for offer in offers]
        return not pool.unit, min(cores, default=Decimal("Infinity"))

    fitting = (
        pool
        for pool in paper.pools
        if pool.tenant == request.tenant and request.provider in ("", pool.provider)
    )
    return sorted(fitting, key=order)


@dataclass(frozen=True, slots=True)
class Stall:
    """What a pool could give a flash now, and what of it may be started at once."""

    means: flash.Means
    at_once: int | None  # while the pool is not proved; None: all


def stall(paper: Round, pool: Pool) -> Stall | str:
    """What the pool has for a flash, or what bars it from anything."""
    facts, policy, now = paper.world.facts, paper.policy, paper.world.now
    provider = facts.providers.get(pool.provider)
    if pool.hold:
        return f"nothing new is rented: {pool.hold}"
    if facts.network_error:
        return f"no tunnel, no launch: {facts.network_error}"
    if provider is None or provider.machines is None:
        return f"provider {pool.provider} does not answer"
    every = list(paper.leases.values())
    throttled = breaker.throttled_until(every, now).get(pool.provider)
    if throttled is not None:
        return f"provider {pool.provider} wants fewer requests until {throttled:%H:%M:%S} UTC"
    health = breaker.pool_health(paper.of_pool(pool), now, policy, facts.forgiven)
    if health.paused_until is not None:
        why = f": {health.last.failure.message}" if health.last and health.last.failure else ""
        return f"pool {pool.name} pauses until {health.paused_until:%H:%M:%S} UTC{why}"
    offers = [
        offer
        for offer in ranked(provider.offers, pool.types)
        if breaker.offer_blocked_until(offer, every, now, policy, facts.forgiven) is None
    ]
    living = sum(lease.living for lease in paper.of_pool(pool))
    tenants = sum(lease.living and lease.tenant == pool.tenant for lease in every)
    most = getattr(policy, "tenant_machines", None)
    room = min(pool.max_machines - living, len(free_addresses(paper, pool)))
    if most is not None:
        room = min(room, most - tenants)
    free = paper.free.get(pool.account, Decimal(0))
    means = flash.Means(offers, max(room, 0), free, lambda offer: _stock(paper, offer))
    return Stall(means, health.may_start(policy))


def _stock(paper: Round, offer: Offer) -> int | None:
    """What is left of an offer that is counted, less what this round wants already."""
    if offer.available is None:
        return None
    kind = (offer.provider, offer.type, offer.zone)
    wanted = sum((le.provider, le.type, le.zone) == kind for le in paper.wants)
    return offer.available - wanted


def _rent(
    paper: Round,
    request: Flash,
    pool: Pool,
    cores: int,
    spent: Decimal,
    told: list[tuple[str, str]],
) -> list[Lease]:
    found = stall(paper, pool)
    if isinstance(found, str):
        told.append(("flash-barred", found))
        return []
    now, policy = paper.world.now, paper.policy
    choice = flash.choose(request, cores, spent, found.means, now, policy)
    if choice.short:
        told.append((choice.code, f"pool {pool.name}: {choice.short}"))
    most = len(choice.offers) if found.at_once is None else found.at_once
    if most < len(choice.offers):
        text = f"pool {pool.name} starts {most} machines until one of them has joined"
        told.append(("flash-barred", text))
    keys = {lease.gre_key for lease in paper.leases.values() if lease.living}
    addresses = free_addresses(paper, pool)
    return [
        _lease(paper, request, pool, offer, addresses.popleft(), keys)
        for offer in choice.offers[:most]
    ]


def _lease(
    paper: Round, request: Flash, pool: Pool, offer: Offer, address: str, keys: set[int]
) -> Lease:
    reserve = flash.reserve_for(offer, request, paper.world.now, paper.policy)
    return want(paper, pool, offer, reserve, address, keys, flash=request.id)


def _explain(paper: Round, request: Flash, told: list[tuple[str, str]]) -> None:
    serving = flash.serving(request, paper.leases.values())
    joined = sum(lease.cores for lease in serving if lease.state is LeaseState.JOINED)
    cores = sum(lease.cores for lease in serving)
    left = duration_text(max(request.ends - paper.world.now, timedelta(0)))
    text = f"{joined} of {request.cores} cores joined, {cores - joined} on their way, {left} left"
    if cores >= request.cores:
        paper.say("flash", request.id, "flash-served", text)
        return
    if not told:
        told.append(("flash-no-offer", f"tenant {request.tenant} has no pool for it"))
    code = told[-1][0]
    paper.say("flash", request.id, code, "; ".join([text, *(message for _, message in told)]))


@dataclass(frozen=True, slots=True)
class Part:
    """Machines of one type in one pool, as quoted."""

    pool: str
    provider: str
    type: str
    count: int
    cores: int  # of all of them
    price_per_hour: Decimal  # of one
    unit: str
    spot: bool


@dataclass(frozen=True, slots=True)
class Quote:
    """What a flash would get now. `cost` is by unit, at the flash's end; `short` says why there
    are fewer cores than wanted; `slow` what would delay them."""

    parts: tuple[Part, ...]
    cores: int
    cost: dict[str, Decimal]
    reserved: dict[str, Decimal]
    short: tuple[str, ...]
    slow: tuple[str, ...]


def quote(paper: Round, request: Flash) -> Quote:
    """The same choice that `ahead` makes, without making it."""
    now, policy = paper.world.now, paper.policy
    parts: list[Part] = []
    cost: dict[str, Decimal] = {}
    reserved: dict[str, Decimal] = {}
    short: list[str] = []
    slow: list[str] = []
    cores = 0
    pools = pools_for(request, paper)
    if not pools:
        at = f" at {request.provider}" if request.provider else ""
        short.append(f"tenant {request.tenant} has no pool{at}")
    for pool in pools:
        if cores >= request.cores:
            break
        found = stall(paper, pool)
        if isinstance(found, str):
            short.append(found)
            continue
        spent = sum(cost.values(), Decimal(0))
        choice = flash.choose(request, request.cores - cores, spent, found.means, now, policy)
        if choice.short:
            short.append(f"pool {pool.name}: {choice.short}")
        if found.at_once is not None and found.at_once < len(choice.offers):
            slow.append(f"pool {pool.name} starts {found.at_once} until one of them has joined")
        cores += choice.cores
        unit = pool.unit
        cost[unit] = cost.get(unit, Decimal(0)) + choice.cost
        reserved[unit] = reserved.get(unit, Decimal(0)) + choice.reserve
        parts += _parts(pool, choice)
    return Quote(tuple(parts), cores, cost, reserved, tuple(short), tuple(slow))


def _parts(pool: Pool, choice: flash.Choice) -> list[Part]:
    counted: dict[Offer, int] = {}
    for offer in choice.offers:
        counted[offer] = counted.get(offer, 0) + 1
    return [
        Part(
            pool=pool.name,
            provider=pool.provider,
            type=offer.type,
            count=count,
            cores=offer.cores * count,
            price_per_hour=offer.price_per_hour,
            unit=offer.unit,
            spot=offer.spot,
        )
        for offer, count in counted.items()
    ]

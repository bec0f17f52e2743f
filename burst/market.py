"""What pools can have in one round: providers' stock, what is on its way, and what bars more."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from operator import attrgetter

from burst.model import Lease, LeaseState, Offer, Pool
from burst.newlease import free_addresses
from burst.policy import breaker
from burst.policy.demand import Candidate, Left, Supply, worthwhile_cores
from burst.policy.when import expected_left
from burst.policy.which import Priced, priced, ranked, usable_memory_mb
from burst.round import COMING, Round


@dataclass(frozen=True, slots=True)
class Bar:
    """Why a pool rents nothing (more) now."""

    code: str
    message: str


@dataclass(slots=True)
class Market:
    """What all pools share in one round: providers' stock, and what each tenant holds."""

    held: dict[str, int]  # cores, by tenant
    machines: dict[str, int]  # machines, by tenant
    stock: dict[tuple[str, str, str], int]  # what is left of offers that are counted
    keys: set[int]  # GRE keys of living leases

    @classmethod
    def of(cls, paper: Round) -> Market:
        market = cls({}, {}, {}, set())
        for lease in paper.leases.values():
            if lease.living:
                market.hold(lease)
                market.keys.add(lease.gre_key)
        for provider in paper.world.facts.providers.values():
            for offer in provider.offers:
                if offer.available is not None:
                    market.stock[_kind(offer)] = offer.available
        for lease in paper.wants:  # a flash was served first
            market.take(lease)
        return market

    def hold(self, lease: Lease) -> None:
        self.held[lease.tenant] = self.held.get(lease.tenant, 0) + lease.cores
        self.machines[lease.tenant] = self.machines.get(lease.tenant, 0) + 1

    def left(self, offer: Offer) -> int | None:
        return self.stock.get(_kind(offer))

    def take(self, offer: Offer | Lease) -> None:
        kind = _kind(offer)
        if kind in self.stock:
            self.stock[kind] -= 1


def _kind(offer: Offer | Lease) -> tuple[str, str, str]:
    return offer.provider, offer.type, offer.zone


def supplies(paper: Round, pool: Pool) -> list[Supply]:
    """What the pool's leases have free for jobs, or will have before a new machine could."""
    now, default = paper.world.now, paper.policy.default_job_time
    habits = paper.world.facts.habits
    found: list[Supply] = []
    for lease in paper.of_pool(pool):
        memory = usable_memory_mb(lease.memory_mb)
        if lease.state is LeaseState.JOINED:
            node = paper.world.nodes.get(lease.node)
            busy = node.allocated_cores if node else 0
            free = max(lease.cores - busy, 0)
            soon = tuple(
                (expected_left(job, now, default, habits.get(job.user, 1.0)), job.cores_a_node)
                for job in paper.world.jobs_on.get(lease.node, ())
            )
            found.append(Supply(free, memory * free // max(lease.cores, 1), soon))
        elif lease.state in COMING:
            found.append(Supply(lease.cores, memory))
    return found


@dataclass(slots=True)
class Trip:
    """What a pool may take in this round, and how much more of it."""

    offers: list[Priced]
    health: breaker.PoolHealth
    may_start: int | None  # until the pool has proved itself
    room: int  # machines up to the caps of pool and tenant
    cores: int  # new cores that are worth their start
    total: int  # cores that wait
    addresses: deque[str]
    billing: timedelta


def set_out(paper: Round, pool: Pool, left: list[Left], spares: int, market: Market) -> Trip | Bar:
    """What the pool may take now, or what bars it from anything; also asked when there is no
    work, since a pause is to be seen when idle."""
    facts, policy, now = paper.world.facts, paper.policy, paper.world.now
    provider = facts.providers.get(pool.provider)
    if pool.hold:
        return Bar("hold", f"nothing new is rented: {pool.hold}")
    if facts.network_error:
        return Bar("no-network", f"no tunnel, no launch: {facts.network_error}")
    if provider is None or provider.machines is None:
        error = provider.error if provider else "it was not asked"
        return Bar("no-provider", f"provider {pool.provider} does not answer: {error}")
    siblings = list(paper.leases.values())
    throttled = breaker.throttled_until(siblings, now).get(pool.provider)
    if throttled is not None:
        text = f"provider {pool.provider} wants fewer requests until {throttled:%H:%M:%S} UTC"
        return Bar("throttled", text)
    health = breaker.pool_health(paper.of_pool(pool), now, policy, facts.forgiven)
    if health.paused_until is not None:
        return proving(health, pool, paper)
    offers, blocked = [], []
    for offer in ranked(provider.offers, pool.types):
        until = breaker.offer_blocked_until(offer, siblings, now, policy, facts.forgiven)
        if until is None:
            offers.append(offer)
        else:
            blocked.append(f"{offer.type} until {until:%H:%M:%S} UTC")
    if not offers:
        if blocked:
            text = f"nothing could be had; tried again: {', '.join(blocked)}"
            return Bar("backing-off", text)
        types = ", ".join(pool.types) or "any type"
        error = f" ({provider.error})" if provider.error else ""
        return Bar("no-offer", f"provider {pool.provider} offers nothing of {types}{error}")
    candidates = list(map(attrgetter("candidate"), left))
    living = sum(lease.living for lease in paper.of_pool(pool))
    tenants = policy.tenant_machines - market.machines.get(pool.tenant, 0)
    return Trip(
        priced(offers, pool, policy, _typical(candidates, policy.default_job_time)),
        health,
        health.may_start(policy),
        min(pool.max_machines - living, tenants),
        worthwhile_cores(candidates, policy.expected_start_cost),
        sum(map(attrgetter("job.cores"), candidates)),
        free_addresses(paper, pool) if left or spares else deque(),
        provider.billing,
    )


def _typical(candidates: list[Candidate], default: timedelta) -> timedelta:
    """The median length of the jobs a machine would be for."""
    if not candidates:
        return default
    counts: Counter[timedelta] = Counter(map(attrgetter("limit"), candidates))  # few different ones
    limits = sorted(counts)
    up_to = accumulate(counts[limit] for limit in limits)
    half = len(candidates) // 2
    return next(limit for limit, n in zip(limits, up_to, strict=True) if n > half)


def proving(health: breaker.PoolHealth, pool: Pool, paper: Round) -> Bar:
    last = health.last.failure if health.last else None
    if health.paused_until is not None and last is not None:
        return Bar(
            "pool-paused",
            f"pool {pool.name} pauses until {health.paused_until:%H:%M:%S} UTC after "
            f"{health.failures} failures in a row, the last: {last.kind}: {last.message}",
        )
    after = f" after {last.kind}: {last.message}" if last else ""
    return Bar(
        "proving",
        f"pool {pool.name} starts at most {paper.policy.failures_to_pause} machines until one of "
        f"them has joined{after}",
    )

"""Fifth pass: want machines for the work that nothing on its way will serve."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from burst import funds
from burst.model import Lease, LeaseState, Offer, Pool
from burst.observe import duration_text
from burst.policy import breaker, money
from burst.policy.demand import Candidate, Supply, unserved, worthwhile_cores
from burst.policy.which import cheapest, fits, ranked, usable_memory_mb
from burst.queue import Queue, start_threshold
from burst.round import COMING, Round

PATIENCE = 1000  # jobs in a row that cannot be served, after which the rest is not tried
LOOK_AHEAD = 32  # jobs looked at to fill the rest of one machine
_GRE_KEYS_OF_LEASES = 0x8000_0000  # the upper half: the site file's own tunnels use the lower


@dataclass(frozen=True, slots=True)
class Bar:
    """Why a pool rents nothing (more) now."""

    code: str
    message: str


def rent(paper: Round, queue: Queue) -> None:
    if paper.world.facts.farm is None:
        return
    claimed: set[str] = set()
    for pool in paper.pools:
        _rent_for(paper, queue, pool, claimed)


def wanting(queue: Queue, pool: Pool, paper_threshold: float) -> list[Candidate]:
    """The candidates that would wait here longer than a machine takes to start."""
    return [c for c in queue.candidates(pool) if c.wait > paper_threshold]


def _rent_for(paper: Round, queue: Queue, pool: Pool, claimed: set[str]) -> None:
    threshold = start_threshold(paper.policy)
    soon = f"it starts here within {{}}; a borrowed machine would take {threshold:.0f} s"
    for candidate in queue.candidates(pool):
        if candidate.wait <= threshold and candidate.job.id not in paper.answers:
            text = soon.format(candidate.wait_text)
            paper.answer(candidate.job.id, "starts-soon", text)
    needy = [c for c in wanting(queue, pool, threshold) if c.job.id not in claimed]
    left = unserved(needy, _supplies(paper, pool))
    unmet = {candidate.job.id for candidate in left}
    for candidate in needy:
        if candidate.job.id in unmet:
            continue
        claimed.add(candidate.job.id)
        if candidate.job.id not in paper.answers:
            text = f"pool {pool.name} has a machine for it, or one is on its way"
            paper.answer(candidate.job.id, "on-the-way", text)
    bar = _rent_machines(paper, pool, left, claimed) if left else _standing_bar(paper, pool)
    _explain_pool(paper, pool, needy, left, bar)
    for candidate in left:
        if candidate.job.id not in paper.answers and bar is not None:
            text = f"it would wait here {candidate.wait_text}, but {bar.message}"
            paper.answer(candidate.job.id, bar.code, text)


def _supplies(paper: Round, pool: Pool) -> list[Supply]:
    supplies: list[Supply] = []
    for lease in paper.of_pool(pool):
        memory = usable_memory_mb(lease.memory_mb)
        if lease.state is LeaseState.JOINED:
            node = paper.world.nodes.get(lease.node)
            busy = node.allocated_cores if node else 0
            free = max(lease.cores - busy, 0)
            supplies.append(Supply(free, memory * free // max(lease.cores, 1)))
        elif lease.state in COMING:
            supplies.append(Supply(lease.cores, memory))
    return supplies


def _rent_machines(
    paper: Round, pool: Pool, left: list[Candidate], claimed: set[str]
) -> Bar | None:
    """Want machines until the work is served or something bars more; says what bars."""
    trip = _set_out(paper, pool, left)
    if isinstance(trip, Bar):
        return trip
    waiting = deque(left)
    bar: Bar | None = None
    refusals = 0
    while waiting and refusals < PATIENCE:
        closed = trip.closed(paper)
        if closed is not None:
            return closed
        head = waiting.popleft()
        bought = trip.buy(paper, head, waiting)
        if isinstance(bought, Bar):
            bar, refusals = bought, refusals + 1
            text = f"it would wait here {head.wait_text}, but {bar.message}"
            _answer(paper, head, bar.code, text)
            continue
        refusals = 0
        for candidate in bought.jobs:
            claimed.add(candidate.job.id)
            _answer(
                paper,
                candidate,
                "renting",
                f"it would wait here {candidate.wait_text}: a {bought.lease.type} for "
                f"{bought.lease.price_per_hour} an hour is asked for, lease {bought.lease.id[:8]}",
            )
    return bar


def _standing_bar(paper: Round, pool: Pool) -> Bar | None:
    """What would keep the pool from renting if there were work: a pause shows also when idle."""
    trip = _set_out(paper, pool, [])
    return trip if isinstance(trip, Bar) else None


def _answer(paper: Round, candidate: Candidate, code: str, message: str) -> None:
    if candidate.job.id not in paper.answers:
        paper.answer(candidate.job.id, code, message)


@dataclass(frozen=True, slots=True)
class Bought:
    lease: Lease
    jobs: list[Candidate]


@dataclass(slots=True)
class Trip:
    """One pool's shopping in one round: what may be had, and how much more of it."""

    pool: Pool
    offers: list[Offer]
    health: breaker.PoolHealth
    may_start: int | None  # until the pool has proved itself
    room: int  # machines up to the pool's cap
    cores: int  # new cores that are worth their start
    total: int  # cores that wait
    addresses: deque[str]
    keys: set[int]  # GRE keys of living leases

    def closed(self, paper: Round) -> Bar | None:
        """What bars any further machine."""
        name = self.pool.name
        if self.cores <= 0:
            return Bar("on-the-way", "the machines asked for now will take it in turn")
        if self.room <= 0:
            return Bar("cap", f"pool {name} may have {self.pool.max_machines} machines at most")
        if self.may_start is not None and self.may_start <= 0:
            return _proving(self.health, self.pool, paper)
        if not self.addresses:
            return Bar("no-address", f"pool {name} has no inner address left")
        return None

    def buy(self, paper: Round, head: Candidate, waiting: deque[Candidate]) -> Bought | Bar:
        """Want the machine on which `head` fits best, and fill it with those behind."""
        worth = max(min(self.total, self.cores), head.job.cores)
        self.total -= head.job.cores
        offer = cheapest(head.job, worth, self.offers)
        if offer is None:
            text = f"no machine of pool {self.pool.name} that can be had now is large enough"
            return Bar("no-offer", text)
        jobs = _fill(head, offer, waiting)
        limit = max(candidate.limit for candidate in jobs)
        reserve = money.first_reservation(offer.price_per_hour, limit, paper.policy)
        if offer.price_per_hour and reserve > paper.spendable(self.pool.account):
            waiting.extendleft(reversed(jobs[1:]))
            return _no_money(paper, self.pool, offer, reserve)
        name = paper.new_id()
        key = _key(name, self.keys)
        lease = _lease(paper, self.pool, offer, reserve, self.addresses.popleft(), name, key)
        self.room -= 1
        self.cores -= offer.cores
        self.total -= sum(candidate.job.cores for candidate in jobs[1:])
        self.may_start = None if self.may_start is None else self.may_start - 1
        return Bought(lease, jobs)


def _set_out(paper: Round, pool: Pool, left: list[Candidate]) -> Trip | Bar:
    """What the pool may take now, or what bars it from anything."""
    facts, policy, now = paper.world.facts, paper.policy, paper.world.now
    provider = facts.providers.get(pool.provider)
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
        return _proving(health, pool, paper)
    offers, blocked = [], []
    for offer in ranked(provider.offers, pool.types):
        until = breaker.offer_blocked_until(offer, siblings, now, policy, facts.forgiven)
        if until is None:
            offers.append(offer)
        else:
            blocked.append(f"{offer.type} until {until:%H:%M:%S} UTC")
    if not offers:
        if blocked:
            return Bar("backing-off", f"nothing could be had; tried again: {', '.join(blocked)}")
        types = ", ".join(pool.types) or "any type"
        error = f" ({provider.error})" if provider.error else ""
        return Bar("no-offer", f"provider {pool.provider} offers nothing of {types}{error}")
    return Trip(
        pool,
        offers,
        health,
        health.may_start(policy),
        pool.max_machines - sum(lease.living for lease in paper.of_pool(pool)),
        worthwhile_cores(left, policy.expected_start_cost),
        sum(candidate.job.cores for candidate in left),
        _addresses(paper, pool),
        {lease.gre_key for lease in siblings if lease.living},
    )


def _proving(health: breaker.PoolHealth, pool: Pool, paper: Round) -> Bar:
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


def _no_money(paper: Round, pool: Pool, offer: Offer, reserve: Decimal) -> Bar:
    return Bar(*funds.no_money(paper, pool.account, offer.type, reserve))


def _fill(head: Candidate, offer: Offer, waiting: deque[Candidate]) -> list[Candidate]:
    """`head` and those of the next few that fit beside it; they are taken out of `waiting`."""
    jobs = [head]
    cores = offer.cores - head.job.cores
    memory = usable_memory_mb(offer.memory_mb) - head.job.memory_mb
    passed: list[Candidate] = []
    while waiting and cores > 0 and len(passed) < LOOK_AHEAD:
        candidate = waiting.popleft()
        job = candidate.job
        if job.cores <= cores and job.memory_mb <= memory and fits(job, offer):
            jobs.append(candidate)
            cores -= max(job.cores, 1)
            memory -= job.memory_mb
        else:
            passed.append(candidate)
    waiting.extendleft(reversed(passed))
    return jobs


def _lease(
    paper: Round, pool: Pool, offer: Offer, reserve: Decimal, address: str, name: str, key: int
) -> Lease:
    lease = Lease(
        id=name,
        pool=pool.name,
        tenant=pool.tenant,
        network=pool.network,
        provider=pool.provider,
        type=offer.type,
        zone=offer.zone,
        cores=offer.cores,
        memory_mb=offer.memory_mb,
        price_per_hour=offer.price_per_hour,
        state=LeaseState.WANTED,
        node=f"{pool.name}-{name[:8]}",
        address=address,
        gre_key=key,
        wanted=paper.world.now,
        reserved=reserve if offer.price_per_hour else Decimal(0),
        spot=offer.spot,
        unit=offer.unit,
    )
    paper.keep(lease)
    paper.by_pool.setdefault(pool.name, []).append(name)
    paper.wants.append(lease)
    return lease


def _key(name: str, used: set[int]) -> int:
    """A key from the id, so that it is known before anything is stored; the next one if taken."""
    key = int(name[:8], 16) | _GRE_KEYS_OF_LEASES
    while key in used:
        key = (key + 1) % 2**32 | _GRE_KEYS_OF_LEASES
    used.add(key)
    return key


def _addresses(paper: Round, pool: Pool) -> deque[str]:
    """Free inner addresses of the pool, those out of use for longest first: what others still
    remember of an address (ARP, conntrack) has then had time to fade."""
    used = {node.address for node in paper.world.nodes.values() if node.address}
    last_used: dict[str, float] = {}
    for lease in paper.leases.values():
        if (lease.tenant, lease.network) != (pool.tenant, pool.network):
            continue
        if lease.living:
            used.add(lease.address)
        elif lease.ended is not None:
            instant = lease.ended.timestamp()
            last_used[lease.address] = max(instant, last_used.get(lease.address, 0.0))
    free = [address for address in pool.addresses if address not in used]
    return deque(sorted(free, key=lambda address: last_used.get(address, 0.0)))


def _explain_pool(
    paper: Round, pool: Pool, needy: list[Candidate], left: list[Candidate], bar: Bar | None
) -> None:
    living = [lease for lease in paper.of_pool(pool) if lease.living]
    joined = sum(lease.state is LeaseState.JOINED for lease in living)
    counts = f"{joined} joined of {len(living)} leases, at most {pool.max_machines}"
    free = paper.free.get(pool.account)
    purse = f"; {free:.4f} of the budget free" if free is not None else "; no budget"
    wait = duration_text(timedelta(seconds=start_threshold(paper.policy)))
    work = (
        f"{len(needy)} jobs would wait here longer than {wait}, "
        f"{len(left)} of them beyond what there is or comes"
    )
    if bar is not None:
        paper.say("pool", pool.name, bar.code, f"{counts}{purse}; {work}; {bar.message}")
        return
    renting = any(lease.pool == pool.name for lease in paper.wants)
    paper.say("pool", pool.name, "renting" if renting else "ok", f"{counts}{purse}; {work}")

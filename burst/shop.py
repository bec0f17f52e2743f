"""One pool's renting in one round: what its jobs lack, what can be had, and what bars more."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

from burst.model import Lease, LeaseState, Offer, Pool
from burst.observe import duration_text
from burst.policy import breaker, money, worth
from burst.policy.demand import Candidate, Left, Supply, shortfall, worthwhile_cores
from burst.policy.when import expected_left
from burst.policy.which import Priced, best, fits, priced, ranked, usable_memory_mb
from burst.queue import Queue, start_threshold
from burst.round import COMING, Round

PATIENCE = 1000  # jobs in a row that cannot be served, after which the rest is not tried
PATIENCE_WITH_PRICE = 64  # jobs in a row that are not worth a machine
LOOK_AHEAD = 32  # jobs looked at to fill the rest of one machine
_GRE_KEYS_OF_LEASES = 0x8000_0000  # the upper half: the site file's own tunnels use the lower


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
        return market

    def hold(self, lease: Lease) -> None:
        self.held[lease.tenant] = self.held.get(lease.tenant, 0) + lease.cores
        self.machines[lease.tenant] = self.machines.get(lease.tenant, 0) + 1

    def left(self, offer: Offer) -> int | None:
        return self.stock.get(_kind(offer))

    def take(self, offer: Offer) -> None:
        kind = _kind(offer)
        if kind in self.stock:
            self.stock[kind] -= 1


def _kind(offer: Offer) -> tuple[str, str, str]:
    return offer.provider, offer.type, offer.zone


def wanting(queue: Queue, pool: Pool, threshold: float) -> list[Candidate]:
    """The candidates that would wait here longer than a machine takes to start."""
    return [c for c in queue.candidates(pool) if c.wait > threshold]


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


@dataclass(slots=True)
class Shop:
    """One pool's shopping: `enter`, `buy` until it says no, `close`."""

    paper: Round
    pool: Pool
    claimed: set[str]
    market: Market
    needy: list[Candidate] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    waiting: deque[Left] = field(default_factory=deque)
    spares: int = 0  # machines to be wanted for nobody
    trip: Trip | None = None
    bar: Bar | None = None
    refusals: int = 0

    @property
    def open(self) -> bool:
        return self.trip is not None and (bool(self.waiting) or self.spares > 0)

    @classmethod
    def enter(
        cls, paper: Round, queue: Queue, pool: Pool, claimed: set[str], market: Market
    ) -> Shop:
        shop = cls(paper, pool, claimed, market)
        threshold = start_threshold(paper.policy)
        shop.needy = shop._needy(queue, threshold)
        found = supplies(paper, pool)
        shop.left = shortfall(shop.needy, found, threshold)
        unmet = {left.candidate.job.id for left in shop.left}
        for candidate in shop.needy:
            if candidate.job.id not in unmet:
                claimed.add(candidate.job.id)
                text = f"pool {pool.name} has a machine for it, or one is on its way"
                shop._answer(candidate, "on-the-way", text)
        whole = sum(supply.cores > 0 and not supply.soon for supply in found)
        shop.spares = max(pool.spares - max(whole - len(shop.needy), 0), 0) if pool.spares else 0
        shop._set_out()
        return shop

    def _needy(self, queue: Queue, threshold: float) -> list[Candidate]:
        """Who would wait too long and is worth a machine, the most deserving first."""
        paper, answers = self.paper, self.paper.answers
        needy: list[Candidate] = []
        for candidate in queue.candidates(self.pool):
            if candidate.wait > threshold:
                if candidate.job.id not in self.claimed:
                    needy.append(candidate)
            elif candidate.job.id not in answers:
                answers[candidate.job.id] = (
                    "starts-soon",
                    f"it starts here within {candidate.wait_text}; a borrowed machine would take "
                    f"{threshold:.0f} s",
                )
        core_hour = paper.core_hour(self.pool)
        if paper.policy.min_value > 0:
            start = paper.policy.expected_start_cost.total_seconds()
            worthy = []
            for candidate in needy:
                if worth.pays(candidate, core_hour, start, paper.policy):
                    worthy.append(candidate)
                else:
                    self._not_worth(candidate, core_hour, start)
            needy = worthy
        return worth.by_urgency(needy)

    def _not_worth(self, candidate: Candidate, core_hour: float, start: float) -> None:
        cost = core_hour * max(candidate.job.cores, 1) * candidate.seconds / 3600
        self._answer(
            candidate,
            "not-worth",
            f"it would wait here {candidate.wait_text}, {candidate.gain(start):.2f} times its own "
            f"length more than elsewhere, and cost {cost:.4f} there: less than min_value "
            f"{self.paper.policy.min_value} for each unit of money",
        )

    # Buying

    def buy(self) -> bool:
        """Want one machine more, or those that one job lacks; False: there is no more to be done."""
        trip = self.trip
        if trip is None:
            return False
        while self.waiting:
            closed = self._closed(trip)
            if closed is not None:
                self.bar = closed
                return False
            head = self.waiting.popleft()
            barred = self._buy_for(trip, head)
            if barred is None:
                self.refusals = 0
                return True
            self.bar, self.refusals = barred, self.refusals + 1
            text = f"it would wait here {head.candidate.wait_text}, but {barred.message}"
            self._answer(head.candidate, barred.code, text)
            cheap = barred.code == "not-worth"
            if self.refusals >= (PATIENCE_WITH_PRICE if cheap else PATIENCE):
                return False
        return self.spares > 0 and self._buy_spare(trip)

    def _buy_for(self, trip: Trip, head: Left) -> Bar | None:
        """Want the machine on which `head` fits best, and fill it with those behind."""
        policy, job = self.paper.policy, head.candidate.job
        count = head.missing
        wanted = max(min(trip.total, trip.cores), job.cores)
        trip.total -= job.cores
        found = best(job, wanted if count == 1 else job.cores_a_node, self._in_stock(trip, count))
        if found is None:
            several = f"{count} machines" if count > 1 else "machine"
            text = f"no {several} of pool {self.pool.name} that can be had now is large enough"
            if count > 1:
                text = f"pool {self.pool.name} cannot have {count} large enough machines at once"
            return Bar("no-offer", text)
        offer = found.offer
        few = self._too_few(trip, count)
        if few is not None:
            return few
        jobs = [head] if count > 1 or job.nodes > 1 else self._fill(head, offer)
        candidates = [left.candidate for left in jobs]
        barred = self._bad_bargain(trip, found, candidates, count)
        limit = max(candidate.limit for candidate in candidates)
        reserve = money.first_reservation(offer.price_per_hour, limit, policy)
        free = self.paper.free.get(self.pool.tenant, Decimal(0))
        if barred is None and offer.price_per_hour and count * reserve > free:
            barred = _no_money(self.paper, self.pool, offer, reserve, count)
        if barred is not None:
            self.waiting.extendleft(reversed(jobs[1:]))
            return barred
        leases = [self._lease(trip, offer, reserve) for _ in range(self._now(trip, count))]
        trip.cores -= offer.cores * len(leases)
        trip.total -= sum(left.candidate.job.cores for left in jobs[1:])
        named = ", ".join(lease.id[:8] for lease in leases)
        for candidate in candidates:
            self.claimed.add(candidate.job.id)
            what = f"{len(leases)} of {offer.type}" if len(leases) > 1 else f"a {offer.type}"
            self._answer(
                candidate,
                "renting",
                f"it would wait here {candidate.wait_text}: {what} for "
                f"{offer.price_per_hour} an hour is asked for, lease {named}",
            )
        return None

    def _now(self, trip: Trip, count: int) -> int:
        """All of them; of an unproven pool's only so many as may prove it, the rest follows."""
        return count if trip.may_start is None else min(count, trip.may_start)

    def _in_stock(self, trip: Trip, count: int) -> list[Priced]:
        found = []
        for one in trip.offers:
            left = self.market.left(one.offer)
            if left is None or left >= count:
                found.append(one)
        return found

    def _too_few(self, trip: Trip, count: int) -> Bar | None:
        """What keeps a job from having so many machines at once, all of them."""
        if count == 1:
            return None
        name = self.pool.name
        if count > trip.room:
            return self._full(f"and {count} more are wanted at once")
        if count > len(trip.addresses):
            text = f"pool {name} has {len(trip.addresses)} inner addresses left, {count} are wanted"
            return Bar("no-address", text)
        return None

    def _bad_bargain(
        self, trip: Trip, offer: Priced, jobs: list[Candidate], count: int
    ) -> Bar | None:
        policy = self.paper.policy
        if policy.min_value <= 0:
            return None
        got = worth.value(jobs, offer.hour, count, policy, trip.billing)
        if got >= float(policy.min_value):
            return None
        text = (
            f"a {offer.offer.type} for it, and for what would run beside it, gains {got:.3g} times a "
            f"job's length for each unit of money, less than min_value {policy.min_value}"
        )
        return Bar("not-worth", text)

    def _fill(self, head: Left, offer: Offer) -> list[Left]:
        """`head` and those of the next that fit beside it, or after it before another machine could
        be there; they are taken out of `waiting`."""
        jobs = [head]
        cores = offer.cores - max(head.candidate.job.cores, 1)
        memory = usable_memory_mb(offer.memory_mb) - head.candidate.job.memory_mb
        horizon = start_threshold(self.paper.policy)
        soon = [(_seconds(head.candidate), max(head.candidate.job.cores, 1))]
        passed: list[Left] = []
        while self.waiting and len(passed) < LOOK_AHEAD:
            if cores <= 0 and soon[0][0] > horizon:
                break
            left = self.waiting.popleft()
            job, wanted = left.candidate.job, max(left.candidate.job.cores, 1)
            if job.nodes > 1 or not fits(job, offer):
                passed.append(left)
            elif wanted <= cores and job.memory_mb <= memory:
                jobs.append(left)
                cores -= wanted
                memory -= job.memory_mb
                heapq.heappush(soon, (_seconds(left.candidate), wanted))
            elif soon[0][0] <= horizon and soon[0][1] >= wanted:
                when, _ = heapq.heappop(soon)
                jobs.append(left)
                heapq.heappush(soon, (when + _seconds(left.candidate), wanted))
            else:
                passed.append(left)
        self.waiting.extendleft(reversed(passed))
        return jobs

    def _buy_spare(self, trip: Trip) -> bool:
        """A machine for nobody yet, the cheapest a core."""
        if self._closed(trip, for_spare=True) is not None:
            return False
        offers = self._in_stock(trip, 1)
        if not offers:
            return False
        offer = min(offers, key=lambda one: one.hour / one.cores).offer
        policy = self.paper.policy
        reserve = money.first_reservation(offer.price_per_hour, timedelta(0), policy)
        if offer.price_per_hour and reserve > self.paper.free.get(self.pool.tenant, Decimal(0)):
            return False
        self.spares -= 1
        self._lease(trip, offer, reserve)
        return True

    # What bars

    def _closed(self, trip: Trip, *, for_spare: bool = False) -> Bar | None:
        """What bars any further machine."""
        name = self.pool.name
        if trip.cores <= 0 and not for_spare:
            return Bar("on-the-way", "the machines asked for now will take it in turn")
        if trip.room <= 0:
            return self._full("")
        if trip.may_start is not None and trip.may_start <= 0:
            return _proving(trip.health, self.pool, self.paper)
        if not trip.addresses:
            return Bar("no-address", f"pool {name} has no inner address left")
        return None

    def _full(self, more: str) -> Bar:
        """At a cap: the pool's, or else its tenant's."""
        pool, most = self.pool, self.paper.policy.tenant_machines
        tail = f", {more}" if more else ""
        if self.market.machines.get(pool.tenant, 0) >= most:
            text = f"tenant {pool.tenant} may have {most} machines at most in all its pools{tail}"
            return Bar("tenant-cap", text)
        return Bar("cap", f"pool {pool.name} may have {pool.max_machines} machines at most{tail}")

    def _set_out(self) -> None:
        trip = self._trip()
        if isinstance(trip, Bar):
            self.bar = trip
            return
        self.trip = trip
        self.waiting = deque(self.left)

    def _trip(self) -> Trip | Bar:
        """What the pool may take now, or what bars it from anything; also asked when there is no
        work, since a pause is to be seen when idle."""
        paper, pool = self.paper, self.pool
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
                text = f"nothing could be had; tried again: {', '.join(blocked)}"
                return Bar("backing-off", text)
            types = ", ".join(pool.types) or "any type"
            error = f" ({provider.error})" if provider.error else ""
            return Bar("no-offer", f"provider {pool.provider} offers nothing of {types}{error}")
        candidates = [left.candidate for left in self.left]
        living = sum(lease.living for lease in paper.of_pool(pool))
        tenants = policy.tenant_machines - self.market.machines.get(pool.tenant, 0)
        return Trip(
            priced(offers, pool, policy, _typical(candidates, policy.default_job_time)),
            health,
            health.may_start(policy),
            min(pool.max_machines - living, tenants),
            worthwhile_cores(candidates, policy.expected_start_cost),
            sum(candidate.job.cores for candidate in candidates),
            _addresses(paper, pool) if self.left or self.spares else deque(),
            provider.billing,
        )

    # The end

    def close(self) -> None:
        """Say what came of it."""
        paper, pool = self.paper, self.pool
        if self.bar is not None:
            for left in self.left:
                candidate = left.candidate
                text = f"it would wait here {candidate.wait_text}, but {self.bar.message}"
                self._answer(candidate, self.bar.code, text)
        living = [lease for lease in paper.of_pool(pool) if lease.living]
        joined = sum(lease.state is LeaseState.JOINED for lease in living)
        counts = f"{joined} joined of {len(living)} leases, at most {pool.max_machines}"
        free = paper.free.get(pool.tenant)
        purse = f"; {free:.4f} of the budget free" if free is not None else "; no budget"
        wait = duration_text(timedelta(seconds=start_threshold(paper.policy)))
        work = (
            f"{len(self.needy)} jobs would wait here longer than {wait}, "
            f"{len(self.left)} of them beyond what there is or comes"
        )
        if self.bar is not None:
            text = f"{counts}{purse}; {work}; {self.bar.message}"
            paper.say("pool", pool.name, self.bar.code, text)
            return
        renting = any(lease.pool == pool.name for lease in paper.wants)
        paper.say("pool", pool.name, "renting" if renting else "ok", f"{counts}{purse}; {work}")

    def _answer(self, candidate: Candidate, code: str, message: str) -> None:
        if candidate.job.id not in self.paper.answers:
            self.paper.answer(candidate.job.id, code, message)

    def _lease(self, trip: Trip, offer: Offer, reserve: Decimal) -> Lease:
        paper, pool = self.paper, self.pool
        name = paper.new_id()
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
            address=trip.addresses.popleft(),
            gre_key=_key(name, self.market.keys),
            wanted=paper.world.now,
            reserved=reserve if offer.price_per_hour else Decimal(0),
        )
        paper.keep(lease)
        paper.by_pool.setdefault(pool.name, []).append(name)
        paper.wants.append(lease)
        self.market.hold(lease)
        self.market.take(offer)
        trip.room -= 1
        trip.may_start = None if trip.may_start is None else trip.may_start - 1
        return lease


def _seconds(candidate: Candidate) -> float:
    return candidate.takes or candidate.limit.total_seconds()


def _typical(candidates: list[Candidate], default: timedelta) -> timedelta:
    """The median length of the jobs a machine would be for."""
    if not candidates:
        return default
    return sorted(candidate.limit for candidate in candidates)[len(candidates) // 2]


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


def _no_money(paper: Round, pool: Pool, offer: Offer, reserve: Decimal, count: int) -> Bar:
    budget = paper.budget(pool.tenant)
    if budget is None:
        text = f"tenant {pool.tenant} has no budget, and a {offer.type} costs money"
        return Bar("no-budget", text)
    free = paper.free[pool.tenant]
    what = f"{count} of {offer.type}" if count > 1 else f"a {offer.type}"
    return Bar(
        "budget",
        f"{count * reserve:.4f} would have to be reserved for {what}, and of the {budget.limit} "
        f"of tenant {pool.tenant} {max(free, Decimal(0)):.4f} are free",
    )


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

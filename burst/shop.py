"""One pool's renting in one round: what its jobs lack, what is wanted for them, what bars more."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from burst import funds
from burst.actions import Reason
from burst.market import Bar, Market, Trip, proving, set_out, supplies
from burst.model import Lease, LeaseState, Offer, Pool
from burst.newlease import want
from burst.observe import duration_text
from burst.policy import money, worth
from burst.policy.demand import Candidate, Left, by_age, settled
from burst.policy.which import Priced, best, fits, usable_memory_mb
from burst.queue import Queue, start_threshold
from burst.round import Round

PATIENCE = 1000  # jobs in a row that cannot be served, after which the rest is not tried
PATIENCE_WITH_PRICE = 64  # jobs in a row that are not worth a machine
LOOK_AHEAD = 32  # jobs looked at to fill the rest of one machine


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
    unworthy: int = 0  # jobs that would wait too long, but are not worth a machine

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
        shop.left, served = settled(shop.needy, found, threshold)
        text = f"pool {pool.name} has a machine for it, or one is on its way"
        for candidate in served:
            claimed.add(candidate.job.id)
            shop._answer(candidate, "on-the-way", text)
        whole = sum(supply.cores > 0 and not supply.soon for supply in found)
        shop.spares = max(pool.spares - max(whole - len(shop.needy), 0), 0) if pool.spares else 0
        shop._set_out()
        return shop

    def _needy(self, queue: Queue, threshold: float) -> list[Candidate]:
        """Who has waited, would wait too long and is worth a machine, the most deserving first."""
        paper = self.paper
        now, urgent, claimed = paper.world.now, queue.urgent(self.pool), self.claimed
        young = now - paper.policy.min_job_age
        needy = [one for one in urgent if one.wait > threshold]
        if queue.pending and queue.pending[-1].submitted > young:
            needy = [one for one in needy if one.job.submitted <= young]
        if len(needy) < len(urgent):
            for one in urgent:
                if one.job.submitted > young or one.wait <= threshold:
                    self._not_needy(one, young, threshold)
        if claimed:
            needy = [one for one in needy if one.job.id not in claimed]
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
        return needy

    def _not_needy(self, candidate: Candidate, young: datetime, threshold: float) -> None:
        job, paper = candidate.job, self.paper
        if job.id in paper.answers:
            return
        late = by_age(job, paper.policy, paper.world.now) if job.submitted > young else None
        if late is not None:
            paper.answer(job.id, late.code, late.message)
            return
        text = f"it starts here within {candidate.wait_text}; a borrowed machine would take"
        paper.answer(job.id, "starts-soon", f"{text} {threshold:.0f} s")

    def _not_worth(self, candidate: Candidate, core_hour: float, start: float) -> None:
        self.unworthy += 1
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
        """Want one machine more, or those that one job lacks; False: there is no more to do."""
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
        account = self.pool.account
        if barred is None and offer.price_per_hour:
            all_of_them = count * reserve
            if all_of_them > self.paper.spendable(account):
                kind = f"{offer.type}, {count} of them" if count > 1 else offer.type
                barred = Bar(*funds.no_money(self.paper, account, kind, all_of_them))
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
            f"a {offer.offer.type} for it, and what would run beside it, gains {got:.3g} times a "
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
        if offer.price_per_hour and reserve > self.paper.spendable(self.pool.account):
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
            return proving(trip.health, self.pool, self.paper)
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
        trip = set_out(self.paper, self.pool, self.left, self.spares, self.market)
        if isinstance(trip, Bar):
            self.bar = trip
            return
        self.trip = trip
        self.waiting = deque(self.left)

    # The end

    def close(self) -> None:
        """Say what came of it."""
        paper, pool = self.paper, self.pool
        if self.bar is not None:
            answers, code, message = paper.answers, self.bar.code, self.bar.message
            for candidate, _ in self.left:
                name = candidate.job.id
                if name not in answers:
                    text = f"it would wait here {candidate.wait_text}, but {message}"
                    answers[name] = Reason("job", name, code, text)
        living = [lease for lease in paper.of_pool(pool) if lease.living]
        joined = sum(lease.state is LeaseState.JOINED for lease in living)
        counts = f"{joined} joined of {len(living)} leases, at most {pool.max_machines}"
        free = paper.free.get(pool.account)
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
        if self.unworthy and not self.needy:
            text = f"{counts}{purse}; {self.unworthy} jobs would wait here longer than {wait}, but "
            text += f"none is worth a machine's price, by min_value {paper.policy.min_value}"
            paper.say("pool", pool.name, "not-worth", text)
            return
        renting = any(lease.pool == pool.name for lease in paper.wants)
        paper.say("pool", pool.name, "renting" if renting else "ok", f"{counts}{purse}; {work}")

    def _answer(self, candidate: Candidate, code: str, message: str) -> None:
        if candidate.job.id not in self.paper.answers:
            self.paper.answer(candidate.job.id, code, message)

    def _lease(self, trip: Trip, offer: Offer, reserve: Decimal) -> Lease:
        address = trip.addresses.popleft()
        lease = want(self.paper, self.pool, offer, reserve, address, self.market.keys)
        self.market.hold(lease)
        self.market.take(offer)
        trip.room -= 1
        trip.may_start = None if trip.may_start is None else trip.may_start - 1
        return lease


def _seconds(candidate: Candidate) -> float:
    return candidate.takes or candidate.limit.total_seconds()

"""Flash requests, as the API's values: quoted, asked for, watched, cancelled."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation

from burst.flashing import Quote, pools_for, quote
from burst.model import Flash, Lease, LeaseState
from burst.policy import flash as policy
from burst.policy.money import accrued
from burst.round import Round
from gateway.api import models as m
from gateway.api.times import Refused, duration
from gateway.loops.burst import BurstLoop
from gateway.sitefile import SiteFile
from gateway.store import Store

LONGEST_DAYS = 30


class FlashView:
    def __init__(
        self,
        file: SiteFile,
        store: Store,
        clock: Callable[[], datetime],
        burst: BurstLoop | None,
        wake: Callable[[], None],
        why: Callable[[str, str], m.Why | None],
    ) -> None:
        self._file = file
        self._currency = file.burst.currency if file.burst else ""
        self._store = store
        self._clock = clock
        self._burst = burst
        self._wake = wake
        self._why = why

    def ask(
        self, *, tenant: str, cores: int, length: str, provider: str, max_cost: str, commit: bool
    ) -> m.FlashAsked:
        """A quote and, with `commit`, the standing request. Raises `Refused`: for what cannot be
        meant, and for a request of which nothing could be had."""
        paper = self._desk()
        now = self._clock()
        request = self._request(tenant, cores, length, provider, max_cost, now)
        if not pools_for(request, paper):
            self._no_pool(tenant, provider)
        told = quote(paper, request)
        shown = self._quoted(request, told)
        if not commit:
            return m.FlashAsked(flash=None, quote=shown)
        if self._burst is not None and self._burst.hold:
            raise Refused(f"nothing new is rented: {self._burst.hold}; `dvn burst resume` ends it")
        if not told.cores:
            why = "; ".join(told.short) or "nothing is offered"
            raise Refused(f"nothing could be had for this flash now: {why}")
        self._store.flashes.add(request)
        self._wake()
        return m.FlashAsked(flash=self._shown(request, (), now), quote=shown)

    def every(self, *, ended: bool = False) -> tuple[m.Flash, ...]:
        now = self._clock()
        found = self._store.flashes.all() if ended else self._store.flashes.active(now)
        leases = self._store.all_leases()
        return tuple(self._shown(flash, leases, now) for flash in found)

    def one(self, name: str) -> m.Flash:
        """By its id, or the unique beginning of it. Raises `Refused`."""
        return self._shown(self._find(name), self._store.all_leases(), self._clock())

    def cancel(self, name: str) -> m.Flash:
        """Its machines are ordinary ones from now on. Raises `Refused`."""
        found = self._find(name)
        if not self._store.flashes.cancel(found.id, self._clock()):
            raise Refused(f"flash {found.id} is over already")
        self._wake()
        return self.one(found.id)

    def _desk(self) -> Round:
        if self._burst is None:
            raise Refused("this site file has no `burst` section: nothing can be rented")
        paper = self._burst.desk()
        if paper is None:
            raise Refused("the daemon has not looked at the farm yet; ask again in a moment")
        return paper

    def _request(
        self, tenant: str, cores: int, length: str, provider: str, max_cost: str, now: datetime
    ) -> Flash:
        burst = self._file.burst
        if tenant not in self._file.site.tenants:
            known = ", ".join(sorted(self._file.site.tenants))
            raise Refused(f"there is no tenant {tenant!r}; there is: {known}")
        if provider and burst is not None and provider not in burst.providers:
            known = ", ".join(sorted(burst.providers))
            raise Refused(f"there is no provider {provider!r}; there is: {known}")
        time = duration(length)
        if time.days >= LONGEST_DAYS:
            raise Refused(f"{length} is longer than {LONGEST_DAYS} days; ask for less")
        return Flash(
            id=secrets.token_hex(4),
            tenant=tenant,
            cores=cores,
            asked=now,
            ends=now + time,
            provider=provider,
            max_cost=_amount(max_cost),
        )

    def _no_pool(self, tenant: str, provider: str) -> None:
        at = f" at provider {provider}" if provider else ""
        pools = [pool for pool in self._file.pools if pool.tenant == tenant]
        has = ", ".join(f"{pool.name} ({pool.provider})" for pool in pools) or "none"
        raise Refused(f"tenant {tenant} has no pool{at}; it has: {has}")

    def _find(self, name: str) -> Flash:
        every = self._store.flashes.all()
        found = [flash for flash in every if name and flash.id.startswith(name)]
        if len(found) != 1:
            many = f"{len(found)} flashes begin with" if found else "there is no flash"
            raise Refused(f"{many} {name!r}; see `dvn burst flash`")
        return found[0]

    def _quoted(self, request: Flash, told: Quote) -> m.Quote:
        return m.Quote(
            tenant=request.tenant,
            cores=request.cores,
            got=told.cores,
            ends=request.ends,
            parts=tuple(
                m.Part(
                    pool=part.pool,
                    provider=part.provider,
                    type=part.type,
                    count=part.count,
                    cores=part.cores,
                    price_per_hour=part.price_per_hour,
                    unit=part.unit or self._currency,
                    spot=part.spot,
                )
                for part in told.parts
            ),
            cost={unit or self._currency: amount for unit, amount in told.cost.items()},
            reserved={unit or self._currency: amount for unit, amount in told.reserved.items()},
            short=told.short,
            slow=told.slow,
        )

    def _shown(self, flash: Flash, leases: tuple[Lease, ...], now: datetime) -> m.Flash:
        mine = [lease for lease in leases if lease.flash == flash.id]
        serving = policy.serving(flash, mine)
        joined = sum(lease.cores for lease in serving if lease.state is LeaseState.JOINED)
        spent = sum((accrued(lease, now) for lease in mine), Decimal(0))
        rest = sum(
            (
                policy.cost_of(lease.price_per_hour, now, flash.ends)
                for lease in serving
                if flash.active(now)
            ),
            Decimal(0),
        )
        state = "cancelled" if flash.cancelled else "active" if flash.active(now) else "ended"
        return m.Flash(
            id=flash.id,
            tenant=flash.tenant,
            provider=flash.provider,
            cores=flash.cores,
            asked=flash.asked,
            ends=flash.ends,
            max_cost=flash.max_cost,
            state=state,
            joined=joined,
            coming=sum(lease.cores for lease in serving) - joined,
            machines=dict(Counter(lease.state.value for lease in mine)),
            cost=spent,
            committed=spent + rest,
            why=self._why("flash", flash.id),
        )


def _amount(text: str) -> Decimal | None:
    if not text:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise Refused(f"{text!r} is not an amount of money; write it like 25.00")
    return amount

"""The simulated worlds of `lab.simulated` with budgets of several periods, quotas and flashes.

The whole controller, the real store, kills between any two calls and within transactions, and
requests that are lost, repeated and refused. A world begins 40 minutes before a month ends. What
machines cost is the simulated cloud's own bill: no budget is asked whether it was kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from burst.model import Flash
from burst.money.limits import bounds
from burst.money.prices import CORE_HOURS, Pricing
from burst.policy import money
from burst.providers.ec2 import Ec2Provider
from gateway.loops.books import Books
from gateway.loops.lending import LazyProvider
from gateway.sections import BudgetConfig, QuotaConfig
from gateway.store import Store
from lab.simulated import ec2, farm, guests, invariants, network, site, story
from lab.simulated import world as base
from lab.simulated.faults import Broken

BEGIN = datetime(2024, 1, 31, 23, 50, tzinfo=UTC)
_ALL = Decimal(10) ** 12


class MoneyWorld(base.World):
    quota = False
    with_flash = False

    def __init__(self, seed: int, store: Store) -> None:
        self.budgets: dict[str, BudgetConfig] = {}
        self.quotas: dict[str, dict[str, QuotaConfig]] = {}
        self.flashes: list[Flash] = []
        super().__init__(seed, store=store)
        for tenant, limit in self.limits.items():
            self._limit(tenant, limit, soft=seed % 3 == 0)
        self.limits = dict.fromkeys(self.limits, _ALL)  # ours are checked by `always`
        self._use_books()
        if self.with_flash:
            self._ask_flash()

    def _limit(self, tenant: str, limit: Decimal, *, soft: bool) -> None:
        most = limit * (10 if self.quota else 1)
        some = most / 2 if soft else None
        if self.quota:
            self.quotas[tenant] = {
                "aws": QuotaConfig.model_validate({"core_hours": most, "soft": some})
            }
        else:
            day = {"limit": most * Decimal("0.6"), "period": "day"}
            self.budgets[tenant] = BudgetConfig.model_validate(
                {"limit": most, "soft": some, "also": [day]}
            )

    def _begin(self) -> None:
        super()._begin()
        self._use_books()

    def _use_books(self) -> None:
        self.books = Books(self.store, self.budgets, self.gateway_now, quotas=self.quotas)
        self.loop.books = self.books

    def _ask_flash(self) -> None:
        for pool in self.pools:
            limit = self.books.limits(pool.account)[0].limit
            flash = Flash(
                id=f"{self.seed:04x}{pool.tenant}",
                tenant=pool.tenant,
                cores=self.rng.choice([2, 6, 12]),
                asked=self.now,
                ends=self.now + timedelta(minutes=self.rng.choice([5, 20, 45])),
                max_cost=self.rng.choice([None, limit / 4, limit / 20]),
            )
            self.store.flashes.add(flash)
            self.flashes.append(flash)

    def bill(self, tenant: str, since: datetime, until: datetime, flash: str | None = None) -> Any:
        """What the cloud charges for that part of its machines' lives."""
        leases = {lease.id: lease for lease in self.store.all_leases()} if flash else {}
        total = Decimal(0)
        for one in self.ec2.instances.values():
            lease = leases.get(self.lease_of(one))
            if one.tags.get("dvn:tenant") != tenant or (
                flash and (not lease or lease.flash != flash)
            ):
                continue
            start, end = max(one.launched, since), min(one.ended or until, until)
            if end > start:
                total += money.price_of(one.price, end - start)
        return total


def always(world: MoneyWorld) -> None:
    """Under each limit of each period: what is spent and reserved, and the cloud's bill."""
    for pool in world.pools:
        limits = world.books.limits(pool.account)
        # The gateway's clock may be wrong; then its periods are not those of the world.
        for limit, bound in zip(limits, bounds(limits, world.now), strict=True):
            spent = world.store.spent(pool.account, bound.since)
            used = spent + world.store.reserved(pool.account)
            if used > limit.limit:
                raise Broken(f"{used} are spent and reserved of {limit}")
            bill = world.bill(pool.tenant, bound.since, world.now)
            if bill > limit.limit:
                raise Broken(f"the bill since {bound.since} is {bill} of {limit}")
    for flash in world.flashes:
        if flash.max_cost is not None:
            bill = world.bill(flash.tenant, BEGIN, min(world.now, flash.ends), flash.id)
            if bill > flash.max_cost:
                raise Broken(f"flash {flash.id} cost {bill} of {flash.max_cost}")


def at_the_end(world: MoneyWorld) -> None:
    """All is settled, nothing reserved, and the books add up to the last millionth."""
    for pool in world.pools:
        spent = world.store.spent(pool.account, BEGIN - timedelta(days=1))
        bill = world.ec2.bill(pool.tenant)
        if spent < bill:
            raise Broken(f"settled {spent}, but the bill is {bill}")
        if world.store.reserved(pool.account):
            raise Broken("money is still reserved")
    uses = world.store.accounts.uses(world.now)
    settled = sum((lease.cost for lease in world.store.all_leases()), Decimal(0))
    if sum((use.amount for use in uses), Decimal(0)) != settled:
        raise Broken("the books do not add up to what was settled")


def prepare(monkeypatch: pytest.MonkeyPatch, **options: bool) -> type[MoneyWorld]:
    """The kind of world; `quota`: in core-hours; `with_flash`: with a standing request."""
    kind = type("Prepared", (MoneyWorld,), dict(options))
    for module in (base, ec2, farm, guests, invariants, network, site, story):
        if hasattr(module, "EPOCH"):
            monkeypatch.setattr(module, "EPOCH", BEGIN)
    usual = invariants.always

    def both(world: MoneyWorld) -> None:
        usual(world)
        always(world)

    monkeypatch.setattr(invariants, "always", both)
    monkeypatch.setattr(invariants, "at_the_end", at_the_end)
    if options.get("quota"):
        prices: Mapping[str, Decimal] = {name: Decimal(n) for name, n in site.CORES.items()}
        monkeypatch.setattr(base, "POOLS", tuple(replace(p, unit=CORE_HOURS) for p in site.POOLS))
        monkeypatch.setattr(ec2, "PRICES", prices)

        def provider(name: str, config: Any, client: Any) -> LazyProvider:
            made = Ec2Provider(name, config, client=client)
            return LazyProvider(name, lambda: made, lambda: Pricing(quota=True))

        monkeypatch.setattr(base, "Ec2Provider", provider)
    return kind

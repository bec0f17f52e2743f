"""The store as the burst engine sees it: with the clock, and each account's limits, filled in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

from burst.model import Budget, Lease, account_of
from burst.money.limits import Limit, bounds, budgets, tightest
from burst.money.prices import CORE_HOURS
from gateway.sections import BudgetConfig, QuotaConfig
from gateway.store import Store

log = logging.getLogger(__name__)


class Books:
    """Implements `burst.execute.LeaseStore`. An account without a budget may borrow what costs
    nothing."""

    def __init__(
        self,
        store: Store,
        budgets: Mapping[str, BudgetConfig],
        clock: Callable[[], datetime],
        changed: Callable[[], None] = lambda: None,
        quotas: Mapping[str, Mapping[str, QuotaConfig]] | None = None,
    ) -> None:
        """`budgets` by tenant; `quotas` by tenant and provider."""
        self._store = store
        self._limits: dict[str, tuple[Limit, ...]] = {
            tenant: config.limits() for tenant, config in budgets.items()
        }
        self._units: dict[str, str] = {}
        for tenant, providers in (quotas or {}).items():
            for provider, quota in providers.items():
                account = account_of(tenant, provider, CORE_HOURS)
                self._limits[account] = quota.limits()
                self._units[account] = CORE_HOURS
        self._clock = clock
        self._changed = changed

    def lease(self, lease_id: str) -> Lease | None:
        return self._store.lease(lease_id)

    def want(self, lease: Lease) -> bool:
        now = self._clock()
        limits = self._limits.get(lease.account, ())
        return self._store.want(lease, now, bounds=bounds(limits, now))

    def update(self, lease: Lease) -> None:
        if self._store.save(lease, self._clock()):
            why = f" failure={lease.failure.kind.value}" if lease.failure else ""
            log.info(
                "event=lease lease=%s node=%s state=%s%s", lease.id, lease.node, lease.state, why
            )
            self._changed()

    def limits(self, account: str) -> tuple[Limit, ...]:
        """Of one account; none if it may borrow only what costs nothing."""
        return self._limits.get(account, ())

    def update_all(self, leases: Sequence[Lease]) -> None:
        changed = self._store.save_all(leases, self._clock())
        for lease in changed:
            log.info("event=lease lease=%s node=%s state=%s", lease.id, lease.node, lease.state)
        if changed:
            self._changed()

    def members(self, batch: str) -> Sequence[Lease]:
        return self._store.members(batch)

    def every(self) -> dict[str, tuple[Budget, ...]]:
        """Every limit of the site file as it stands now, by account."""
        return {account: self.of(account) for account in self._limits}

    def of(self, account: str) -> tuple[Budget, ...]:
        """The limits of one account as they stand now."""
        return budgets(
            account,
            self._units.get(account, ""),
            self.limits(account),
            partial(self._store.spent, account),
            self._store.reserved(account),
            self._clock(),
        )

    def budgets(self) -> dict[str, Budget]:
        """Of each account the limit that allows least now."""
        found = ((account, tightest(several)) for account, several in self.every().items())
        return {account: budget for account, budget in found if budget is not None}

"""The store as the burst engine sees it: with the clock, and each tenant's limit, filled in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal

from burst.model import Budget, Lease
from gateway.sections import BudgetConfig
from gateway.store import Store

log = logging.getLogger(__name__)

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class Books:
    """Implements `burst.execute.LeaseStore`. A tenant without a budget has a limit of 0: it may
    borrow what costs nothing."""

    def __init__(
        self,
        store: Store,
        budgets: Mapping[str, BudgetConfig],
        clock: Callable[[], datetime],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._budgets = budgets
        self._clock = clock
        self._changed = changed

    def lease(self, lease_id: str) -> Lease | None:
        return self._store.lease(lease_id)

    def want(self, lease: Lease) -> bool:
        now = self._clock()
        limit, since = self._limit(lease.tenant, now)
        return self._store.want(lease, now, limit=limit, since=since)

    def update(self, lease: Lease) -> None:
        if self._store.save(lease, self._clock()):
            why = f" failure={lease.failure.kind.value}" if lease.failure else ""
            log.info(
                "event=lease lease=%s node=%s state=%s%s", lease.id, lease.node, lease.state, why
            )
            self._changed()

    def budgets(self) -> dict[str, Budget]:
        """Every budget of the site file as it stands now."""
        now = self._clock()
        return {
            tenant: Budget(
                tenant=tenant,
                limit=config.limit,
                spent=self._store.spent(tenant, config.since(now)),
                reserved=self._store.reserved(tenant),
            )
            for tenant, config in self._budgets.items()
        }

    def _limit(self, tenant: str, now: datetime) -> tuple[Decimal, datetime]:
        config = self._budgets.get(tenant)
        return (Decimal(0), _EVER) if config is None else (config.limit, config.since(now))

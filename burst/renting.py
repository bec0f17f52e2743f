"""Fifth pass: want machines for the work that nothing on its way will serve.

Each tenant goes through its pools in the site's order, then by what an hour really costs there.
Tenants take turns, whoever holds least first (max-min fairness, D. Bertsekas and R. Gallager, "Data
Networks", 6.5.2), so that a scarce offer is shared and not taken whole by the first in the file.
Nothing is remembered between rounds: what is on its way counts as supply, so demand that cannot be
met now does not pile up.
"""

from __future__ import annotations

from collections.abc import Iterator

from burst.market import Market
from burst.model import Pool
from burst.policy.which import ranked, real_hour
from burst.queue import Queue
from burst.round import Round
from burst.shop import Shop


def rent(paper: Round, queue: Queue) -> None:
    if paper.world.facts.farm is None:
        return
    market = Market.of(paper)
    claimed: set[str] = set()
    for heat in _heats(paper):
        shops = [Shop.enter(paper, queue, pool, claimed, market) for pool in heat]
        buying = [shop for shop in shops if shop.open]
        while buying:
            shop = min(buying, key=lambda one: market.held.get(one.pool.tenant, 0))
            if not shop.buy():
                buying.remove(shop)
        for shop in shops:
            shop.close()


def _heats(paper: Round) -> Iterator[list[Pool]]:
    """Each tenant's first pool, then each one's second, and so on."""
    by_tenant: dict[str, list[Pool]] = {}
    for pool in paper.pools:
        by_tenant.setdefault(pool.tenant, []).append(pool)
    if all(len(pools) == 1 for pools in by_tenant.values()):
        yield list(paper.pools)
        return
    ordered = {
        tenant: sorted(pools, key=lambda pool: _preference(paper, pool))
        for tenant, pools in by_tenant.items()
    }
    for turn in range(max(len(pools) for pools in ordered.values())):
        yield [pools[turn] for pools in ordered.values() if turn < len(pools)]


def _preference(paper: Round, pool: Pool) -> tuple[int, bool, float]:
    """The site's order; whether its tunnels are well; what a core-hour really costs there."""
    facts = paper.world.facts
    provider = facts.providers.get(pool.provider)
    offers = ranked(provider.offers, pool.types) if provider else []
    length = paper.policy.default_job_time
    hours = [real_hour(one, pool, paper.policy, length) / max(one.cores, 1) for one in offers]
    links = [facts.links[lease.id] for lease in paper.of_pool(pool) if lease.id in facts.links]
    sick = sum(not link.up or link.state == "degraded" for link in links)
    return pool.rank, 2 * sick > len(links), min(hours, default=float("inf"))

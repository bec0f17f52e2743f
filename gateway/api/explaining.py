"""The long answer to "why?": what was looked at, the rule, and what would change the outcome."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import datetime, timedelta

from burst.model import Budget, Job, Lease, Policy, Pool, ProviderFacts
from burst.money.limits import until
from burst.observe import duration_text
from burst.rules import Rule, rule_of
from gateway.api import models as m

_MONEY = ("budget", "soft-budget", "over-budget", "flash-budget")


def rule_for(why: m.Why | None) -> Rule | None:
    return None if why is None else rule_of(why.code)


def of_policy(rule: Rule | None, policy: Policy) -> list[m.Fact]:
    """The numbers of the site that the rule uses."""
    known = {field.name for field in fields(policy)}
    names = [name for name in rule.uses if name in known] if rule else []
    return [_fact(f"policy.{name}", getattr(policy, name)) for name in names]


def of_job(job: Job, now: datetime) -> list[m.Fact]:
    waited = (job.started or now) - job.submitted
    found = [
        _fact("state", job.state.value),
        _fact("cores", job.cores),
        _fact("nodes", job.nodes),
        _fact("memory", f"{job.memory_mb} MiB"),
        _fact("time limit", job.time_limit or "none"),
        _fact("waited", waited),
        _fact("partitions", ", ".join(job.partitions)),
        _fact("user", job.user),
    ]
    if job.account:
        found.append(_fact("account", job.account))
    if job.features:
        found.append(_fact("features", ", ".join(job.features)))
    if job.needs:
        found.append(_fact("needs", ", ".join(job.needs)))
    if job.comment:
        found.append(_fact("comment", job.comment))
    if job.reason:
        found.append(_fact("batch system's reason", job.reason))
    return found


def of_lease(lease: Lease, cost: object, currency: str) -> list[m.Fact]:
    unit = lease.unit or currency
    found = [
        _fact("pool", lease.pool),
        _fact("machine", f"{lease.machine or 'none yet'} ({lease.type}{_spot(lease.spot)})"),
        _fact("price", f"{lease.price_per_hour} {unit} an hour"),
        _fact("cost until now", f"{cost} {unit}"),
        _fact("reserved", f"{lease.reserved} {unit}"),
        _fact("launch attempts", lease.launch_attempts),
    ]
    if lease.flash:
        found.append(_fact("flash", lease.flash))
    if lease.retry_after is not None:
        found.append(_fact("not tried before", lease.retry_after.isoformat(timespec="seconds")))
    return found


def of_pool(
    pool: Pool,
    living: Sequence[Lease],
    provider: ProviderFacts | None,
    budgets: Sequence[Budget],
    currency: str,
    used: Collection[str],
    prefix: str = "",
) -> list[m.Fact]:
    """`used` are inner addresses that somebody has."""
    free = sum(address not in used for address in pool.addresses)
    found = [
        _fact("machines", f"{len(living)} of at most {pool.max_machines}"),
        _fact("addresses", f"{free} free of {len(pool.addresses)}"),
    ]
    if provider is None or provider.machines is None:
        why = f": {provider.error}" if provider and provider.error else ""
        found.append(_fact(f"provider {pool.provider}", f"does not answer{why}"))
    for offer in provider.offers if provider else ():
        if not pool.types or offer.type in pool.types:
            stock = "" if offer.available is None else f", {offer.available} to be had"
            what = f"{offer.cores} cores, {offer.memory_mb} MiB"
            price = f"{offer.price_per_hour} {offer.unit or currency} an hour"
            name = f"offer {offer.type}{_spot(offer.spot)}"
            found.append(_fact(name, f"{what}, {price}{stock}"))
    found += of_budgets(budgets, currency)
    return [m.Fact(name=prefix + fact.name, value=fact.value) for fact in found]


def of_budgets(budgets: Sequence[Budget], currency: str) -> list[m.Fact]:
    return [
        _fact(
            f"budget of each {one.period}" if one.period != "ever" else "budget",
            f"{one.spent:.4f} spent and {one.reserved:.4f} reserved of {one.limit} "
            f"{one.unit or currency}"
            + (f", soft limit {one.soft}" if one.soft is not None else ""),
        )
        for one in budgets
    ]


def changes(
    why: m.Why | None, rule: Rule | None, budgets: Sequence[Budget], now: datetime
) -> tuple[str, ...]:
    """What would change the outcome; of money also when the next period begins."""
    found = list(rule.change) if rule else []
    if why is not None and why.code in _MONEY:
        for one in budgets:
            end = until(one.period, now) if one.period else None  # type: ignore[arg-type]
            if end is not None:
                found.append(f"the next {one.period} begins {end:%Y-%m-%d %H:%M} UTC")
    return tuple(found)


def _fact(name: str, value: object) -> m.Fact:
    return m.Fact(
        name=name, value=duration_text(value) if isinstance(value, timedelta) else str(value)
    )


def _spot(spot: bool) -> str:
    return ", spot" if spot else ""

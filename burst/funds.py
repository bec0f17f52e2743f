"""Third pass: money for what already runs, before any is promised to anything new."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from burst.model import JobState, Lease, LeaseState, Pool
from burst.observe import stop
from burst.policy import flash, money
from burst.policy.when import limit_of, remaining
from burst.round import ACCEPTING, COMING, Round

S = LeaseState


def carry(paper: Round) -> None:
    """Keep each reservation ahead of its cost; let go what the budget cannot carry on."""
    longest = {pool.name: longest_routed(paper, pool) for pool in paper.pools}
    for lease in list(paper.leases.values()):
        if not lease.living or not (lease.machine or lease.maybe_launched):
            continue
        spare = longest.get(lease.pool, timedelta(0)) if lease.state in ACCEPTING else None
        busy = max(busy_time(paper, lease), _promised(paper, lease))
        free = paper.free.get(lease.account, Decimal(0))
        cover = money.cover(lease, busy, free, paper.world.now, paper.policy, spare)
        if cover.reserved != lease.reserved:
            lease = replace(lease, reserved=cover.reserved)
            paper.keep(lease)
        if not cover.lacking:
            continue
        why = f"budget: {_state_of(paper, lease.account)}; it lacks {cover.lacking:.4f} to go on"
        if lease.state in (*COMING, *ACCEPTING):
            paper.see(replace(lease, stop_reason=lease.stop_reason or why), stop(lease))
        else:
            paper.say("lease", lease.id, "over-budget", why)


def busy_time(paper: Round, lease: Lease) -> timedelta:
    """How much longer the jobs on its node may take."""
    now, default = paper.world.now, paper.policy.default_job_time
    jobs = paper.world.jobs_on.get(lease.node, ())
    left = [remaining(job, now, default) for job in jobs if job.state is JobState.RUNNING]
    return max(left, default=timedelta(0))


def _promised(paper: Round, lease: Lease) -> timedelta:
    """How much longer a flash wants it."""
    ends = flash.kept_until(lease, paper.world.facts)
    return ends - paper.world.now if ends is not None else timedelta(0)


def longest_routed(paper: Round, pool: Pool) -> timedelta:
    """The longest time limit among pending jobs that the LRMS might start in the pool."""
    default = paper.policy.default_job_time
    routed = (limit_of(job, default) for job in paper.routed.get(pool.partition, ()))
    return max(routed, default=timedelta(0))


def purse_of(paper: Round, lease: Lease) -> money.Purse:
    """What the lease could still spend on one more job."""
    needed = busy_time(paper, lease) + paper.policy.return_time
    rest = (
        lease.reserved
        - money.accrued(lease, paper.world.now)
        - money.price_of(lease.price_per_hour, needed)
    )
    return money.Purse(lease.price_per_hour, rest)


def top_up(paper: Round, leases: list[Lease], limit: timedelta) -> None:
    """Reserve for each of the leases so that it can take a job of this limit; the caller knows
    that the budget has it. What is left is shared out up to one step each, to write less often."""
    if not leases:
        return
    purses = {lease.id: purse_of(paper, lease) for lease in leases}
    free = paper.free.get(leases[0].account, Decimal(0))
    share = max(free - money.extra_for(list(purses.values()), limit), Decimal(0)) / len(leases)
    for lease in leases:
        lack = money.extra_for([purses[lease.id]], limit)
        if lack > 0:
            more = lack + min(money.step_of(lease.price_per_hour, paper.policy), _floor(share))
            paper.keep(replace(lease, reserved=lease.reserved + more))


def _floor(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.000001"), "ROUND_FLOOR")


def _state_of(paper: Round, account: str) -> str:
    budget = paper.budget(account)
    if budget is None:
        return f"tenant {account} has none"
    return f"of {budget.limit} of tenant {account}, {budget.spent:.4f} are spent"


def no_money(paper: Round, account: str, kind: str, reserve: Decimal) -> tuple[str, str]:
    """Code and message of why `reserve` cannot be had for machines of this kind."""
    budget = paper.budget(account)
    if budget is None:
        return "no-budget", f"tenant {account} has no budget, and a {kind} costs money"
    free = max(paper.free.get(account, Decimal(0)), Decimal(0))
    wanted = f"{reserve:.4f} would have to be reserved for a {kind}"
    if budget.soft is not None and reserve <= free:
        used = budget.limit - free
        text = (
            f"{wanted}, and {used:.4f} of tenant {account} are spent or reserved, of {budget.soft} "
            f"at which its budget rents nothing new (its hard limit is {budget.limit})"
        )
        return "soft-budget", text
    return "budget", f"{wanted}, and of the {budget.limit} of tenant {account} {free:.4f} are free"

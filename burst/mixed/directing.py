"""Which jobs run on bare metal and which in virtual machines, where the site decides and not the
job: by queue, user, group, account or job feature. Pure.

WNoDeS had queues for it (BATCH_REAL for bare metal, BATCH for machines); here it is a list of
rules, and the first that fits a job counts. A job that no rule fits goes where there is room.

What is said here is said to `decide` as facts it knows already: a job bound to bare metal asks for
a feature that no borrowed machine has; one bound to machines waits in the machines' partition
alone, and two actions make it so in the batch system.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from burst.actions import Action, Route, Unroute
from burst.model import Farm, Job, JobState, Pool

BARE_METAL = "bare-metal"  # the feature that no machine has; `dvn burst explain` names it


class Place(StrEnum):
    METAL = "bare-metal"
    MACHINES = "machines"


@dataclass(frozen=True, slots=True)
class Rule:
    """Fits a job that is in one of each list that is not empty, and asks for all `features`."""

    to: Place
    partitions: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()  # of the user, on the gateway host
    accounts: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def fits(self, job: Job, groups_of: Callable[[str], Collection[str]]) -> bool:
        return (
            _meets(self.partitions, job.partitions)
            and _meets(self.users, (job.user,))
            and _meets(self.accounts, (job.account,))
            and set(self.features) <= set(job.features)
            and (not self.groups or _meets(self.groups, groups_of(job.user)))
        )


@dataclass(frozen=True, slots=True)
class Directed:
    """The farm as it will be, for `decide`; and what makes it so."""

    farm: Farm
    actions: tuple[Action, ...] = ()


def directed(
    farm: Farm,
    rules: Sequence[Rule],
    pools: Sequence[Pool],
    groups_of: Callable[[str], Collection[str]],
) -> Directed:
    """Every waiting job bound to its place. A running one stays where it is."""
    if not rules:
        return Directed(farm)
    jobs: list[Job] = []
    actions: list[Action] = []
    for job in farm.jobs:
        rule = _rule(job, rules, groups_of) if job.state is JobState.PENDING else None
        if rule is None:
            jobs.append(job)
        elif rule.to is Place.METAL:
            jobs.append(_on_metal(job, pools, actions))
        else:
            jobs.append(_in_machine(job, pools, actions))
    return Directed(replace(farm, jobs=tuple(jobs)), tuple(actions))


def _rule(
    job: Job, rules: Sequence[Rule], groups_of: Callable[[str], Collection[str]]
) -> Rule | None:
    return next((rule for rule in rules if rule.fits(job, groups_of)), None)


def _on_metal(job: Job, pools: Sequence[Pool], actions: list[Action]) -> Job:
    """Also one that was offered to machines before the rule was made is taken back; unless it is
    nowhere else, and would be lost."""
    borrowed = [pool.partition for pool in pools if pool.partition in job.partitions]
    kept = tuple(name for name in job.partitions if name not in borrowed)
    if kept:
        actions += [Unroute(job.id, name) for name in borrowed]
        job = replace(job, partitions=kept)
    return replace(job, features=(*job.features, BARE_METAL))


def _in_machine(job: Job, pools: Sequence[Pool], actions: list[Action]) -> Job:
    """Into the partition of the first pool that takes it, and out of all others."""
    pool = next((pool for pool in pools if _takes(pool, job)), None)
    if pool is None or job.partitions == (pool.partition,):
        return job  # no pool is for it: `decide` says why
    if pool.partition not in job.partitions:
        actions.append(Route(job.id, pool.partition))
    others = [name for name in job.partitions if name != pool.partition]
    actions += [Unroute(job.id, name) for name in others]
    return replace(job, partitions=(pool.partition,))


def _takes(pool: Pool, job: Job) -> bool:
    named = job.user in pool.users or job.account in pool.accounts
    return (
        bool({pool.partition, *pool.from_partitions} & set(job.partitions))
        and (named or not (pool.users or pool.accounts))
        and set(job.features) <= set(pool.features)
    )


def _meets(wanted: Collection[str], found: Collection[str]) -> bool:
    return not wanted or any(name in wanted for name in found)

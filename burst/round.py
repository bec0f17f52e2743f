"""The scratch paper of one decision: what the passes of `decide` read and write.

It lives for one call only. Passes change `leases` and `free`, and note actions and reasons; the
order in which the actions come out is fixed here, once: a lease is stored before anything is done
about it, and money is reserved before a job is sent where it costs money.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from burst.actions import (
    Action,
    Admit,
    Decision,
    Drain,
    Launch,
    Reason,
    Remove,
    Subject,
    Terminate,
    Update,
    Want,
)
from burst.leases import Effect, Observation, step
from burst.model import Budget, Failure, Job, JobState, Lease, LeaseState, Machine, Policy, Pool
from burst.observe import OPEN, World
from burst.policy.which import ranked, real_hour

ACCEPTING = (LeaseState.TUNNELLED, LeaseState.JOINED)
COMING = (LeaseState.WANTED, LeaseState.REQUESTED, LeaseState.BOOTING, LeaseState.TUNNELLED)


@dataclass(slots=True)
class Round:
    world: World
    pools: Sequence[Pool]
    policy: Policy
    new_id: Callable[[], str]
    leases: dict[str, Lease]  # as they will be
    effects: dict[str, list[Effect]] = field(default_factory=dict)
    wants: list[Lease] = field(default_factory=list)
    routes: list[Action] = field(default_factory=list)
    housekeeping: list[Action] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    free: dict[str, Decimal] = field(default_factory=dict)  # money, by account
    by_pool: dict[str, list[str]] = field(default_factory=dict)  # lease ids, oldest first
    answers: dict[str, Reason] = field(default_factory=dict)  # by job id
    routed: Mapping[str, Sequence[Job]] = field(default_factory=dict)  # waiting, by our partitions
    core_hours: dict[str, float] = field(default_factory=dict)  # by pool
    pool_names: frozenset[str] = frozenset()
    spares: Mapping[str, int] = field(default_factory=dict)  # by pool

    @classmethod
    def begin(
        cls, world: World, pools: Sequence[Pool], policy: Policy, new_id: Callable[[], str]
    ) -> Round:
        ordered = sorted(world.facts.leases, key=lambda lease: (lease.wanted, lease.id))
        paper = cls(world, pools, policy, new_id, {lease.id: lease for lease in ordered})
        paper.free = {account: budget.free for account, budget in world.facts.budgets.items()}
        paper.pool_names = frozenset(pool.name for pool in pools)
        paper.spares = {pool.name: pool.spares for pool in pools}
        for lease in ordered:
            paper.by_pool.setdefault(lease.pool, []).append(lease.id)
        return paper

    def of_pool(self, pool: Pool) -> list[Lease]:
        return [self.leases[lease_id] for lease_id in self.by_pool.get(pool.name, [])]

    def accepting(self, pool: Pool) -> list[Lease]:
        """Leases whose node takes jobs, or will at any moment."""
        return [lease for lease in self.of_pool(pool) if lease.state in ACCEPTING]

    def coming(self, pool: Pool) -> list[Lease]:
        return [lease for lease in self.of_pool(pool) if lease.state in COMING]

    def budget(self, account: str) -> Budget | None:
        return self.world.facts.budgets.get(account)

    def spendable(self, account: str) -> Decimal:
        """What may be reserved for new machines: up to the soft limit, where there is one."""
        budget = self.budget(account)
        free = self.free.get(account, Decimal(0))
        if budget is None or budget.soft is None:
            return free
        return min(free, free - (budget.limit - budget.soft))

    def core_hour(self, pool: Pool) -> float:
        """What the cheapest core-hour of the pool really costs now; 0 if nothing is offered."""
        if pool.name not in self.core_hours:
            provider = self.world.facts.providers.get(pool.provider)
            offers = ranked(provider.offers, pool.types) if provider else []
            length = self.policy.default_job_time
            hours = [real_hour(o, pool, self.policy, length) / max(o.cores, 1) for o in offers]
            self.core_hours[pool.name] = min(hours, default=0.0)
        return self.core_hours[pool.name]

    def see(self, lease: Lease, seen: Observation, failure: Failure | None = None) -> Lease:
        """One row of the table; a change of state makes earlier effects void."""
        after, effect = step(lease, seen, self.world.now, failure)
        if after.state is not lease.state:
            self.effects[lease.id] = []
        if effect is not None:
            self.effects.setdefault(lease.id, []).append(effect)
        self.keep(after)
        return after

    def keep(self, lease: Lease) -> None:
        """Note the lease as it is now, and what that changes in its tenant's purse."""
        before = self.leases.get(lease.id)
        if before is lease:
            return
        was = before.reserved if before is not None else Decimal(0)
        ends = before is not None and before.living and not lease.living
        if lease.account in self.free:
            self.free[lease.account] += was - lease.reserved - (lease.cost if ends else 0)
        self.leases[lease.id] = lease

    def answer(self, job_id: str, code: str, message: str) -> None:
        """Why this job is where it is; a later pass knows better and overwrites."""
        self.answers[job_id] = Reason("job", job_id, code, message)

    def say(self, subject: Subject, name: str, code: str, message: str) -> None:
        self.reasons.append(Reason(subject, name, code, message))

    def decision(self, stored: Mapping[str, Lease]) -> Decision:
        known = [lease for lease in self.leases.values() if lease.id in stored]
        changed = [lease for lease in known if _differs(lease, stored[lease.id])]
        # Killed in the middle, no more may be reserved than there is: money is freed before it is
        # given out again.
        frees = [lease for lease in changed if lease.reserved < stored[lease.id].reserved]
        actions: list[Action] = [Update(lease) for lease in frees]
        freed = {lease.id for lease in frees}
        rest = {lease.id for lease in changed} - freed
        for lease in known:
            if lease.id in rest:
                actions.append(Update(lease))
            actions.extend(self._acts(lease))
        actions.extend(self.housekeeping)
        actions.extend(self.routes)
        for lease in self.wants:
            actions.append(Want(lease))
            actions.append(Launch(lease.id))
        return Decision(tuple(actions), (*self.reasons, *self.answers.values()))

    def _acts(self, lease: Lease) -> list[Action]:
        effects = dict.fromkeys(self.effects.get(lease.id, ()))
        return [action for effect in effects for action in self._act(lease, effect)]

    def _act(self, lease: Lease, effect: Effect) -> list[Action]:
        match effect:
            case Effect.LAUNCH:
                return [Launch(lease.id)]
            case Effect.ADMIT:
                return [Admit(self.world.nodes[lease.node])]
            case Effect.DRAIN:
                known = lease.node in self.world.nodes
                return [Drain(lease.node, why_it_leaves(lease))] if known else []
            case Effect.REMOVE:
                return [Remove(lease.node)]
            case Effect.TERMINATE:
                return self._returned(lease)
            case Effect.SETTLE:
                return []

    def _may_work(self, lease: Lease) -> bool:
        """Its node registered again in the last moment, and has a job or may be given one: it is
        drained first. While the LRMS is silent nobody knows, for a while."""
        if self.world.facts.farm is None:
            left = lease.left or lease.terminating
            if lease.enrolled is None or left is None:
                return False  # it never was a node
            return self.world.now - left < self.policy.lost_timeout
        node = self.world.nodes.get(lease.node)
        running = any(j.state is JobState.RUNNING for j in self.world.jobs_on.get(lease.node, ()))
        return running or (node is not None and node.state in OPEN)

    def _door_open(self, lease: Lease) -> bool:
        """Whether its node could have registered again unseen. First its tunnel is closed, then the
        batch system is looked at once more, and only then is the machine ended. A network that
        cannot be changed is not waited for longer than `lost_timeout`: the machine costs money."""
        facts = self.world.facts
        if lease.booted is None or lease.terminating is None:
            return False  # it never was a node
        if lease.enrolled is None:
            return facts.now <= lease.terminating  # it may enrol until that is stored
        if self.world.since(lease.terminating) >= self.policy.lost_timeout:
            return False
        if facts.network_error or lease.id in facts.links:
            return True
        closed = facts.network_applied
        return closed is not None and facts.farm is not None and facts.farm.taken <= closed

    def _returned(self, lease: Lease) -> list[Action]:
        listed = self.world.machines.get(lease.id, [])
        names = {machine.id for machine in listed if not over(machine)}
        if lease.machine and not any(machine.id == lease.machine for machine in listed):
            names.add(lease.machine)  # a list may lag; its name is enough
        if not names or not self.world.answers(lease):
            return []
        if self._may_work(lease) or self._door_open(lease):
            return []
        return [Terminate(lease.provider, tuple(sorted(names)), lease.id)]


def _differs(lease: Lease, stored: Lease) -> bool:
    return lease is not stored and lease != stored


def over(machine: Machine) -> bool:
    return machine.state.value in ("stopping", "terminated")


def why_it_leaves(lease: Lease) -> str:
    if lease.failure is not None:
        return f"{lease.failure.kind}: {lease.failure.message}"
    return lease.stop_reason or "released"

"""Carry out a decision: the store first, then LRMS and provider, in the order given.

What the LRMS or a provider refuses is an outcome, not an exception: the next decision sees the
world as it is and asks again. An error of the store ends the round at once, because nothing may be
done that is not written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from burst.actions import (
    Action,
    Admit,
    Drain,
    Launch,
    Remove,
    Requeue,
    Route,
    Terminate,
    Unroute,
    Update,
    Want,
)
from burst.launches import ASK_LATER, Launches, LeaseStore
from burst.lrms.base import Lrms, LrmsError, LrmsUnavailable, Requeues
from burst.model import Farm, JobState, Lease, Policy
from burst.observe import OPEN
from burst.providers.base import Provider, ProviderError


@runtime_checkable
class RoutesMany(Protocol):
    """An LRMS that routes many jobs with one call."""

    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        """Route (job id, partition) pairs; returns what went wrong, by job id."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one action; `error` is for people, empty when it was done."""

    action: Action
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(slots=True)
class _Hands:
    store: LeaseStore
    lrms: Lrms
    providers: Mapping[str, Provider]
    user_data: Callable[[Lease], str]
    policy: Policy
    clock: Callable[[], datetime]
    lrms_silent: str = ""  # then it is not asked again in this round
    looked: Farm | None = None  # the last look, in front of the first machine that goes back
    busy: dict[str, str] = field(default_factory=dict)  # providers not to be asked again, and why

    def act(self, action: Action) -> str:
        match action:
            case Want(lease):
                return "" if self.store.want(lease) else "the store refused: no money, or known"
            case Update(lease):
                self.store.update(lease)
                return ""
            case Launch(lease_id):
                return self.launch_all([Launch(lease_id)])[0].error
            case Terminate(provider, machine_ids, _):
                return self._terminate(provider, machine_ids)
            case Admit(registered):
                return self._told(lambda: self.lrms.admit(registered))
            case Route(job_id, partition):
                return self._told(lambda: self.lrms.route(job_id, partition))
            case Unroute(job_id, partition):
                return self._told(lambda: self.lrms.unroute(job_id, partition))
            case Requeue(job_id):
                return self._requeue(job_id)
            case Drain(node, reason):
                return self._told(lambda: self.lrms.drain(node, reason))
            case Remove(node):
                return self._told(lambda: self.lrms.remove(node))

    def _requeue(self, job_id: str) -> str:
        lrms = self.lrms
        if not isinstance(lrms, Requeues):
            return "this batch system cannot queue a running job again: it ends with its machine"
        return self._told(lambda: lrms.requeue(job_id))

    def _told(self, call: Callable[[], None]) -> str:
        if self.lrms_silent:
            return self.lrms_silent
        try:
            call()
        except LrmsUnavailable as error:
            self.lrms_silent = f"the LRMS does not answer: {error}"
            return self.lrms_silent
        except LrmsError as error:
            return str(error)
        return ""

    def route_all(self, routes: Sequence[Route]) -> list[Outcome]:
        """All routes of a decision; in one call where the LRMS can do that."""
        lrms = self.lrms
        if len(routes) < 2 or not isinstance(lrms, RoutesMany):
            return [Outcome(route, self.act(route)) for route in routes]
        refused: Mapping[str, str] = {}

        def call() -> None:
            nonlocal refused
            refused = lrms.route_many([(route.job_id, route.partition) for route in routes])

        error = self._told(call)
        return [Outcome(route, error or refused.get(route.job_id, "")) for route in routes]

    def launch_all(self, launches: Sequence[Launch]) -> list[Outcome]:
        """All launches of a decision; many of a kind with one call where the provider can."""
        if not launches:
            return []
        work = Launches(
            self.store, self.providers, self.user_data, self.policy, self.clock, self.busy
        )
        problems = work.all([launch.lease_id for launch in launches])
        return [Outcome(launch, problems.get(launch.lease_id, "")) for launch in launches]

    def works_again(self, lease_id: str | None) -> str:
        """Why a machine may not go back yet, by a look at its node after all that the round did
        before; "" if nothing is known against it. A node that was removed may have registered
        again since the round's own snapshot, and got a job."""
        lease = self.store.lease(lease_id) if lease_id is not None else None
        if lease is None or lease.left is None:
            return ""  # it never was a node, or nobody's
        problem = self._told(self._look) if self.looked is None else ""
        if self.looked is None:
            waits = self.clock() - lease.left < self.policy.lost_timeout
            return problem if waits else ""
        works = any(n.name == lease.node and n.state in OPEN for n in self.looked.nodes) or any(
            j.state is JobState.RUNNING and lease.node in j.node_names for j in self.looked.jobs
        )
        return f"node {lease.node} registered again: it is drained first" if works else ""

    def _look(self) -> None:
        self.looked = self.lrms.snapshot()

    def _terminate(self, name: str, machine_ids: Sequence[str]) -> str:
        if name in self.busy:
            return self.busy[name]
        try:
            self.providers[name].terminate(machine_ids)
        except ProviderError as error:
            text = str(error) or type(error).__name__
            if error.kind in ASK_LATER:
                self.busy[name] = text
            return text
        return ""


def apply(
    actions: Sequence[Action],
    *,
    store: LeaseStore,
    lrms: Lrms,
    providers: Mapping[str, Provider],
    user_data: Callable[[Lease], str],
    policy: Policy,
    clock: Callable[[], datetime],
) -> tuple[Outcome, ...]:
    """Do what was decided, in order. `user_data` must give the same text each time for one lease:
    EC2 refuses a repeated launch whose parameters differ. Exceptions of the store pass through."""
    hands = _Hands(store, lrms, providers, user_data, policy, clock)
    outcomes: list[Outcome] = []
    routes: list[Route] = []
    launches: list[Launch] = []
    ends: list[Terminate] = []
    for action in actions:
        if isinstance(action, Launch):
            launches.append(action)  # a handful of calls, when all they need is stored
        elif isinstance(action, Terminate):
            ends.append(action)  # last of all: everything is written, and the LRMS was told
        elif isinstance(action, Route):
            routes.append(action)
        else:
            outcomes.extend(hands.route_all(routes))
            routes.clear()
            outcomes.append(Outcome(action, hands.act(action)))
    outcomes.extend(hands.route_all(routes))
    outcomes.extend(hands.launch_all(launches))
    surely: list[Terminate] = []
    for end in ends:
        if why := hands.works_again(end.lease_id):
            outcomes.append(Outcome(end, why))
        else:
            surely.append(end)
    outcomes.extend(Outcome(end, hands.act(end)) for end in _gathered(surely))
    return tuple(outcomes)


def _gathered(ends: Sequence[Terminate]) -> list[Terminate]:
    """Terminations of one provider become one call: providers take many machines at once, and
    limit calls."""
    together: dict[str, list[Terminate]] = {}
    for end in ends:
        together.setdefault(end.provider, []).append(end)
    gathered = []
    for provider, several in together.items():
        if len(several) == 1:
            gathered.append(several[0])
            continue
        names = dict.fromkeys(name for end in several for name in end.machine_ids)
        gathered.append(Terminate(provider, tuple(names), None))
    return gathered

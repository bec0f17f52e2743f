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
from burst.model import Lease, Policy
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
    for action in _gathered(actions):
        if isinstance(action, Launch):
            launches.append(action)  # a handful of calls, when all they need is stored
            continue
        if launches and isinstance(action, Terminate):
            outcomes.extend(hands.launch_all(launches))
            launches.clear()
        if isinstance(action, Route):
            routes.append(action)
            continue
        outcomes.extend(hands.route_all(routes))
        routes.clear()
        outcomes.append(Outcome(action, hands.act(action)))
    outcomes.extend(hands.route_all(routes))
    outcomes.extend(hands.launch_all(launches))
    return tuple(outcomes)


def _gathered(actions: Sequence[Action]) -> list[Action]:
    """Terminations of one provider that follow each other become one call: providers take many
    machines at once, and limit calls. They come last of all, after everything was written and the
    LRMS was told."""
    others: list[Action] = [a for a in actions if not isinstance(a, Terminate)]
    together: dict[str, list[Terminate]] = {}
    for action in actions:
        if isinstance(action, Terminate):
            together.setdefault(action.provider, []).append(action)
    for provider, several in together.items():
        if len(several) == 1:
            others.append(several[0])
            continue
        names = dict.fromkeys(name for action in several for name in action.machine_ids)
        others.append(Terminate(provider, tuple(names), None))
    return others

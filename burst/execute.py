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
from burst.join.userdata import UserDataError
from burst.leases import launch_failed, launched, launching
from burst.lrms.base import Lrms, LrmsError, LrmsUnavailable, Requeues
from burst.model import FailureClass, Lease, LeaseState, Policy
from burst.providers.base import LaunchRequest, Provider, ProviderError

_ASK_LATER = (FailureClass.THROTTLED, FailureClass.LOST)


class LeaseStore(Protocol):
    """Where leases live. Each method is one transaction, durable when it returns."""

    def lease(self, lease_id: str) -> Lease | None:
        """The lease as stored."""

    def want(self, lease: Lease) -> bool:
        """Insert a new lease if its tenant's budget still has `lease.reserved`, checked in the
        same transaction; False, and nothing stored, if not."""

    def update(self, lease: Lease) -> None:
        """Replace the lease by id, but keep the stored `drain_requested`."""


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
                return self._launch(lease_id)
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

    def _launch(self, lease_id: str) -> str:
        """Write down that we ask, ask, write down the answer. Killed in between, the next round
        finds the machine by its tag, or repeats the request under the same id."""
        before = self.store.lease(lease_id)
        if before is None or before.state is not LeaseState.WANTED:
            return f"lease {lease_id} is not wanted (any more)"
        if before.provider in self.busy:
            return self.busy[before.provider]
        provider = self.providers[before.provider]
        try:
            user_data = self.user_data(before)
        except UserDataError as error:  # wrong in the site file: nothing was asked of anybody
            now = self.clock()
            failed = launch_failed(before, FailureClass.CONFIG, str(error), self.policy, now)
            self.store.update(failed)
            return str(error)
        request = LaunchRequest(
            lease_id=before.id,
            tenant=before.tenant,
            pool=before.pool,
            type=before.type,
            zone=before.zone,
            name=before.node,
            user_data=user_data,
            spot=before.spot,
            max_price=before.price_per_hour if before.spot else None,
            network=before.network,
            address=before.address,
        )
        asked = launching(before, self.clock())
        self.store.update(asked)
        try:
            machine = provider.launch(request)
        except ProviderError as error:
            text = str(error) or type(error).__name__
            now = self.clock()
            self.store.update(launch_failed(before, error.kind, text, self.policy, now))
            if error.kind in _ASK_LATER:
                self.busy[before.provider] = text
            return text
        self.store.update(launched(asked, machine, self.clock()))
        return ""

    def _terminate(self, name: str, machine_ids: Sequence[str]) -> str:
        if name in self.busy:
            return self.busy[name]
        try:
            self.providers[name].terminate(machine_ids)
        except ProviderError as error:
            text = str(error) or type(error).__name__
            if error.kind in _ASK_LATER:
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
    for action in _gathered(actions):
        if isinstance(action, Route):
            routes.append(action)
            continue
        outcomes.extend(hands.route_all(routes))
        routes.clear()
        outcomes.append(Outcome(action, hands.act(action)))
    outcomes.extend(hands.route_all(routes))
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

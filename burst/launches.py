"""Asking providers for machines: one by one, or many of a kind with one call.

Write down that we ask, ask, write down the answer. Killed in between, the next round finds the
machines by their tags, or repeats the request under the same token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from burst import batches
from burst.join.userdata import UserDataError
from burst.leases import launch_failed, launched, launching
from burst.model import FailureClass, Lease, LeaseState, Machine, Policy
from burst.providers.base import LaunchesMany, LaunchRequest, Provider, ProviderError

ASK_LATER = (FailureClass.THROTTLED, FailureClass.LOST)
_MISSING = "the provider had fewer machines of this kind than asked for"


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
class BatchStore(Protocol):
    """A store that keeps batches, too."""

    def update_all(self, leases: Sequence[Lease]) -> None:
        """`update` for each, in one transaction; who belongs to a batch is kept with it."""

    def members(self, batch: str) -> Sequence[Lease]:
        """All leases of a batch, ended ones too, by index."""


@dataclass(slots=True)
class Launches:
    """Carries out the launches of one round; what went wrong is returned by lease id."""

    store: LeaseStore
    providers: Mapping[str, Provider]
    user_data: Callable[[Lease], str]
    policy: Policy
    clock: Callable[[], datetime]
    busy: dict[str, str]  # providers not to be asked again in this round, and why
    problems: dict[str, str] = field(default_factory=dict)

    def all(self, lease_ids: Sequence[str]) -> Mapping[str, str]:
        fresh: dict[str, list[Lease]] = {}
        asked: dict[str, Lease] = {}
        for lease_id in lease_ids:
            lease = self.store.lease(lease_id)
            if lease is None or lease.state is not LeaseState.WANTED:
                self.problems[lease_id] = f"lease {lease_id} is not wanted (any more)"
            elif lease.batch:
                asked[lease.batch] = lease
            elif lease.maybe_launched or not self._many(lease.provider):
                self._one(lease)
            else:
                fresh.setdefault(lease.provider, []).append(lease)
        for batch, lease in asked.items():
            self._again(batch, lease, fresh)
        for name, leases in fresh.items():
            provider = self.providers[name]
            most = provider.at_once if isinstance(provider, LaunchesMany) else 1
            for several in batches.alike(leases, most):
                if len(several) == 1:
                    self._one(several[0])
                else:
                    self._batch(batches.formed(several))
        return self.problems

    def _many(self, name: str) -> bool:
        return isinstance(self.store, BatchStore) and isinstance(self.providers[name], LaunchesMany)

    # -- one ---------------------------------------------------------------------------------------

    def _one(self, before: Lease) -> None:
        if before.provider in self.busy:
            self.problems[before.id] = self.busy[before.provider]
            return
        request = self._request(before, before.id, before.node)
        if request is None:
            return
        asked = launching(before, self.clock())
        self.store.update(asked)
        try:
            machine = self.providers[before.provider].launch(request)
        except ProviderError as error:
            self._refused([before], error)
            return
        self.store.update(launched(asked, machine, self.clock()))

    def _request(self, lease: Lease, token: str, name: str) -> LaunchRequest | None:
        """None: it cannot be made, and the lease has failed."""
        try:
            user_data = self.user_data(lease)
        except UserDataError as error:  # wrong in the site file: nothing was asked of anybody
            now = self.clock()
            self.store.update(
                launch_failed(lease, FailureClass.CONFIG, str(error), self.policy, now)
            )
            self.problems[lease.id] = str(error)
            return None
        return LaunchRequest(
            lease_id=token,
            tenant=lease.tenant,
            pool=lease.pool,
            type=lease.type,
            zone=lease.zone,
            name=name,
            user_data=user_data,
            spot=lease.spot,
            max_price=lease.price_per_hour if lease.spot else None,
            network=lease.network,
            address=lease.address,
        )

    def _refused(self, before: Sequence[Lease], error: ProviderError) -> None:
        text = str(error) or type(error).__name__
        now = self.clock()
        self._save([launch_failed(lease, error.kind, text, self.policy, now) for lease in before])
        self.problems |= {lease.id: text for lease in before}
        if error.kind in ASK_LATER:
            self.busy[before[0].provider] = text

    def _save(self, leases: Sequence[Lease]) -> None:
        if isinstance(self.store, BatchStore) and len(leases) > 1:
            self.store.update_all(leases)
            return
        for lease in leases:
            self.store.update(lease)

    # -- many --------------------------------------------------------------------------------------

    def _again(self, batch: str, lease: Lease, fresh: dict[str, list[Lease]]) -> None:
        """A batch whose outcome is not known for one of its leases."""
        assert isinstance(self.store, BatchStore)
        members = list(self.store.members(batch))
        if batches.repeatable(members):
            self._batch(members)
            return
        for one in members:
            if one.state is LeaseState.WANTED:
                fresh.setdefault(lease.provider, []).append(batches.dissolved(one))

    def _batch(self, members: Sequence[Lease]) -> bool:
        """Ask for all of them; False: the account may not have so many."""
        first = members[0]
        provider = self.providers[first.provider]
        assert isinstance(provider, LaunchesMany)
        waiting = [lease for lease in members if lease.state is LeaseState.WANTED]
        if first.provider in self.busy:
            self.problems |= {lease.id: self.busy[first.provider] for lease in waiting}
            return True
        request = self._request(first, first.batch, first.pool)
        if request is None:
            return True
        now = self.clock()
        # Those on their way out again may get a machine by this call, too, and are doubtful anew.
        asked = [launching(lease, now) for lease in members if _may_come(lease)]
        self._save(asked)
        try:
            found = provider.launch_many(request, first.batch_size)
        except ProviderError as error:
            if error.kind is FailureClass.QUOTA and len(waiting) == len(members) > 1:
                return self._halves(members)
            self._refused(waiting, error)
            return error.kind is not FailureClass.QUOTA
        self._answered(asked, found)
        return True

    def _answered(self, asked: Sequence[Lease], found: Sequence[Machine]) -> None:
        by_index = {machine.index: machine for machine in found}
        now = self.clock()
        after = []
        for lease in asked:
            machine = by_index.get(lease.batch_index)
            if machine is not None:
                after.append(launched(lease, machine, now))
            elif lease.state is LeaseState.WANTED:
                kind = FailureClass.NO_CAPACITY
                after.append(launch_failed(lease, kind, _MISSING, self.policy, now))
                self.problems[lease.id] = _MISSING
        self._save(after)

    def _halves(self, members: Sequence[Lease]) -> bool:
        """A quota is refused as a whole, though a part of it may be free: find out how much."""
        middle = len(members) // 2
        if not self._part(members[:middle]):
            self._give_up(members[middle:])
            return False
        return self._part(members[middle:])

    def _part(self, some: Sequence[Lease]) -> bool:
        """Ask for these alone, which a clear no to all of them allows."""
        alone = [batches.dissolved(launching(lease, self.clock())) for lease in some]
        if len(alone) > 1:
            return self._batch(batches.formed(alone))
        self._one(alone[0])
        return alone[0].id not in self.problems

    def _give_up(self, rest: Sequence[Lease]) -> None:
        text = "the account may not have so many machines of this kind"
        now = self.clock()
        kind = FailureClass.QUOTA
        self._save([launch_failed(lease, kind, text, self.policy, now) for lease in rest])
        self.problems |= {lease.id: text for lease in rest}


def _may_come(lease: Lease) -> bool:
    return lease.living and not lease.machine

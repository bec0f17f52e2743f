"""When not to try again: back-off by (provider, type, zone), and pools that only fail.

Read from the leases themselves (living, and ended within `Policy.pause`), so that a restart
forgets nothing. A machine that never becomes a node costs money and helps nobody; relaunching it
for ever is how others had 100 of 100 machines stuck (tardis#205). So an *unproven* pool, one where
nobody has joined yet, has at most K leases in flight, and K failures in a row pause it. Throttling
is a matter of the provider's API alone: it delays launches, and says nothing of capacity
(aws-parallelcluster-node#734).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from burst.leases import backoff
from burst.model import FailureClass, Lease, LeaseState, Offer, Policy

BROKEN_POOL = frozenset(
    {FailureClass.BOOTSTRAP, FailureClass.TUNNEL, FailureClass.JOIN, FailureClass.CONFIG}
)
BROKEN_OFFER = frozenset(
    {FailureClass.NO_CAPACITY, FailureClass.QUOTA, FailureClass.LOST, FailureClass.INTERRUPTED}
)
_BEFORE_JOIN = frozenset(
    {LeaseState.WANTED, LeaseState.REQUESTED, LeaseState.BOOTING, LeaseState.TUNNELLED}
)


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """What a pool's recent leases say of it."""

    failures: int  # in a row, the latest ones
    last: Lease | None  # the latest failed one
    proven: bool  # somebody joined since the last failure
    paused_until: datetime | None
    in_flight: int  # not yet joined

    def may_start(self, policy: Policy) -> int | None:
        """How many more leases may be in flight now; None: no limit of this kind."""
        if self.paused_until is not None:
            return 0
        if self.proven:
            return None
        return max(policy.failures_to_pause - self.failures - self.in_flight, 0)


def pool_health(
    leases: Iterable[Lease], now: datetime, policy: Policy, forgiven: datetime | None = None
) -> PoolHealth:
    """`leases` are those of one pool; failures up to `forgiven` do not count."""
    verdicts: list[tuple[datetime, bool, str]] = []
    by_id: dict[str, Lease] = {}
    in_flight = 0
    for lease in leases:
        by_id[lease.id] = lease
        if lease.failure is not None and lease.failure.kind in BROKEN_POOL:
            when = lease.failed or lease.wanted
            if forgiven is None or when > forgiven:
                verdicts.append((when, False, lease.id))
        elif lease.joined is not None:
            verdicts.append((lease.joined, True, lease.id))
        if lease.state in _BEFORE_JOIN and lease.failure is None:
            in_flight += 1
    verdicts.sort()
    failures, last = 0, None
    for _, joined, lease_id in reversed(verdicts):
        if joined:
            break
        failures += 1
        last = last or by_id[lease_id]
    until = None
    if last is not None and failures >= policy.failures_to_pause:
        end = (last.failed or last.wanted) + policy.pause
        until = end if end > now else None
    proven = bool(verdicts) and verdicts[-1][1]
    return PoolHealth(failures, last, proven, until, in_flight)


def offer_blocked_until(
    offer: Offer,
    leases: Iterable[Lease],
    now: datetime,
    policy: Policy,
    forgiven: datetime | None = None,
) -> datetime | None:
    """When this offer may be tried again; None: now. A quota counts for the type in all zones;
    where the provider takes machines back, nothing more of that kind is rented for
    `Policy.pause`."""
    failed: list[datetime] = []
    worked: datetime | None = None
    taken: datetime | None = None  # machines of this kind are being taken back until then
    for lease in leases:
        if (lease.provider, lease.type) != (offer.provider, offer.type):
            continue
        kind = lease.failure.kind if lease.failure else None
        same_zone = lease.zone == offer.zone or not lease.zone or not offer.zone
        if kind is FailureClass.INTERRUPTED and lease.spot and not offer.spot:
            continue  # on-demand machines are not taken back when spot ones are
        if kind is FailureClass.INTERRUPTED and same_zone:
            back = (lease.failed or lease.wanted) + policy.pause
            if forgiven is None or (lease.failed or lease.wanted) > forgiven:
                taken = max(taken, back) if taken else back
            continue
        if lease.failed and kind in BROKEN_OFFER and (same_zone or kind is FailureClass.QUOTA):
            failed.append(lease.failed)
        elif lease.joined is not None and same_zone:
            worked = max(worked, lease.joined) if worked else lease.joined
    since = max((t for t in (worked, forgiven) if t is not None), default=None)
    in_row = [instant for instant in failed if since is None or instant > since]
    ends = [max(in_row) + backoff(len(set(in_row)), policy)] if in_row else []
    ends += [taken] if taken else []
    return max((end for end in ends if end > now), default=None)


def throttled_until(leases: Iterable[Lease], now: datetime) -> dict[str, datetime]:
    """The providers that want to be asked less, and until when."""
    until: dict[str, datetime] = {}
    for lease in leases:
        setback = lease.setback.kind if lease.setback and lease.state is LeaseState.WANTED else None
        again = lease.retry_after
        if setback is FailureClass.THROTTLED and again is not None and again > now:
            until[lease.provider] = max(until.get(lease.provider, again), again)
    return until

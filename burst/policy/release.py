"""When an idle machine is let go.

The ski-rental rule: keep it for as long as a new start would cost, then give it up. Whatever the
future brings, this costs at most twice the best possible (Karlin, Manasse, Rudolph, Sleator,
"Competitive snoopy caching", 1988). The site's number is `Policy.idle_release`. Where time is sold
in larger pieces (hours), what is left of a piece is paid for anyway: an idle machine then stays
until shortly before the next piece would begin, and goes at once when that is near.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from burst.model import Lease, Policy

PATIENCE_WITH_WORK = 3  # times idle_release, while work is routed to it that the LRMS might start
_BY_THE_SECOND = timedelta(minutes=2)  # pieces up to this are no reason to wait for an edge
_LEAD = timedelta(minutes=3)  # from here on a return may no longer be in time for the edge


def idle_too_long(
    lease: Lease,
    now: datetime,
    policy: Policy,
    *,
    work_waits: bool,
    billing: timedelta = timedelta(seconds=1),
) -> timedelta | None:
    """How long the node has been idle, if that is too long; None otherwise.

    `billing`: what is charged for is rounded up to multiples of this.
    """
    if lease.idle_since is None:
        return None
    idle = now - lease.idle_since
    if billing > _BY_THE_SECOND:
        near = to_edge(lease, now, billing) <= lead(billing)
        return idle if near and (not work_waits or idle >= policy.idle_release) else None
    patience = policy.idle_release * (PATIENCE_WITH_WORK if work_waits else 1)
    return idle if idle >= patience else None


def to_edge(lease: Lease, now: datetime, billing: timedelta) -> timedelta:
    """Until the next piece of time has to be paid for."""
    start = lease.requested or lease.wanted
    return billing - (now - start) % billing


def lead(billing: timedelta) -> timedelta:
    """How long before an edge a return must be decided on."""
    return min(_LEAD, billing / 10)

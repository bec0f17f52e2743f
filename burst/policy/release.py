"""When an idle machine is let go.

The ski-rental rule: keep it for as long as a new start would cost, then give it up. Whatever the
future brings, this costs at most twice the best possible (Karlin, Manasse, Rudolph, Sleator,
"Competitive snoopy caching", 1988). EC2 bills by the second, so there is no billing edge to wait
for. The site's number is `Policy.idle_release`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from burst.model import Lease, Policy

PATIENCE_WITH_WORK = 3  # times idle_release, while work is routed to it that the LRMS might start


def idle_too_long(
    lease: Lease, now: datetime, policy: Policy, *, work_waits: bool
) -> timedelta | None:
    """How long the node has been idle, if that is too long; None otherwise."""
    if lease.idle_since is None:
        return None
    idle = now - lease.idle_since
    patience = policy.idle_release * (PATIENCE_WITH_WORK if work_waits else 1)
    return idle if idle >= patience else None

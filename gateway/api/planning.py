"""What the next round would do, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from burst.actions import (
    Action,
    Admit,
    Decision,
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
from burst.model import Lease
from gateway.api import models as m
from gateway.loops.burst import about


def planned(decision: Decision, stored: Mapping[str, Lease], currency: str) -> m.PlanNow:
    """`stored` are the leases by id as they are now."""
    reserve: dict[str, Decimal] = {}
    wants = [action.lease for action in decision.actions if isinstance(action, Want)]
    for lease in wants:
        unit = lease.unit or currency
        reserve[unit] = reserve.get(unit, Decimal(0)) + lease.reserved
    return m.PlanNow(
        ready=True,
        steps=tuple(
            m.Step(
                action=type(action).__name__.lower(),
                about=about(action),
                text=sentence(action, stored, currency),
            )
            for action in decision.actions
        ),
        machines=len(wants),
        reserve=reserve,
        pools={
            reason.id: reason.message for reason in decision.reasons if reason.subject == "pool"
        },
    )


def sentence(action: Action, stored: Mapping[str, Lease], currency: str) -> str:
    match action:
        case Want(lease):
            unit = lease.unit or currency
            spot = "spot " if lease.spot else ""
            for_whom = f" for flash {lease.flash}" if lease.flash else ""
            price = f"{lease.price_per_hour} {unit} an hour, {lease.reserved:.4f} set aside"
            return f"rent a {spot}{lease.type} for pool {lease.pool}{for_whom}: {price}"
        case Update(lease):
            return _update(lease, stored.get(lease.id), currency)
        case Launch(lease_id):
            return f"ask the provider for the machine of lease {lease_id[:8]}"
        case Admit(node):
            return f"let node {node.name} take jobs"
        case Route(job_id, partition):
            return f"offer job {job_id} to {partition}, too"
        case Unroute(job_id, partition):
            return f"take job {job_id} back from {partition}"
        case Requeue(job_id):
            return f"queue job {job_id} again: its machine is taken back"
        case Drain(node, reason):
            return f"let node {node} take no new job: {reason}"
        case Remove(node):
            return f"have the batch system forget node {node}"
        case Terminate(provider, machine_ids, _):
            return f"return {', '.join(machine_ids)} to {provider}"


def _update(lease: Lease, before: Lease | None, currency: str) -> str:
    name = f"lease {lease.id[:8]} ({lease.node})"
    if before is None or before.state is not lease.state:
        was = f"{before.state} to " if before else ""
        return f"{name} goes from {was}{lease.state}" if was else f"{name} is {lease.state}"
    if before.reserved != lease.reserved:
        change = lease.reserved - before.reserved
        word = "set aside for" if change > 0 else "freed from"
        more = "more are " if change > 0 else "are "
        return f"{abs(change):.4f} {lease.unit or currency} {more}{word} {name}"
    return f"note what is now known of {name}"

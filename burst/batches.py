"""Many machines by one call: which leases go together, and whose each machine is.

EC2 limits calls more than machines ("Request throttling for the Amazon EC2 API": RunInstances has
5 tokens, refilled at 2 a second), so a thousand machines must be a handful of calls. A batch has
one ClientToken, and its machines differ in nothing but their launch index. So lease and index are
stored together *before* the call; a machine is then known by (batch, index), which EC2 lists for
good, and claims its lease with them when it boots. Killed at any instant, the same batch is asked
for again.

A batch is repeated as it was, or not at all: only while each of its leases still lives, and so has
money reserved, or once one of its machines was seen, so that a repeat can make no more. Otherwise
nothing came of it for so long that one of its leases was given up: the others begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from burst.model import Lease, Machine


def attributed(machines: Iterable[Machine], leases: Iterable[Lease]) -> tuple[Machine, ...]:
    """The machines, those of batches with the lease they were stored for."""
    places = {(lease.batch, lease.batch_index): lease.id for lease in leases if lease.batch}
    return tuple(
        replace(machine, lease_id=places.get((machine.batch, machine.index), ""))
        if machine.batch and not machine.lease_id
        else machine
        for machine in machines
    )


def alike(leases: Iterable[Lease], most: int) -> list[list[Lease]]:
    """Leases that one call can serve, `most` at a time, in their order."""
    kinds: dict[tuple[object, ...], list[Lease]] = {}
    for one in leases:
        kind = (one.provider, one.pool, one.tenant, one.network, one.type, one.zone)
        kinds.setdefault((*kind, one.spot, one.price_per_hour), []).append(one)
    return [
        several[at : at + most] for several in kinds.values() for at in range(0, len(several), most)
    ]


def formed(leases: Sequence[Lease]) -> list[Lease]:
    """These leases as one new batch, under a token that was never used."""
    first = leases[0]
    again = f"-{first.launch_attempts}" if first.launch_attempts else ""
    name = f"b-{first.id}{again}"
    return [
        replace(lease, batch=name, batch_index=index, batch_size=len(leases))
        for index, lease in enumerate(leases)
    ]


def repeatable(members: Sequence[Lease]) -> bool:
    """Whether the batch of all these leases may be asked for once more."""
    whole = len(members) == members[0].batch_size
    return any(lease.machine for lease in members) or (
        whole and all(lease.living for lease in members)
    )


def dissolved(lease: Lease) -> Lease:
    """The lease on its own again: nothing came of its batch."""
    return replace(lease, batch="", batch_index=0, batch_size=0, maybe_launched=False)

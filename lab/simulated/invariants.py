"""What must never happen, whatever goes wrong."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from burst.model import JobState
from lab.simulated.faults import Broken
from lab.simulated.site import BATCH, EPOCH

if TYPE_CHECKING:
    from lab.simulated.ec2 import Instance
    from lab.simulated.farm import SimulatedJob
    from lab.simulated.guests import Guest
    from lab.simulated.world import World

_UNKNOWN_FOR = timedelta(minutes=6)  # the longest a machine that no lease knows may live


def always(world: World) -> None:
    """After every round."""
    for pool in world.pools:
        limit, bill = world.limits[pool.tenant], world.ec2.bill(pool.tenant)
        if bill > limit:
            raise Broken(f"tenant {pool.tenant}: the bill of {bill} exceeds the budget of {limit}")
    living = {lease.id: lease for lease in world.living()}
    for attribute in ("address", "gre_key", "node"):
        values = [(lse.network, lse.tenant, getattr(lse, attribute)) for lse in living.values()]
        if len(set(values)) != len(values):
            raise Broken(f"two living leases have the same {attribute}")
    for one in world.ec2.living():
        known = world.lease_of(one) in living
        since = world.unknown_since.get(one.id)
        if known or world.now < one.launched:
            world.unknown_since.pop(one.id, None)
        elif since is None:
            world.unknown_since[one.id] = world.now
        elif world.calm and world.now - max(since, EPOCH) > _UNKNOWN_FOR:
            raise Broken(f"machine {one.id} runs, and no lease knows it since {since}")
    for job in world.farm.jobs.values():
        if BATCH not in job.job.partitions:
            raise Broken(f"job {job.job.id} may no longer start here")
        if job.completed > 1:
            raise Broken(f"job {job.job.id} ran to its end {job.completed} times")


def launched(world: World, one: Instance) -> None:
    lease_id = world.lease_of(one)
    if lease_id not in world.wanted():
        raise Broken(f"machine {one.id} is started for lease {lease_id!r}, which is not stored")
    others = [i for i in world.ec2.living() if world.lease_of(i) == lease_id and i.id != one.id]
    if others:
        raise Broken(f"lease {lease_id} has two machines: {one.id} and {others[0].id}")


def returned(world: World, one: Instance, guest: Guest) -> None:
    """A machine ends by our doing: no job may be on it."""
    if not guest.node:
        return
    node = world.farm.borrowed.get(guest.node)
    busy = [j.job.id for j in world.farm.jobs_on(guest.node) if j.job.state is JobState.RUNNING]
    if busy and (node is None or not node.down(world.now)):
        raise Broken(f"machine {one.id} is returned with jobs {busy} on {guest.node}")


def requeued(world: World, job: SimulatedJob) -> None:
    """A running job is queued again by us: only when its machine is being taken away anyhow."""
    mine = [g for g in world.guests() if g.node == job.on and g.instance.living(world.now)]
    if mine and all(guest.instance.taken_back is None for guest in mine):
        raise Broken(f"job {job.job.id} is taken off {job.on}, which nobody takes away")


def at_the_end(world: World) -> None:
    for job in world.farm.jobs.values():
        if not job.cancelled and job.completed != 1:
            raise Broken(f"job {job.job.id} completed {job.completed} times")
    for pool in world.pools:
        spent, bill = world.store.spent(pool.tenant, EPOCH), world.ec2.bill(pool.tenant)
        if spent < bill:
            raise Broken(f"tenant {pool.tenant}: settled {spent}, but the bill is {bill}")
        if world.store.reserved(pool.tenant):
            raise Broken(f"tenant {pool.tenant}: money is still reserved")

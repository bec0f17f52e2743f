"""Machines that the provider takes back: what becomes of the jobs on them, and in time.

EC2 gives two minutes ("Spot Instance interruption notices", docs.aws.amazon.com/AWSEC2/latest/
UserGuide/spot-instance-termination-notices.html), and at times a rebalance recommendation earlier.
The machine reads it from its metadata service and tells the gateway. From then on its node takes no
new job. A job that is running may end by itself until `Policy.requeue_before` the end; then it is
queued again, under its id, so that node and machine are gone before the provider pulls the plug.

A batch system that keeps the jobs of a machine that is gone for good, as PBS and Torque do, is told
so.
"""

from __future__ import annotations

from burst.actions import Requeue
from burst.model import Job, JobState, Lease, LeaseState, MachineState
from burst.round import Round


def requeue(paper: Round, lease: Lease) -> None:
    """Ask for the jobs on this lease's node to be queued again, where that must be now."""
    if lease.state not in (LeaseState.JOINED, LeaseState.DRAINING, LeaseState.LEAVING):
        return
    why = _why(paper, lease)
    if not why:
        return
    for job in paper.world.jobs_on.get(lease.node, ()):
        if job.state is JobState.RUNNING and not _ends_in_time(paper, lease, job):
            paper.housekeeping.append(Requeue(job.id))
            paper.say("lease", lease.id, "requeues", f"job {job.id} is queued again: {why}")


def _why(paper: Round, lease: Lease) -> str:
    now, policy = paper.world.now, paper.policy
    if lease.taken_back is not None and now >= lease.taken_back - policy.requeue_before:
        return f"machine {lease.machine} is taken back at {lease.taken_back:%H:%M:%S} UTC"
    machine = paper.world.machine(lease)
    over = machine is not None and machine.state is MachineState.TERMINATED
    if over and paper.world.since(lease.draining) >= policy.lost_timeout:
        return f"machine {lease.machine} has ended, and the LRMS still counts the job as running"
    return ""


def _ends_in_time(paper: Round, lease: Lease, job: Job) -> bool:
    """Whether the job's time limit ends it while there is still time to leave in order."""
    if lease.taken_back is None or job.started is None or job.time_limit is None:
        return False
    return job.started + job.time_limit <= lease.taken_back - paper.policy.requeue_before / 2

"""From the facts to what one lease sees: observations for the table, and failures concluded.

Pure. Absence proves little: a provider's list lags behind ("eventual consistency" in the EC2 API
reference), an LRMS restarts, the gateway itself may have been away. So absence counts only after a
time, and no time-out runs while nobody was watching (`Facts.watching_since`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from burst.leases import Observation
from burst.model import (
    Facts,
    Failure,
    FailureClass,
    Job,
    JobState,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    Node,
    NodeState,
    Policy,
)

_ON_NODE = (JobState.RUNNING, JobState.COMPLETING)
OPEN = (NodeState.IDLE, NodeState.MIXED, NodeState.ALLOCATED)
_DEAD = (NodeState.DOWN, NodeState.UNKNOWN)
_ENDED = (MachineState.STOPPING, MachineState.TERMINATED)
_LISTING = (MachineState.RUNNING, MachineState.PENDING, *_ENDED)  # which of two is the lease's
_CLASS_OF_STAGE = {  # the stages of the join script that are no matter of joining itself
    "prerequisites": FailureClass.BOOTSTRAP,
    "metadata": FailureClass.BOOTSTRAP,
    "module": FailureClass.BOOTSTRAP,
    "bootstrap": FailureClass.BOOTSTRAP,
    "link": FailureClass.TUNNEL,
    "reach": FailureClass.TUNNEL,
    "tunnel": FailureClass.TUNNEL,
}


@dataclass(frozen=True, slots=True)
class World:
    """The facts, indexed once: by lease and by node."""

    facts: Facts
    policy: Policy
    machines: Mapping[str, list[Machine]]  # by lease id
    nodes: Mapping[str, Node]  # by name
    jobs_on: Mapping[str, list[Job]]  # running or completing, by node

    @property
    def now(self) -> datetime:
        return self.facts.now

    def since(self, *stamps: datetime | None) -> timedelta:
        """How long the latest of these instants lies back, counted only while we watched."""
        known = [stamp for stamp in (*stamps, self.facts.watching_since) if stamp is not None]
        return self.now - max(known) if known else timedelta(0)

    def answers(self, lease: Lease) -> bool:
        """Whether the lease's provider said what it has."""
        provider = self.facts.providers.get(lease.provider)
        return provider is not None and provider.machines is not None

    def machine(self, lease: Lease) -> Machine | None:
        """The lease's machine as listed; of several, the one it names, else the liveliest."""
        listed = self.machines.get(lease.id)
        if not listed:
            return None
        if len(listed) == 1:
            return listed[0]
        named = [machine for machine in listed if machine.id == lease.machine]
        ordered = sorted(listed, key=lambda m: (_LISTING.index(m.state), m.id))
        return next(iter(named or ordered), None)


def world(facts: Facts, policy: Policy) -> World:
    machines: dict[str, list[Machine]] = {}
    for provider in facts.providers.values():
        for machine in provider.machines or ():
            if machine.lease_id:
                machines.setdefault(machine.lease_id, []).append(machine)
    nodes: dict[str, Node] = {}
    jobs_on: dict[str, list[Job]] = {}
    if facts.farm is not None:
        nodes = {node.name: node for node in facts.farm.nodes}
        for job in facts.farm.jobs:
            if job.state in _ON_NODE:
                for name in job.node_names:
                    jobs_on.setdefault(name, []).append(job)
    return World(facts, policy, machines, nodes, jobs_on)


def noticed(lease: Lease, world: World) -> Lease:
    """The lease with what is merely to be remembered: no state changes here."""
    machine = world.machine(lease)
    if machine is not None and lease.living and not _known(lease, machine):
        lease = replace(
            lease,
            machine=lease.machine or machine.id,
            zone=machine.zone or lease.zone,
            underlay=machine.public_address or lease.underlay,
            requested=lease.requested or machine.launched or world.now,
            setback=None,
            machine_ended=lease.machine_ended or machine.ended,
        )
    notice = world.facts.notices.get(lease.id)
    if notice is not None and notice.ends is not None and lease.taken_back != notice.ends:
        lease = replace(lease, taken_back=notice.ends)
    if lease.enrolled is None and lease.id in world.facts.enrolled:
        lease = replace(lease, enrolled=world.facts.enrolled[lease.id])
    trouble = unwell(lease, world)
    if trouble is not None and bool(trouble) != (lease.unwell_since is not None):
        lease = replace(lease, unwell_since=world.now if trouble else None)
    if lease.state is LeaseState.TERMINATING and _is_back(lease, world):
        # What the LRMS said last counts: while it is silent, it is waited for from then on.
        return replace(lease, left=world.now)
    if lease.state is not LeaseState.JOINED:
        return lease
    return _usage(lease, world)


def _is_back(lease: Lease, world: World) -> bool:
    """Whether its node registered again after it had been removed, and may work."""
    node = world.nodes.get(lease.node)
    return (node is not None and node.state in OPEN) or bool(world.jobs_on.get(lease.node))


def _known(lease: Lease, machine: Machine) -> bool:
    """Whether the list says nothing new of the lease, as it is for most, most of the time."""
    return (
        bool(lease.machine)
        and lease.zone == (machine.zone or lease.zone)
        and lease.underlay == (machine.public_address or lease.underlay)
        and lease.requested is not None
        and lease.setback is None
        and (machine.ended is None or lease.machine_ended is not None)
    )


def _usage(lease: Lease, world: World) -> Lease:
    node = world.nodes.get(lease.node)
    if node is None:
        return lease
    if node.allocated_cores or world.jobs_on.get(lease.node):
        if lease.used is None or lease.idle_since is not None:
            lease = replace(lease, used=world.now, idle_since=None)
    elif lease.idle_since is None:
        used = world.now if lease.used else None
        lease = replace(lease, used=used, idle_since=world.now)
    return lease


def unwell(lease: Lease, world: World) -> str | None:
    """What is not where it should be; "" if all is well, None if nobody can tell now."""
    if not lease.living or lease.state is LeaseState.WANTED:
        return ""
    missing = lease.machine and world.answers(lease) and world.machine(lease) is None
    if missing:
        return f"machine {lease.machine} is not in the list of provider {lease.provider}"
    if lease.state is not LeaseState.JOINED:
        return "" if world.answers(lease) else None
    farm = world.facts.farm
    if farm is None:
        return None
    node = world.nodes.get(lease.node)
    if node is None:
        return f"node {lease.node} is no longer known to the LRMS"
    if node.state in _DEAD:
        return f"node {lease.node} is {node.state} in the LRMS ({node.reason or 'no reason given'})"
    return ""


def observations(lease: Lease, world: World) -> Iterator[Observation]:
    """What the provider and the tunnel say; the node is asked for last, by `node_seen`."""
    machine = machine_seen(lease, world)
    if machine is not None:
        yield machine
    link = world.facts.links.get(lease.id)
    if link is not None and link.up and not world.facts.network_error:
        yield Observation.LINK_UP


def machine_seen(lease: Lease, world: World) -> Observation | None:
    if not world.answers(lease):
        return None
    machine = world.machine(lease)
    if machine is None:
        return _unlisted(lease, world)
    if machine.state is MachineState.TERMINATED:
        return Observation.MACHINE_GONE
    if machine.state is MachineState.STOPPING:
        on_its_way = lease.state is LeaseState.TERMINATING or not lease.living
        return None if on_its_way else Observation.MACHINE_GONE
    if machine.state is MachineState.RUNNING and machine.public_address:
        return Observation.MACHINE_UP
    return Observation.MACHINE_KNOWN


def _unlisted(lease: Lease, world: World) -> Observation:
    policy = world.policy
    if lease.state is LeaseState.WANTED:
        return Observation.MACHINE_UNSEEN
    if not lease.machine:
        doubt = lease.maybe_launched and world.since(lease.attempted) < policy.request_timeout
        return Observation.MACHINE_UNSEEN if doubt else Observation.MACHINE_GONE
    young = world.since(lease.requested) < policy.request_timeout
    just_missed = (
        lease.unwell_since is None or world.since(lease.unwell_since) < policy.lost_timeout
    )
    return Observation.MACHINE_UNSEEN if young or just_missed else Observation.MACHINE_GONE


def stop(lease: Lease) -> Observation:
    """How this lease is let go. It is given the batch system's secrets when it enrols, and is
    refused from when this is stored: only one that has enrolled can be or become a node."""
    return Observation.DISMISS if lease.enrolled is None else Observation.STOP


def node_seen(lease: Lease, world: World) -> Observation | None:
    """What the LRMS says of the node. While a lease drains or leaves, only a snapshot begun after
    that was decided counts."""
    farm = world.facts.farm
    if farm is None:
        return None
    state = lease.state
    draining, leaving = state is LeaseState.DRAINING, state is LeaseState.LEAVING
    asked = lease.draining if draining else lease.left if leaving else None
    if asked is not None and farm.taken <= asked:
        return None
    node = world.nodes.get(lease.node)
    if node is None:
        return Observation.NODE_ABSENT
    jobs = world.jobs_on.get(lease.node, [])
    if node.state in OPEN:
        return Observation.NODE_OPEN
    if node.state in _DEAD:
        if lease.state is LeaseState.TUNNELLED:
            return None  # it registered and went silent: the join time-out decides
        return _dead_node(lease, node, jobs, world)
    if node.state is NodeState.DRAINED and not jobs and not node.allocated_cores:
        return Observation.NODE_CLOSED
    return Observation.NODE_BUSY


def _dead_node(lease: Lease, node: Node, jobs: list[Job], world: World) -> Observation:
    """What the LRMS holds for dead runs nothing; a job still ending there only hinders removal."""
    if node.state is NodeState.UNKNOWN or any(job.state is JobState.RUNNING for job in jobs):
        return Observation.NODE_BUSY
    if lease.state is LeaseState.LEAVING and world.since(lease.left) >= world.policy.lost_timeout:
        return Observation.NODE_ABSENT
    return Observation.NODE_CLOSED


def conclusion(lease: Lease, world: World) -> Failure | None:
    """The failure that this lease must now be given, if any."""
    if lease.failure is not None or lease.stop_reason:
        return None
    interrupted = _interrupted(lease, world)
    if interrupted is not None:
        return interrupted
    match lease.state:
        case LeaseState.REQUESTED:
            return _of_requested(lease, world)
        case LeaseState.BOOTING:
            return _reported(lease, world) or _of_booting(lease, world)
        case LeaseState.TUNNELLED:
            return _reported(lease, world) or _of_tunnelled(lease, world)
        case LeaseState.JOINED:
            return _of_joined(lease, world)
        case _:
            return None


def _interrupted(lease: Lease, world: World) -> Failure | None:
    notice = world.facts.notices.get(lease.id)
    leaving = (LeaseState.DRAINING, LeaseState.LEAVING, LeaseState.TERMINATING)
    if notice is None or not lease.living or lease.state in leaving:
        return None
    if notice.ends is None:
        text = "may be taken back soon: its provider recommends to move what runs on it"
    else:
        text = f"is taken back by its provider at {notice.ends:%H:%M:%S} UTC"
    return Failure(FailureClass.INTERRUPTED, f"machine {lease.machine} {text}")


def _of_requested(lease: Lease, world: World) -> Failure | None:
    policy = world.policy
    if not world.answers(lease) or world.since(lease.requested) < policy.boot_timeout:
        return None
    machine = world.machine(lease)
    state = f"is {machine.state}" if machine else "is not listed"
    if machine and machine.state is MachineState.RUNNING:
        state = "runs, but has no address the gateway can reach (public or Elastic IP)"
    return Failure(
        FailureClass.BOOTSTRAP,
        f"machine {lease.machine} {state} {duration_text(policy.boot_timeout)} after its launch; "
        "see its console output and the subnet's settings",
    )


def _of_booting(lease: Lease, world: World) -> Failure | None:
    policy, facts = world.policy, world.facts
    link = facts.links.get(lease.id)
    if facts.network_error or not world.answers(lease):
        return None
    if lease.enrolled is None:
        if world.since(lease.booted) < policy.boot_timeout:
            return None
        return Failure(
            FailureClass.BOOTSTRAP,
            f"machine {lease.machine} runs since {duration_text(policy.boot_timeout)}, and "
            "nothing was heard of it: no packet through the tunnel, no enrolment; see its console "
            "output, and that it may reach the enrolment port",
        )
    watched = link.since if link is not None else None
    patience = policy.tunnel_timeout if link is not None else policy.boot_timeout
    if world.since(lease.booted, lease.enrolled, watched) < patience:
        return None
    packets = f"{link.tx_packets} packets sent, {link.rx_packets} received" if link else "not known"
    return Failure(
        FailureClass.TUNNEL,
        f"machine {lease.machine} enrolled, but nothing came through its GRE tunnel to "
        f"{lease.underlay} within {duration_text(patience)} ({packets}); see that the security "
        "group lets IP protocol 47 in from the gateway, and NAT on the way",
    )


def _of_tunnelled(lease: Lease, world: World) -> Failure | None:
    policy, facts = world.policy, world.facts
    if facts.network_error:
        return None
    link = facts.links.get(lease.id)
    if link is not None and not link.up and world.since(link.since) >= policy.lost_timeout:
        return Failure(FailureClass.TUNNEL, _silent(lease, policy))
    if facts.farm is None or world.since(lease.tunnelled, lease.enrolled) < policy.join_timeout:
        return None
    if lease.enrolled is None:
        return Failure(
            FailureClass.BOOTSTRAP,
            f"the tunnel is up since {duration_text(policy.join_timeout)}, but machine "
            f"{lease.machine} never enrolled; see its console output",
        )
    node = world.nodes.get(lease.node)
    seen = f"is {node.state} there ({node.reason or 'no reason given'})" if node else "is not there"
    return Failure(
        FailureClass.JOIN,
        f"node {lease.node} enrolled, but {duration_text(policy.join_timeout)} later it {seen}; "
        "see the LRMS daemon's log on the machine",
    )


def _of_joined(lease: Lease, world: World) -> Failure | None:
    policy, facts = world.policy, world.facts
    trouble = unwell(lease, world)
    if trouble and lease.unwell_since is not None:
        lasts = world.since(lease.unwell_since)
        if lasts >= policy.lost_timeout:
            return Failure(FailureClass.LOST, f"{trouble} since {duration_text(lasts)}")
    link = facts.links.get(lease.id)
    silent = link is not None and not link.up and not facts.network_error
    if link is not None and silent and world.since(link.since) >= policy.lost_timeout:
        return Failure(FailureClass.LOST, _silent(lease, policy))
    heard = facts.heard.get(lease.id)
    if heard is not None and world.since(heard) >= policy.silence_timeout:
        return Failure(
            FailureClass.LOST,
            f"machine {lease.machine} was not heard of since {duration_text(world.since(heard))}, "
            "and will power itself off; see that it reaches the gateway's enrolment port",
        )
    node = world.nodes.get(lease.node)
    closed = node is not None and node.state in (NodeState.DRAINED, NodeState.DRAINING)
    if node and closed and not lease.used and world.since(lease.joined) < policy.join_timeout:
        return Failure(
            FailureClass.JOIN,
            f"node {lease.node} was drained in the LRMS before it ran any job: "
            f"{node.reason or 'no reason given'}",
        )
    return None


def drained_by_others(lease: Lease, world: World) -> str:
    """Somebody else's reason for draining a joined node; "" if nobody did."""
    node = world.nodes.get(lease.node)
    if lease.state is not LeaseState.JOINED or node is None:
        return ""
    if node.state not in (NodeState.DRAINED, NodeState.DRAINING):
        return ""
    return f"drained in the LRMS: {node.reason or 'no reason given'}"


def _reported(lease: Lease, world: World) -> Failure | None:
    """What the machine itself says went wrong: "stage: detail"."""
    report = world.facts.join_reports.get(lease.id)
    if not report:
        return None
    stage = report.partition(":")[0].strip().lower()
    if stage in _CLASS_OF_STAGE:
        kind = _CLASS_OF_STAGE[stage]
        if kind is FailureClass.TUNNEL and lease.tunnelled is not None:
            kind = FailureClass.JOIN
    else:
        kind = FailureClass.JOIN if lease.enrolled else FailureClass.BOOTSTRAP
    return Failure(kind, f"machine {lease.machine} reports: {report}")


def last_words(lease: Lease, seen: Observation, world: World) -> Failure | None:
    """Of a machine that ended before it was a node: what it had said of it, if anything."""
    early = (LeaseState.BOOTING, LeaseState.TUNNELLED)
    if seen is not Observation.MACHINE_GONE or lease.state not in early or lease.stop_reason:
        return None
    return _reported(lease, world)


def _silent(lease: Lease, policy: Policy) -> str:
    return (
        f"nothing comes through the tunnel to {lease.underlay or lease.machine} since "
        f"{duration_text(policy.lost_timeout)}"
    )


def duration_text(span: timedelta) -> str:
    """90 s, 4 min, 2.5 h: a duration for a sentence."""
    seconds = span.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""First pass: bring what is believed of leases, machines and nodes in line with what is seen."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

from burst import interruption
from burst.actions import Drain, Remove, Terminate
from burst.leases import Effect
from burst.model import Lease, LeaseState, MachineState, NodeState
from burst.observe import (
    OPEN,
    conclusion,
    drained_by_others,
    duration_text,
    last_words,
    node_seen,
    noticed,
    observations,
    stop,
)
from burst.policy import breaker, flash
from burst.policy.release import idle_too_long
from burst.round import Round, over, why_it_leaves

S = LeaseState
_FINAL = (S.GONE, S.FAILED)
_OF_A_LEASE = re.compile("[0-9a-f]{8}")


def leases(paper: Round, wanted_in: set[str], work_in: set[str]) -> None:
    """Each lease through the table. `wanted_in`: pools whose jobs deserve a new machine;
    `work_in`: pools with pending jobs that a borrowed node could start."""
    for stored in list(paper.leases.values()):
        if not stored.living and _left_nothing(paper, stored):
            continue
        lease = noticed(stored, paper.world)
        paper.keep(lease)
        for seen in observations(lease, paper.world):
            lease = paper.see(lease, seen, last_words(lease, seen, paper.world))
        lease = _stopped(paper, lease, wanted_in, work_in)
        node = node_seen(lease, paper.world)
        if node is not None:
            was, lease = lease, paper.see(lease, node)
            if lease is not was:  # else nothing new can be concluded
                lease = _stopped(paper, lease, wanted_in, work_in)
        _duplicates(paper, lease)
        interruption.requeue(paper, lease)


def _left_nothing(paper: Round, lease: Lease) -> bool:
    """Whether an ended lease is seen nowhere any more: nothing is left to be done about it."""
    if lease.node in paper.world.nodes:
        return False
    return all(over(machine) for machine in paper.world.machines.get(lease.id, ()))


def _stopped(paper: Round, lease: Lease, wanted_in: set[str], work_in: set[str]) -> Lease:
    """The lease, told to stop where a failure or a reason for it is found."""
    if not lease.living or lease.failure or lease.stop_reason:
        return lease
    failure = conclusion(lease, paper.world)
    if failure is not None:
        return paper.see(lease, stop(lease), failure)
    why = _release(paper, lease, wanted_in, work_in)
    if not why:
        return lease
    return paper.see(replace(lease, stop_reason=why), stop(lease))


def _release(paper: Round, lease: Lease, wanted_in: set[str], work_in: set[str]) -> str:
    """Why this lease is no longer wanted; "" if it is."""
    if lease.state in (S.DRAINING, S.LEAVING, S.TERMINATING):
        return ""
    if lease.drain_requested:
        return f"operator: {lease.drain_requested}"
    if lease.pool not in paper.pool_names:
        return f"pool {lease.pool} is no longer in the site file"
    if flash.kept_until(lease, paper.world.facts) is not None:
        return drained_by_others(lease, paper.world)
    answers = paper.world.facts.farm is not None
    if lease.state is S.WANTED and answers and lease.pool not in wanted_in:
        return "no job waits for it any more"
    if lease.state is S.JOINED and answers and not _is_spare(paper, lease):
        idle = idle_too_long(
            lease,
            paper.world.now,
            paper.policy,
            work_waits=lease.pool in work_in,
            billing=_billing(paper, lease),
        )
        if idle is not None:
            return f"idle since {duration_text(idle)}"
    return drained_by_others(lease, paper.world)


def _billing(paper: Round, lease: Lease) -> timedelta:
    provider = paper.world.facts.providers.get(lease.provider)
    return provider.billing if provider is not None else timedelta(seconds=1)


def _is_spare(paper: Round, lease: Lease) -> bool:
    """Whether it is one of the idle machines that its pool keeps: the most recently used stay."""
    if lease.idle_since is None or not paper.spares.get(lease.pool):
        return False
    others = (paper.leases[name] for name in paper.by_pool.get(lease.pool, ()))
    fresher = sum(
        other.id != lease.id
        and other.state is S.JOINED
        and not other.stop_reason
        and other.idle_since is not None
        and (other.idle_since, other.id) > (lease.idle_since, lease.id)
        for other in others
    )
    return fresher < paper.spares[lease.pool]


def _duplicates(paper: Round, lease: Lease) -> None:
    """One lease, one machine: others under its tag go back at once."""
    listed = paper.world.machines.get(lease.id, [])
    others = [m for m in listed if m.id != lease.machine and not over(m)]
    if lease.living and lease.machine and others:
        names = tuple(sorted(machine.id for machine in others))
        paper.housekeeping.append(Terminate(lease.provider, names, None))


def hold_launches(paper: Round) -> None:
    """Let a wanted lease be launched only when that can lead to something."""
    facts = paper.world.facts
    wait_until = breaker.throttled_until(paper.leases.values(), facts.now)
    for lease in paper.leases.values():
        if Effect.LAUNCH not in paper.effects.get(lease.id, ()):
            continue
        hold = ""
        throttled = wait_until.get(lease.provider)
        if facts.network_error:
            hold = f"no tunnel, no launch: {facts.network_error}"
        elif facts.farm is None:
            hold = "no launch while the LRMS does not answer"
        elif throttled is not None:
            hold = f"provider {lease.provider} wants fewer requests until {throttled:%H:%M:%S} UTC"
        elif lease.retry_after is not None and lease.retry_after > facts.now:
            cause = lease.setback.message if lease.setback else "the last attempt failed"
            hold = f"tried again at {lease.retry_after:%H:%M:%S} UTC: {cause}"
        if hold:
            paper.effects[lease.id] = []
            paper.say("lease", lease.id, "launch-held", hold)


def orphans(paper: Round) -> None:
    """Return machines with our tag that belong to no lease and are old enough to be surely lost."""
    facts, policy = paper.world.facts, paper.policy
    for provider in facts.providers.values():
        lost: list[str] = []
        for machine in provider.machines or ():
            if over(machine) or machine.lease_id in paper.leases:
                continue
            age = facts.now - machine.launched if machine.launched else policy.orphan_age
            if age < policy.orphan_age or _still_works(paper, machine.lease_id):
                continue
            lost.append(machine.id)
        if lost:
            paper.housekeeping.append(Terminate(provider.name, tuple(sorted(lost)), None))
            paper.say(
                "provider",
                provider.name,
                "orphans",
                f"returned as nobody's: {', '.join(sorted(lost))}",
            )


def _still_works(paper: Round, lease_id: str) -> bool:
    suffix = "-" + lease_id[:8]
    works = [*paper.world.jobs_on, *(n.name for n in paper.world.nodes.values() if n.state in OPEN)]
    return bool(lease_id) and any(name.endswith(suffix) for name in works)


def strays(paper: Round) -> None:
    """Nodes of ours in the LRMS that no lease names: drained, then removed when empty."""
    if paper.world.facts.farm is None:
        return
    named = {lease.node for lease in paper.leases.values()}
    partitions = {pool.name: pool.partition for pool in paper.pools}
    for node in paper.world.nodes.values():
        pool, dash, suffix = node.name.rpartition("-")
        if not dash or pool not in partitions or node.name in named:
            continue
        if partitions[pool] in node.features and _OF_A_LEASE.fullmatch(suffix):
            empty = not paper.world.jobs_on.get(node.name) and not node.allocated_cores
            if empty and node.state in (NodeState.DRAINED, NodeState.DOWN):
                paper.housekeeping.append(Remove(node.name))
            elif node.state not in (NodeState.DRAINED, NodeState.DRAINING, NodeState.DOWN):
                paper.housekeeping.append(Drain(node.name, "no lease stands behind this node"))


def explain(paper: Round) -> None:
    """One sentence for each lease: what it is waiting for."""
    held = {reason.id for reason in paper.reasons if reason.subject == "lease"}
    for lease in paper.leases.values():
        if lease.id not in held:
            paper.say("lease", lease.id, str(lease.state), _waiting_for(paper, lease))


def _waiting_for(paper: Round, lease: Lease) -> str:
    if lease.state in _FINAL:
        return f"ended: {why_it_leaves(lease)}; it cost {lease.cost}"
    machine = paper.world.machine(lease)
    match lease.state:
        case S.WANTED:
            return "waits for the provider to accept the launch"
        case S.REQUESTED:
            what = "to run with an address" if machine else "to appear in the provider's list"
            return f"waits for machine {lease.machine} {what}"
        case S.BOOTING:
            return f"waits for the first packet through the tunnel to {lease.underlay}"
        case S.TUNNELLED:
            step = "to appear in the LRMS" if lease.enrolled else "to enrol"
            return f"waits for node {lease.node} {step}"
        case S.JOINED:
            node = paper.world.nodes.get(lease.node)
            load = f"{node.allocated_cores} of {node.cores} cores busy" if node else "not seen now"
            return f"node {lease.node}: {load}"
        case S.DRAINING:
            return f"leaves ({why_it_leaves(lease)}): {_drain_text(paper, lease)}"
        case S.LEAVING:
            return f"leaves ({why_it_leaves(lease)}): the LRMS is to forget node {lease.node}"
        case _:
            state = machine.state if machine else MachineState.TERMINATED
            return f"leaves ({why_it_leaves(lease)}): machine {lease.machine or '-'} is {state}"


def _drain_text(paper: Round, lease: Lease) -> str:
    jobs = [job.id for job in paper.world.jobs_on.get(lease.node, [])]
    if not jobs:
        return "waits for a snapshot that shows its node empty"
    since = paper.world.now - lease.draining if lease.draining else timedelta(0)
    late = " (longer than drain_timeout)" if since >= paper.policy.drain_timeout else ""
    return f"waits for jobs {', '.join(jobs)}{late}"

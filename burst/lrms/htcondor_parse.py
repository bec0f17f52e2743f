"""What HTCondor says, turned into the values of burst.model. Pure: text in, values out.

Reads `condor_q -json`, `condor_history -json` and `condor_status -json` (23.9 and 25.14 recorded).
Traps met here: an empty answer is zero bytes, not `[]`; an attribute that is an expression arrives
as the text `/Expr(...)/`; a draining partitionable slot has `Cpus` 0; the ad of a dead machine
stays listed for CLASSAD_LIFETIME (15 min), so a borrowed machine advertises how often it reports.
Sources: condor_q(1), condor_status(1), the manual's appendix A (ClassAd attributes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from burst.lrms.base import LrmsError
from burst.lrms.command import DRAIN_PREFIX
from burst.model import Job, JobState, Node, NodeState

TARGET = "BurstTarget"  # of a job: the partitions of borrowed machines it may use, comma separated
POOL = "BurstPool"  # of a machine: its partition
NODE = "BurstNode"  # of a machine: its name for us
FEATURES = "BurstFeatures"  # of a machine: what a job may ask for, comma separated
HEARTBEAT = "BurstHeartbeat"  # of a machine: seconds between its reports (UPDATE_INTERVAL)

JOB_ATTRIBUTES = (
    "ClusterId", "ProcId", "JobStatus", "Owner", "QDate", "RequestCpus", "RequestMemory",
    "RequestGPUs", "HoldReason", "JobUniverse", "MinHosts", "MaxHosts", "RemoteHost", "RemoteHosts",
    "LastRemoteHost", "JobCurrentStartDate", "EnteredCurrentStatus", "CompletionDate", "ExitCode",
    "ExitBySignal", "AllowedJobDuration", "AllowedExecuteDuration", "MaxRuntime", "MaxWallTimeMins",
    "JobBatchName", "Cmd", "AcctGroup", "LastRejMatchReason", "DeferralTime", TARGET,
)  # fmt: skip
NODE_ATTRIBUTES = (
    "Name", "Machine", "State", "Activity", "Cpus", "Memory", "TotalSlotCpus", "TotalSlotMemory",
    "TotalMemory", "ChildCpus", "PartitionableSlot", "DynamicSlot", "SlotType", "MyAddress",
    "Draining", "DrainReason", "Offline", "LastHeardFrom", "MaxJobRetirementTime",
    POOL, NODE, FEATURES, HEARTBEAT,
)  # fmt: skip

# JobUniverse; scheduler and local jobs run beside the schedd and never on an execution node.
UNIVERSES: Mapping[int, str] = {
    5: "vanilla", 7: "scheduler", 8: "mpi", 9: "grid", 10: "java", 11: "parallel", 12: "local",
    13: "vm",
}  # fmt: skip
LOCAL_PARTITIONS = ("vanilla", "parallel", "java", "vm")  # what a site's own machine takes
_STATES: Mapping[int, JobState] = {
    1: JobState.PENDING,
    2: JobState.RUNNING,
    3: JobState.FAILED,  # removed
    4: JobState.DONE,
    5: JobState.HELD,
    6: JobState.RUNNING,  # transferring output
    7: JobState.RUNNING,  # suspended
}
_ADDRESS = re.compile(r"<(?:([0-9.]+)|\[([0-9a-fA-F:]+)\]):")
_MISSED_REPORTS = 4


def ads(command: str, text: str) -> tuple[Mapping[str, Any], ...]:
    """The ads of a `-json` answer; none when the answer is empty."""
    if not text.strip():
        return ()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LrmsError(f"{command}: the answer is not JSON ({error}): {text[:80]!r}") from error
    if not isinstance(found, list) or not all(isinstance(ad, dict) for ad in found):
        raise LrmsError(f"{command}: the answer is not a list of ads: {text[:80]!r}")
    return tuple(found)


def jobs(listed: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> tuple[Job, ...]:
    """names: what a machine of the collector's is called here (`machine_names`)."""
    return tuple(_job(ad, names) for ad in listed if "ProcId" in ad)  # else a late factory's


def machine_names(listed: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The name of each machine: a borrowed one says its own, a site's is what it advertises."""
    return {str(ad.get("Machine", "")): str(ad.get(NODE) or ad.get("Machine", "")) for ad in listed}


def nodes(listed: Iterable[Mapping[str, Any]], taken: datetime) -> tuple[Node, ...]:
    """One node a machine, from the ads of its slots."""
    machines: dict[str, list[Mapping[str, Any]]] = {}
    for ad in listed:
        machines.setdefault(_text(ad, "Machine"), []).append(ad)
    return tuple(_node(slots, taken) for slots in machines.values())


def with_jobs(nodes: Iterable[Node], jobs: Iterable[Job]) -> tuple[Node, ...]:
    """The nodes with what the schedd knows to run there: a machine's ad may be minutes old."""
    used: dict[str, int] = {}
    for job in jobs:
        if job.state is JobState.RUNNING:
            for name in job.node_names:
                used[name] = used.get(name, 0) + job.cores // job.nodes
    return tuple(_with_used(node, used.get(node.name, 0)) for node in nodes)


def _with_used(node: Node, cores: int) -> Node:
    if cores <= node.allocated_cores:
        return node
    allocated = min(cores, node.cores)
    state = node.state
    if state is NodeState.DRAINED:
        state = NodeState.DRAINING
    elif state in (NodeState.IDLE, NodeState.MIXED):
        state = NodeState.ALLOCATED if allocated >= node.cores else NodeState.MIXED
    return replace(node, allocated_cores=allocated, state=state)


def quoted(text: str) -> str:
    """A ClassAd string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def split(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def _job(ad: Mapping[str, Any], names: Mapping[str, str]) -> Job:
    job_id = f"{_number(ad, 'ClusterId')}.{_number(ad, 'ProcId')}"
    state = _STATES.get(_number(ad, "JobStatus") or 0)
    if state is None:
        raise LrmsError(f"condor_q: job {job_id}: JobStatus {ad.get('JobStatus')!r}")
    if state is JobState.DONE and (ad.get("ExitBySignal") is True or _number(ad, "ExitCode")):
        state = JobState.FAILED
    universe = _number(ad, "JobUniverse") or 0
    submitted = _time(ad, "QDate")
    if submitted is None:
        raise LrmsError(f"condor_q: job {job_id}: there is no QDate")
    hosts = max(1, _number(ad, "MaxHosts") or 1)
    ended = state in (JobState.DONE, JobState.FAILED)
    running = state is JobState.RUNNING
    return Job(
        id=job_id,
        user=_text(ad, "Owner"),
        account=_text(ad, "AcctGroup"),
        state=state,
        partitions=(UNIVERSES.get(universe, str(universe)), *split(_text(ad, TARGET))),
        cores=hosts * max(1, _number(ad, "RequestCpus") or 1),
        nodes=hosts,
        memory_mb=hosts * (_number(ad, "RequestMemory") or 0),
        time_limit=_limit(ad),
        submitted=submitted,
        started=_time(ad, "JobCurrentStartDate") if running or ended else None,
        ended=(_time(ad, "CompletionDate") or _time(ad, "EnteredCurrentStatus")) if ended else None,
        node_names=_hosts(ad, names) if running or ended else (),
        reason=_reason(ad, state),
        features=("gpu",) if _number(ad, "RequestGPUs") else (),
        name=_text(ad, "JobBatchName") or _text(ad, "Cmd").rpartition("/")[2],
    )


def _reason(ad: Mapping[str, Any], state: JobState) -> str:
    if state is JobState.HELD:
        return _text(ad, "HoldReason")
    if state is JobState.PENDING and _number(ad, "DeferralTime"):
        return "BeginTime: deferred to a time of its own"
    return _text(ad, "LastRejMatchReason").strip() if state is JobState.PENDING else ""


def _limit(ad: Mapping[str, Any]) -> timedelta | None:
    """The shortest of the limits HTCondor enforces (AllowedJobDuration, AllowedExecuteDuration)
    and those that sites' policies commonly read (MaxRuntime, in s; MaxWallTimeMins)."""
    seconds = [
        value * unit
        for name, unit in (
            ("AllowedJobDuration", 1),
            ("AllowedExecuteDuration", 1),
            ("MaxRuntime", 1),
            ("MaxWallTimeMins", 60),
        )
        if (value := _number(ad, name))
    ]
    return timedelta(seconds=min(seconds)) if seconds else None


def _hosts(ad: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, ...]:
    """slot1_1@node1.lab, once for each machine."""
    text = _text(ad, "RemoteHosts") or _text(ad, "RemoteHost") or _text(ad, "LastRemoteHost")
    machines = (slot.rpartition("@")[2] for slot in split(text))
    return tuple(dict.fromkeys(names.get(machine, machine) for machine in machines))


def _node(slots: list[Mapping[str, Any]], taken: datetime) -> Node:
    whole = [ad for ad in slots if ad.get("DynamicSlot") is not True]
    first = (whole or slots)[0]
    pool = _text(first, POOL)
    cores = sum(_total_cpus(ad) for ad in whole)
    claimed = [ad for ad in slots if _text(ad, "State") in ("Claimed", "Preempting")]
    allocated = sum(_number(ad, "Cpus") or 0 for ad in claimed if ad.get("DynamicSlot") is True)
    allocated += sum(_total_cpus(ad) for ad in claimed if ad.get("DynamicSlot") is not True)
    address = _ADDRESS.search(_text(first, "MyAddress"))
    state, reason = _node_state(first, slots, cores, allocated, taken)
    return Node(
        name=_text(first, NODE) or _text(first, "Machine"),
        state=state,
        cores=cores,
        allocated_cores=allocated,
        memory_mb=sum(_number(a, "TotalSlotMemory") or _number(a, "Memory") or 0 for a in whole)
        or _number(first, "TotalMemory")
        or 0,
        address=(address[1] or address[2]) if address else "",
        features=(pool, *split(_text(first, FEATURES))) if pool else (),
        partitions=(pool,) if pool else LOCAL_PARTITIONS,
        reason=reason,
    )


def _node_state(
    first: Mapping[str, Any],
    slots: list[Mapping[str, Any]],
    cores: int,
    allocated: int,
    taken: datetime,
) -> tuple[NodeState, str]:
    heard = max((_number(ad, "LastHeardFrom") or 0 for ad in slots), default=0)
    beat = _number(first, HEARTBEAT)
    silent = int(taken.timestamp()) - heard
    if beat and silent > _MISSED_REPORTS * beat:
        return NodeState.DOWN, f"not heard of for {silent} s"
    if any(ad.get("Offline") is True for ad in slots):
        return NodeState.UNKNOWN, "offline"
    if any(ad.get("Draining") is True or _text(ad, "State") == "Drained" for ad in slots):
        why = next((text for ad in slots if (text := _text(ad, "DrainReason"))), "")
        return NodeState.DRAINING if allocated else NodeState.DRAINED, why
    if not allocated:
        return NodeState.IDLE, ""
    return (NodeState.ALLOCATED if allocated >= cores else NodeState.MIXED), ""


def is_ours(ad: Mapping[str, Any]) -> bool:
    return bool(ad.get(POOL))


def drained_by_us(reason: str) -> bool:
    return reason.startswith(DRAIN_PREFIX)


def _total_cpus(ad: Mapping[str, Any]) -> int:
    return _number(ad, "TotalSlotCpus") or _number(ad, "Cpus") or 0


def _number(ad: Mapping[str, Any], name: str) -> int | None:
    """None for an attribute that is missing, undefined or an expression."""
    value = ad.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value)


def _text(ad: Mapping[str, Any], name: str) -> str:
    value = ad.get(name)
    if not isinstance(value, str) or value.startswith(("/Expr(", "\\/Expr(")):
        return ""
    return value


def _time(ad: Mapping[str, Any], name: str) -> datetime | None:
    seconds = _number(ad, name)
    if not seconds:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise LrmsError(f"condor_q: {name} has the value {ad.get(name)!r}") from error

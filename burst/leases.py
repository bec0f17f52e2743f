"""The life of a lease as one transition table.

`TABLE[state, observation]` says for every pair what comes next and what to do about it now; there
is no other place where a lease changes its state. Facts that are true again in the next round are
observed again in the next round (level-triggered): nothing here depends on having seen an event,
so a restart finds its way from any state.

    wanted -> requested -> booting -> tunnelled -> joined -> draining -> leaving -> terminating
           -> gone | failed

A lease that goes wrong has its `failure` set and then takes the same way out as any other, as far
as there is something to undo; it is `failed` only when the machine is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from burst.model import Failure, FailureClass, Lease, LeaseState, Machine, Policy
from burst.policy import money

S = LeaseState


class Observation(StrEnum):
    """What one look at the world can say of a lease. Several may hold at once."""

    MACHINE_UNSEEN = "machine unseen"  # the provider does not list it (its list may lag)
    MACHINE_KNOWN = "machine known"  # listed, but not running or without an address yet
    MACHINE_UP = "machine up"  # running, with the address the tunnel needs
    MACHINE_GONE = "machine gone"  # ended, or nothing under this lease's tag can exist any more
    LINK_UP = "link up"  # packets pass through its tunnel
    NODE_OPEN = "node open"  # the LRMS may start jobs on it
    NODE_BUSY = "node busy"  # takes no new job, and has some, or it is not proved that it has none
    NODE_CLOSED = "node closed"  # takes no job and has none, seen after we asked for that
    NODE_ABSENT = "node absent"  # the LRMS does not know it, seen after we asked for that
    STOP = "stop"  # let it go: released, or a failure was concluded
    DISMISS = "dismiss"  # the same of a machine that never enrolled: it lacks the LRMS's secrets


class Effect(StrEnum):
    """What is to be done about a lease now; said again each round until the world agrees."""

    LAUNCH = "launch"
    ADMIT = "admit"
    DRAIN = "drain"
    REMOVE = "remove"
    TERMINATE = "terminate"
    SETTLE = "settle"


O = Observation  # noqa: E741 - the table reads better with one letter
E = Effect


@dataclass(frozen=True, slots=True)
class Cell:
    next: LeaseState
    effect: Effect | None = None
    why: str = ""


def _table() -> dict[tuple[LeaseState, Observation], Cell]:
    def stay(state: LeaseState, why: str, *observations: Observation) -> None:
        for observation in observations:
            cells[state, observation] = Cell(state, None, why)

    cells: dict[tuple[LeaseState, Observation], Cell] = {}

    cells[S.WANTED, O.MACHINE_UNSEEN] = Cell(S.WANTED, E.LAUNCH, "ask, or ask again: idempotent")
    cells[S.WANTED, O.MACHINE_KNOWN] = Cell(S.REQUESTED, None, "launched, by us before a crash")
    cells[S.WANTED, O.MACHINE_UP] = Cell(S.BOOTING, None, "launched, by us before a crash")
    cells[S.WANTED, O.MACHINE_GONE] = Cell(S.TERMINATING, None, "started and ended unseen")
    for stop in (O.STOP, O.DISMISS):
        cells[S.WANTED, stop] = Cell(S.TERMINATING, E.TERMINATE, "a launch may be under way")
        cells[S.REQUESTED, stop] = Cell(S.TERMINATING, E.TERMINATE, "no tunnel yet, so no node")
    stay(S.WANTED, "no machine, so somebody else's", O.LINK_UP, O.NODE_OPEN, O.NODE_BUSY)
    stay(S.WANTED, "as it should be", O.NODE_CLOSED, O.NODE_ABSENT)

    stay(S.REQUESTED, "lists lag; time-outs decide", O.MACHINE_UNSEEN, O.MACHINE_KNOWN)
    cells[S.REQUESTED, O.MACHINE_UP] = Cell(S.BOOTING, None, "the tunnel has a far end")
    cells[S.REQUESTED, O.MACHINE_GONE] = Cell(S.TERMINATING, None, "ended while it booted")
    stay(S.REQUESTED, "no tunnel, so somebody else's", O.LINK_UP, O.NODE_OPEN, O.NODE_BUSY)
    stay(S.REQUESTED, "as it should be", O.NODE_CLOSED, O.NODE_ABSENT)

    stay(S.BOOTING, "lists lag; time-outs decide", O.MACHINE_UNSEEN, O.MACHINE_KNOWN)
    stay(S.BOOTING, "as it should be", O.MACHINE_UP, O.NODE_ABSENT)
    cells[S.BOOTING, O.MACHINE_GONE] = Cell(S.DRAINING, E.DRAIN, "its node may just have come")
    cells[S.BOOTING, O.LINK_UP] = Cell(S.TUNNELLED, None, "packets pass")
    cells[S.BOOTING, O.STOP] = Cell(S.DRAINING, E.DRAIN, "its node may just have come")
    cells[S.BOOTING, O.DISMISS] = Cell(S.TERMINATING, E.TERMINATE, "it cannot be a node")
    stay(S.BOOTING, "no join without a tunnel", O.NODE_OPEN, O.NODE_BUSY, O.NODE_CLOSED)

    stay(S.TUNNELLED, "lists lag; time-outs decide", O.MACHINE_UNSEEN, O.MACHINE_KNOWN)
    stay(S.TUNNELLED, "as it should be", O.MACHINE_UP, O.LINK_UP, O.NODE_ABSENT)
    cells[S.TUNNELLED, O.MACHINE_GONE] = Cell(S.DRAINING, E.DRAIN, "its node may just have come")
    cells[S.TUNNELLED, O.NODE_OPEN] = Cell(S.JOINED, None, "jobs may start")
    cells[S.TUNNELLED, O.NODE_BUSY] = Cell(S.TUNNELLED, E.ADMIT, "registered, but drained")
    cells[S.TUNNELLED, O.NODE_CLOSED] = Cell(S.TUNNELLED, E.ADMIT, "registered, but drained")
    for stop in (O.STOP, O.DISMISS):
        cells[S.TUNNELLED, stop] = Cell(S.DRAINING, E.DRAIN, "its node may just have come")
        cells[S.JOINED, stop] = Cell(S.DRAINING, E.DRAIN, "never leave with a job on it")

    stay(S.JOINED, "lists lag; time-outs decide", O.MACHINE_UNSEEN, O.MACHINE_KNOWN)
    stay(S.JOINED, "as it should be", O.MACHINE_UP, O.LINK_UP, O.NODE_OPEN)
    stay(S.JOINED, "somebody else's doing; time-outs decide", O.NODE_BUSY, O.NODE_CLOSED)
    stay(S.JOINED, "an LRMS may just have restarted; time-outs decide", O.NODE_ABSENT)
    cells[S.JOINED, O.MACHINE_GONE] = Cell(S.DRAINING, E.DRAIN, "no more jobs to a dead machine")

    for machine in (O.MACHINE_UNSEEN, O.MACHINE_KNOWN, O.MACHINE_UP, O.MACHINE_GONE):
        stay(S.DRAINING, "the LRMS decides first", machine)
        stay(S.LEAVING, "the LRMS decides first", machine)
    stay(S.DRAINING, "already on its way", O.LINK_UP, O.STOP, O.DISMISS)
    cells[S.DRAINING, O.NODE_OPEN] = Cell(S.DRAINING, E.DRAIN, "not told, or undone by somebody")
    stay(S.DRAINING, "a job is on it: wait", O.NODE_BUSY)
    cells[S.DRAINING, O.NODE_CLOSED] = Cell(S.LEAVING, E.REMOVE, "empty, and seen so")
    cells[S.DRAINING, O.NODE_ABSENT] = Cell(S.LEAVING, E.REMOVE, "never came, or was removed")

    stay(S.LEAVING, "already on its way", O.LINK_UP, O.STOP, O.DISMISS)
    cells[S.LEAVING, O.NODE_OPEN] = Cell(S.DRAINING, E.DRAIN, "came back, or just came: again")
    cells[S.LEAVING, O.NODE_BUSY] = Cell(S.LEAVING, E.REMOVE, "the LRMS refuses if a job is on it")
    cells[S.LEAVING, O.NODE_CLOSED] = Cell(S.LEAVING, E.REMOVE, "not removed yet")
    cells[S.LEAVING, O.NODE_ABSENT] = Cell(S.TERMINATING, E.TERMINATE, "the LRMS forgot it")

    for machine in (O.MACHINE_UNSEEN, O.MACHINE_KNOWN, O.MACHINE_UP):
        cells[S.TERMINATING, machine] = Cell(S.TERMINATING, E.TERMINATE, "until it is gone")
    cells[S.TERMINATING, O.MACHINE_GONE] = Cell(S.GONE, E.SETTLE, "failed, if it has a failure")
    stay(S.TERMINATING, "already on its way", O.LINK_UP, O.STOP, O.DISMISS)
    cells[S.TERMINATING, O.NODE_OPEN] = Cell(S.DRAINING, E.DRAIN, "it registered again")
    for node in (O.NODE_BUSY, O.NODE_CLOSED):
        cells[S.TERMINATING, node] = Cell(S.TERMINATING, E.REMOVE, "a last registration crossed")
    stay(S.TERMINATING, "as it should be", O.NODE_ABSENT)

    for final in (S.GONE, S.FAILED):
        for machine in (O.MACHINE_KNOWN, O.MACHINE_UP):
            cells[final, machine] = Cell(final, E.TERMINATE, "listed late: return it")
        stay(final, "as it should be", O.MACHINE_UNSEEN, O.MACHINE_GONE, O.NODE_ABSENT)
        stay(final, "the tunnel is being removed", O.LINK_UP, O.STOP, O.DISMISS)
        cells[final, O.NODE_OPEN] = Cell(final, E.DRAIN, "it registered again")
        for node in (O.NODE_BUSY, O.NODE_CLOSED):
            cells[final, node] = Cell(final, E.REMOVE, "a last registration crossed")
    return cells


TABLE = _table()


class Step(NamedTuple):
    lease: Lease
    effect: Effect | None


def step(lease: Lease, seen: Observation, now: datetime, failure: Failure | None = None) -> Step:
    """One row of the table, with the instants stamped.

    `failure` is what was concluded together with `seen`; the first one a lease gets stays. A
    machine that is gone before the lease let it go is a failure by itself.
    """
    cell = TABLE[lease.state, seen]
    if seen is O.MACHINE_GONE and cell.next is not S.GONE and lease.living and not lease.failure:
        failure = failure or Failure(FailureClass.LOST, "the machine ended by itself")
    if failure is not None and lease.failure is None and lease.living:
        lease = replace(lease, failure=failure, failed=now)
    if cell.next is lease.state:
        return Step(lease, cell.effect)
    if cell.next is S.GONE:
        return Step(_settled(lease, now), cell.effect)
    return Step(_stamped(lease, cell.next, now), cell.effect)


def _stamped(lease: Lease, state: LeaseState, now: datetime) -> Lease:
    stamps: dict[str, datetime | None] = {}
    match state:
        case S.REQUESTED:
            stamps = {"requested": lease.requested or now}
        case S.BOOTING:
            stamps = {"requested": lease.requested or now, "booted": lease.booted or now}
        case S.TUNNELLED:
            stamps = {"tunnelled": lease.tunnelled or now}
        case S.JOINED:
            stamps = {"joined": lease.joined or now}
        case S.DRAINING:
            # Overwritten when a lease drains again: only a snapshot after *this* instant proves.
            stamps = {"draining": now, "idle_since": None}
        case S.LEAVING:
            stamps = {"left": now}
        case S.TERMINATING:
            stamps = {"terminating": now}
        case _:
            pass
    changes: dict[str, Any] = {"state": state, "unwell_since": None, **stamps}
    return replace(lease, **changes)


def _settled(lease: Lease, now: datetime) -> Lease:
    """The end: its cost is final and its reservation is free again."""
    return replace(
        lease,
        state=S.FAILED if lease.failure else S.GONE,
        ended=now,
        cost=money.accrued(lease, now) if lease.machine else Decimal(0),
        reserved=Decimal(0),
        retry_after=None,
        maybe_launched=False,
    )


def concluded(lease: Lease, kind: FailureClass, message: str, now: datetime) -> Lease:
    """The lease with this failure, unless it already has one."""
    if lease.failure is not None:
        return lease
    return replace(lease, failure=Failure(kind, message), failed=now)


def launching(lease: Lease, now: datetime) -> Lease:
    """What is stored *before* the provider is asked: from here on a machine may exist."""
    return replace(
        lease, attempted=now, launch_attempts=lease.launch_attempts + 1, maybe_launched=True
    )


def launched(lease: Lease, machine: Machine, now: datetime) -> Lease:
    """The provider accepted the launch and named the machine. An earlier request, whose answer
    was lost, may have made it: it costs money from when the provider says it was launched."""
    lease = replace(
        lease,
        machine=machine.id,
        zone=machine.zone or lease.zone,
        maybe_launched=True,
        setback=None,
        retry_after=None,
        requested=min(machine.launched or now, lease.requested or now, now),
    )
    if lease.state is not S.WANTED:
        return lease
    return step(lease, O.MACHINE_KNOWN, now).lease


def launch_failed(
    before: Lease, kind: FailureClass, message: str, policy: Policy, now: datetime
) -> Lease:
    """The launch did not happen, or is not known to have happened.

    `before` is the lease as it was before `launching`. A throttled or unanswered request is
    repeated later under the same id. Anything else is a clear no: this lease has failed, and
    another one, perhaps of another type, may follow. A clear no also settles earlier doubts: had
    an unanswered request made a machine, its repeat would have returned that machine.
    """
    asked = launching(before, now)
    reason = Failure(kind, message)
    if kind in (FailureClass.THROTTLED, FailureClass.LOST):
        return replace(
            asked,
            maybe_launched=before.maybe_launched or kind is FailureClass.LOST,
            setback=reason,
            retry_after=now + backoff(asked.launch_attempts, policy),
        )
    refused = replace(asked, maybe_launched=False, setback=None, retry_after=None)
    return step(refused, O.STOP, now, reason).lease


def backoff(attempts: int, policy: Policy) -> timedelta:
    """Doubling from `backoff_first` up to `backoff_limit`; `attempts` counts from 1."""
    doublings = min(max(attempts - 1, 0), 30)
    return min(policy.backoff_first * (1 << doublings), policy.backoff_limit)

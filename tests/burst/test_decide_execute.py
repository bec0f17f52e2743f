"""Carrying a decision out: what is stored when, and what a refusal stops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from burst.actions import Action, Admit, Drain, Launch, Remove, Route, Terminate, Update, Want
from burst.execute import Outcome, apply
from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.model import (
    Farm,
    Job,
    JobState,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    Node,
    NodeState,
    Offer,
    Policy,
)
from burst.providers.base import (
    LaunchRequest,
    NoCapacity,
    ProviderError,
    Throttled,
    Unreachable,
)
from tests.burst.test_leases import NOW, a_lease


@dataclass
class World:
    """Store, LRMS and provider in one, that note what happens in one log."""

    name: str = "aws"
    log: list[str] = field(default_factory=list)
    leases: dict[str, Lease] = field(default_factory=dict)
    answer: Exception | None = None
    farm: Farm = field(default_factory=lambda: Farm(NOW, (), ()))

    def lease(self, lease_id: str) -> Lease | None:
        return self.leases.get(lease_id)

    def want(self, lease: Lease) -> bool:
        self.log.append(f"want {lease.id[0]}")
        self.leases[lease.id] = lease
        return True

    def update(self, lease: Lease) -> None:
        self.log.append(f"store {lease.id[0]} {lease.state} {lease.launch_attempts}")
        self.leases[lease.id] = lease

    def offers(self) -> Sequence[Offer]:
        return ()

    def machines(self) -> Sequence[Machine]:
        return ()

    def launch(self, request: LaunchRequest) -> Machine:
        self.log.append(f"launch {request.lease_id[0]} {request.user_data}")
        self._raise()
        return Machine(
            "i-1", "aws", request.lease_id, MachineState.PENDING, request.type, "", launched=NOW
        )

    def terminate(self, machine_ids: Sequence[str]) -> None:
        self.log.append(f"terminate {','.join(machine_ids)}")
        self._raise()

    def snapshot(self) -> Farm:
        self._lrms("look")
        return self.farm

    def admit(self, node: Any) -> None:
        self._lrms(f"admit {node}")

    def route(self, job_id: str, partition: str) -> None:
        self._lrms(f"route {job_id}")

    def unroute(self, job_id: str, partition: str) -> None:
        self._lrms(f"unroute {job_id}")

    def drain(self, node: str, reason: str) -> None:
        self._lrms(f"drain {node}")

    def remove(self, node: str) -> None:
        self._lrms(f"remove {node}")

    def _lrms(self, what: str) -> None:
        self.log.append(what)
        self._raise()

    def _raise(self) -> None:
        if self.answer is not None:
            raise self.answer


class Batching(World):
    def route_many(self, routes: Iterable[tuple[str, str]]) -> Mapping[str, str]:
        self.log.append(f"route {','.join(job for job, _ in routes)}")
        return {"2": "job 2 is held"}


def done(world: World, *actions: Action) -> tuple[Outcome, ...]:
    return apply(
        actions,
        store=world,
        lrms=world,
        providers={"aws": world},
        user_data=lambda lease: f"for {lease.node}",
        policy=Policy(),
        clock=lambda: NOW,
    )


def test_the_intention_is_stored_before_the_provider_is_asked() -> None:
    world = World()
    done(world, Want(a_lease()), Launch("a" * 32))
    assert world.log == [
        "want a",
        "store a wanted 1",
        "launch a for cms-aws-aaaaaaaa",
        "store a requested 1",
    ]
    assert world.leases["a" * 32].machine == "i-1"


def test_only_a_wanted_lease_is_launched() -> None:
    world = World()
    (outcome,) = done(world, Launch("a" * 32))
    assert not outcome.ok
    world.leases["a" * 32] = a_lease(LeaseState.TERMINATING)
    (outcome,) = done(world, Launch("a" * 32))
    assert not outcome.ok
    assert world.log == []


@pytest.mark.parametrize(
    ("error", "state", "doubt", "others_asked"),
    [
        (Throttled("slow"), LeaseState.WANTED, False, False),
        (Unreachable("timeout"), LeaseState.WANTED, True, False),
        (NoCapacity("none"), LeaseState.TERMINATING, False, True),
    ],
)
def test_refused_launches(
    error: ProviderError, state: LeaseState, doubt: bool, others_asked: bool
) -> None:
    world = World(answer=error)
    second = a_lease(id="b" * 32)
    outcomes = done(world, Want(a_lease()), Want(second), Launch("a" * 32), Launch("b" * 32))
    assert [outcome.ok for outcome in outcomes] == [True, True, False, False]
    stored = world.leases["a" * 32]
    assert (stored.state, stored.maybe_launched) == (state, doubt)
    asked = any(line.startswith("launch b") for line in world.log)
    assert asked is others_asked, "who throttles is not asked again in the same round"


def test_a_silent_lrms_is_asked_once_a_round_and_a_refusal_stops_nobody() -> None:
    silent = World(answer=LrmsUnavailable("timed out"))
    assert [o.ok for o in done(silent, Drain("n1", "x"), Remove("n2"), Route("1", "p"))] == [
        False,
        False,
        False,
    ]
    assert silent.log == ["drain n1"]
    refusing = World(answer=LrmsError("has jobs"))
    done(refusing, Remove("n1"), Remove("n2"))
    assert refusing.log == ["remove n1", "remove n2"]


def test_machines_of_one_provider_go_in_one_call_after_all_else() -> None:
    world = World()
    lease = a_lease(LeaseState.TERMINATING)
    done(
        world,
        Terminate("aws", ("i-1",), "a" * 32),
        Update(lease),
        Terminate("aws", ("i-2", "i-1"), None),
    )
    assert world.log == ["store a terminating 0", "terminate i-1,i-2"]


def test_routes_go_in_one_call_where_the_lrms_can_do_that() -> None:
    many = Batching()
    outcomes = done(many, Route("1", "p"), Route("2", "p"), Drain("n", "x"))
    assert many.log == ["route 1,2", "drain n"]
    assert [outcome.error for outcome in outcomes] == ["", "job 2 is held", ""]
    one = World()
    done(one, Route("1", "p"), Route("2", "p"))
    assert one.log == ["route 1", "route 2"]


def test_an_error_of_the_store_ends_the_round() -> None:
    class Full(World):
        def update(self, lease: Lease) -> None:
            raise OSError("disk full")

    full = Full(leases={"a" * 32: a_lease()})
    with pytest.raises(OSError, match="disk full"):
        done(full, Launch("a" * 32))
    assert full.log == [], "nothing is done that is not written down"


def test_admit_gets_the_node_as_seen() -> None:
    world = World()
    done(world, Admit("node"))  # type: ignore[arg-type]
    assert world.log == ["admit node"]


# -- the last look, in front of what cannot be undone

LEFT = a_lease(LeaseState.TERMINATING, machine="i-1", left=NOW)
RETURN = Terminate("aws", ("i-1",), LEFT.id)


def node(state: NodeState) -> Node:
    return Node(LEFT.node, state, 2, 0, 8000)


def job(state: JobState, where: str = LEFT.node) -> Job:
    return Job("7", "alice", "cms", state, ("batch",), 1, 1, 0, None, NOW, node_names=(where,))


def returned(farm: Farm, lease: Lease = LEFT) -> tuple[list[str], list[str]]:
    """What was done, and what was said, when the machine should go back."""
    made = World(farm=farm, leases={lease.id: lease})
    outcomes = apply(
        [RETURN],
        store=made, lrms=made, providers={"aws": made}, user_data=lambda _: "", policy=Policy(),
        clock=lambda: NOW,
    )  # fmt: skip
    return made.log, [outcome.error for outcome in outcomes]


@pytest.mark.parametrize(
    "farm",
    [
        Farm(NOW, (), ()),
        Farm(NOW, (), (node(NodeState.DRAINED),)),
        Farm(NOW, (), (node(NodeState.DOWN),)),
        Farm(NOW, (job(JobState.RUNNING, "wn1"),), ()),
        Farm(NOW, (job(JobState.COMPLETING),), (node(NodeState.DOWN),)),
    ],
)
def test_a_machine_without_work_goes_back(farm: Farm) -> None:
    assert returned(farm) == (["look", "terminate i-1"], [""])


@pytest.mark.parametrize(
    "farm",
    [
        Farm(NOW, (), (node(NodeState.IDLE),)),
        Farm(NOW, (job(JobState.RUNNING),), (node(NodeState.ALLOCATED),)),
        Farm(NOW, (job(JobState.RUNNING),), (node(NodeState.DRAINING),)),
    ],
)
def test_a_node_that_registered_again_in_the_last_moment_keeps_its_machine(farm: Farm) -> None:
    assert returned(farm) == (
        ["look"],
        [f"node {LEFT.node} registered again: it is drained first"],
    )


def test_who_never_was_a_node_is_not_looked_for() -> None:
    lease = a_lease(LeaseState.TERMINATING, machine="i-1")
    assert returned(Farm(NOW, (), (node(NodeState.IDLE),)), lease) == (["terminate i-1"], [""])


def test_where_nobody_answers_it_waits_but_not_for_ever() -> None:
    def silent(since: datetime) -> tuple[list[str], list[str]]:
        lease = a_lease(LeaseState.TERMINATING, machine="i-1", left=since)
        world = World(leases={lease.id: lease}, answer=LrmsUnavailable("slurmctld: no answer"))
        outcomes = apply(
            [RETURN],
            store=world, lrms=world, providers={"aws": World()}, user_data=lambda _: "",
            policy=Policy(), clock=lambda: NOW,
        )  # fmt: skip
        return world.log, [outcome.error for outcome in outcomes]

    log, (error,) = silent(NOW)
    assert (log, error) == (["look"], "the LRMS does not answer: slurmctld: no answer")
    assert silent(NOW - Policy().lost_timeout) == (["look"], [""])


def test_one_look_is_enough_for_many() -> None:
    other = a_lease(LeaseState.TERMINATING, id="b" * 32, machine="i-2", left=NOW, node="b")
    world = World(
        leases={LEFT.id: LEFT, other.id: other}, farm=Farm(NOW, (), (node(NodeState.IDLE),))
    )
    done = [RETURN, Terminate("aws", ("i-2",), other.id)]
    apply(
        done,
        store=world, lrms=world, providers={"aws": world}, user_data=lambda _: "", policy=Policy(),
        clock=lambda: NOW,
    )  # fmt: skip
    assert world.log == ["look", "terminate i-2"]

"""Carrying a decision out: what is stored when, and what a refusal stops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from burst.actions import Action, Admit, Drain, Launch, Remove, Route, Terminate, Update, Want
from burst.execute import Outcome, apply
from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.model import Lease, LeaseState, Machine, MachineState, Offer, Policy
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

    def snapshot(self) -> Any:
        raise NotImplementedError

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

"""Mixed mode: the cores of jobs and machines add up, whatever starts, stops, fails or is killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burst.lrms.base import LrmsError, LrmsUnavailable
from burst.lrms.command import Result
from burst.mixed.ledger import Cores, settle
from burst.mixed.provider import MixedProvider
from burst.mixed.slurm import SlurmShare, held_cores
from burst.providers.base import Misconfigured, NoCapacity, ProviderError, Unreachable
from burst.providers.libvirt import HALF_MADE, LibvirtProvider
from burst.providers.libvirt_domain import uuid_of
from tests.burst.hypervisor_stand_in import Killed, StandIn
from tests.burst.test_libvirt import CONFIG, IMAGES, LEASE, NOW, REQUEST

TOTAL = 6


@dataclass
class Node:
    """A batch system's node: it gives a core to one job, or holds it, never both."""

    total: int = TOTAL
    jobs: list[int] = field(default_factory=list)
    holds: dict[str, int] = field(default_factory=dict)
    silent: bool = False

    def start_job(self, cores: int) -> bool:
        if sum(self.jobs) + sum(self.holds.values()) + cores > self.total:
            return False
        self.jobs.append(cores)
        return True

    def cores(self) -> Cores:
        self._answer()
        return Cores(self.total, sum(self.jobs), sum(self.holds.values()))

    def held(self) -> Mapping[str, int]:
        self._answer()
        return dict(self.holds)

    def hold(self, lease_id: str, cores: int) -> None:
        self._answer()
        if lease_id in self.holds:
            return
        if cores > self.cores().free:
            raise NoCapacity("busy")
        self.holds[lease_id] = cores

    def release(self, lease_id: str) -> None:
        self._answer()
        self.holds.pop(lease_id, None)

    def _answer(self) -> None:
        if self.silent:
            raise LrmsUnavailable("no answer")


@dataclass
class World:
    node: Node = field(default_factory=Node)
    host: StandIn = field(default_factory=lambda: StandIn(99, 10**6, stored=dict(IMAGES)))
    on: bool = True
    now: datetime = NOW

    def provider(self) -> MixedProvider:
        """Another process each time: nothing is remembered."""
        inner = LibvirtProvider("hv", CONFIG, hypervisor=self.host, clock=lambda: self.now)
        return MixedProvider(inner, self.node, lambda: self.on)

    def used(self) -> int:
        running = sum(d.cores for d in self.host.known.values() if d.active)
        return sum(self.node.jobs) + running

    def kill_at(self, step: int, *, after: bool) -> None:
        self.host.at, self.host.after = len(self.host.calls) + step, after


leases = st.integers(0, 4)
steps = st.one_of(
    st.tuples(st.just("launch"), leases, st.booleans()),
    st.tuples(st.just("killed launch"), leases, st.integers(0, 6), st.booleans()),
    st.tuples(st.just("refused launch"), leases, st.integers(0, 5)),
    st.tuples(st.just("return"), leases),
    st.tuples(st.just("killed return"), leases, st.integers(0, 3), st.booleans()),
    st.tuples(st.just("power off"), leases),
    st.tuples(st.just("job"), st.integers(1, 4)),
    st.tuples(st.just("job ends")),
    st.tuples(st.just("list")),
    st.tuples(st.just("switch")),
    st.tuples(st.just("silence")),
    st.tuples(st.just("time")),
)


def act(world: World, step: Sequence[object]) -> None:
    what, *rest = step
    number = rest[0] if rest and isinstance(rest[0], int) else 0
    lease = f"{number:032x}"
    large = "large" if number % 2 else "small"
    request = replace(REQUEST, lease_id=lease, type=large, name=f"n{number}")
    ours = world.provider()
    world.host.at = -1
    match what:
        case "launch":
            ours.launch(request)
        case "killed launch":
            world.kill_at(int(str(rest[1])), after=bool(rest[2]))
            ours.launch(request)
        case "refused launch":
            world.kill_at(int(str(rest[1])), after=False)
            world.host.fault = lambda: Misconfigured("no")
            ours.launch(request)
        case "return":
            ours.terminate([uuid_of(lease)])
        case "killed return":
            world.kill_at(int(str(rest[1])), after=bool(rest[2]))
            ours.terminate([uuid_of(lease)])
        case "power off" if uuid_of(lease) in world.host.known:
            world.host.powers_off(uuid_of(lease))
        case "job":
            world.node.start_job(number)
        case "job ends" if world.node.jobs:
            world.node.jobs.pop()
        case "list":
            ours.machines()
        case "switch":
            world.on = not world.on
        case "silence":
            world.node.silent = not world.node.silent
        case "time":
            world.now += HALF_MADE


@settings(max_examples=150)
@given(st.lists(steps, max_size=30))
def test_cores_add_up_under_any_sequence(sequence: list[tuple[object, ...]]) -> None:
    world = World()
    for step in sequence:
        try:
            act(world, step)
        except (ProviderError, Killed):
            pass
        finally:
            world.host.fault = Killed
        assert world.used() <= TOTAL, step
        running = {d.uuid.replace("-", ""): d.cores for d in world.host.known.values() if d.active}
        assert running.items() <= world.node.holds.items(), "a machine without its hold"
    # All is returned and looked at once more: every core is the batch system's again.
    world.host.at, world.node.silent = -1, False
    ours = world.provider()
    world.now += HALF_MADE
    ours.terminate([machine.id for machine in ours.machines()])
    ours.machines()
    assert world.node.holds == {}
    assert set(world.host.stored) == set(IMAGES)


def test_a_machine_takes_cores_from_the_batch_system_and_gives_them_back() -> None:
    world = World()
    ours = world.provider()
    machine = ours.launch(replace(REQUEST, type="large"))
    assert world.node.holds == {LEASE: 4}
    assert not world.node.start_job(3), "a job would run on the machine's cores"
    assert world.node.start_job(2), "a job beside the machine"
    ours.terminate([machine.id])
    assert world.node.holds == {}
    assert world.node.start_job(4)


def test_jobs_are_not_pushed_aside_for_a_machine() -> None:
    world = World()
    world.node.start_job(3)
    with pytest.raises(NoCapacity):
        world.provider().launch(replace(REQUEST, type="large"))
    assert (world.host.known, world.node.holds) == ({}, {})
    offers = {offer.type: offer.available for offer in world.provider().offers()}
    assert offers == {"small": 3, "large": 0}


def test_turned_off_nothing_starts_and_what_runs_goes_on() -> None:
    world = World()
    machine = world.provider().launch(REQUEST)
    world.on = False
    other = replace(REQUEST, lease_id="f" * 32, name="other")
    with pytest.raises(NoCapacity, match="mixed mode is off"):
        world.provider().launch(other)
    assert {offer.available for offer in world.provider().offers()} == {0}
    assert world.provider().launch(REQUEST).id == machine.id, "the repeat finds its machine"
    assert world.node.holds == {LEASE: 1}
    world.on = True
    assert world.provider().launch(other)


def test_without_the_batch_systems_word_nothing_starts() -> None:
    world = World()
    world.node.silent = True
    with pytest.raises(Unreachable, match="does not answer"):
        world.provider().launch(REQUEST)
    assert world.host.known == {}
    assert world.provider().machines() == (), "machines are still listed"
    assert {offer.available for offer in world.provider().offers()} == {0}


def test_a_hold_that_somebody_removed_is_taken_again() -> None:
    world = World()
    world.provider().launch(REQUEST)
    world.node.holds.clear()
    world.node.start_job(TOTAL)
    world.provider().machines()
    assert world.node.holds == {}, "there is no room now, and nobody is killed for it"
    world.node.jobs.clear()
    world.provider().machines()
    assert world.node.holds == {LEASE: 1}


maps = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 4))


@given(maps, maps)
def test_a_settlement_settles(machines: dict[str, int], held: dict[str, int]) -> None:
    due = settle(machines, held)
    after = {lease: cores for lease, cores in held.items() if lease not in due.give}
    after |= dict(due.take)
    assert after.keys() == machines.keys()
    assert not settle(machines, after).needed


# Slurm's words, as 22.05 said them

RESERVED = (
    "ReservationName=dvn-{} StartTime=2026-11-22T17:45:30 EndTime=2027-11-22T17:45:30 "
    "Duration=365-00:00:00 Nodes={} NodeCnt=1 CoreCnt={} Features=(null) PartitionName=batch "
    "Flags=SPEC_NODES   NodeName={} CoreIDs=1 TRES=cpu=1 Users=root Groups=(null) Accounts=(null) "
    "Licenses=(null) State=ACTIVE BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)\n"
)


def answers(*results: tuple[int, str, str], told: list[Sequence[str]] | None = None) -> SlurmShare:
    """A node whose Slurm says this, in turn; `sinfo` is always answered."""
    left = list(results)

    def run(argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        if told is not None:
            told.append(tuple(argv))
        if argv[0] == "sinfo":
            return Result(0, "1/5/0/6 2\n", "")
        return Result(*left.pop(0))

    return SlurmShare("hv1", runner=run)


def test_only_our_reservations_on_this_node_count() -> None:
    shown = "".join(
        (
            RESERVED.format(LEASE, "hv1", 2, "hv1"),
            RESERVED.format("f" * 32, "hv2", 1, "hv2"),
            RESERVED.format("maintenance", "hv1", 1, "hv1"),
        )
    )
    assert held_cores(shown, "hv1", 1) == {LEASE: 2}
    assert held_cores("No reservations in the system\n", "hv1", 1) == {}
    assert answers((0, shown, "")).held() == {LEASE: 4}, "two threads a core"


def test_whole_cores_are_held() -> None:
    told: list[Sequence[str]] = []
    answers((0, f"Reservation created: dvn-{LEASE}\n", ""), told=told).hold(LEASE, 3)
    assert "CoreCnt=2" in told[-1]
    assert f"ReservationName=dvn-{LEASE}" in told[-1]


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("Error creating the reservation: Duplicate reservation name", None),
        ("Error creating the reservation: Requested nodes are busy\nNote, ...", NoCapacity),
        ("Error creating the reservation: Invalid node name specified", LrmsError),
        ("Unable to contact slurm controller (connect failure)", LrmsUnavailable),
    ],
)
def test_what_slurm_says_to_a_hold(said: str, outcome: type[Exception] | None) -> None:
    share = answers((1, "", said))
    if outcome is None:
        share.hold(LEASE, 1)
        return
    with pytest.raises(outcome):
        share.hold(LEASE, 1)


def test_giving_back_what_is_not_held_is_no_error() -> None:
    said = f"delete_reservation ReservationName=dvn-{LEASE}: Requested reservation is invalid"
    answers((1, "", said)).release(LEASE)


def test_a_node_slurm_does_not_know() -> None:
    def run(argv: Sequence[str], given: str, timeout: timedelta) -> Result:
        return Result(0, "", "")

    with pytest.raises(LrmsError, match="is unknown to Slurm"):
        SlurmShare("hv9", runner=run).cores()

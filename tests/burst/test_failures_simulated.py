"""Failures with a promise of their own, in the made-up world: one fault at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from burst.model import FailureClass
from gateway.store import Store
from lab.simulated.faults import quiet
from lab.simulated.site import POLICY, WATCHDOG
from lab.simulated.world import World


def _lived(seed: int, **faults: float) -> World:
    store = Store.open("sqlite:///:memory:")
    return World(seed, faults=replace(quiet(), **faults), store=store).run()


@pytest.fixture(scope="module")
def taken_back() -> list[World]:
    """Worlds whose provider takes every machine back, after a notice."""
    return [_lived(seed, interrupted=1.0) for seed in range(2)]


def test_a_machine_taken_back_is_gone_before_its_deadline_and_its_jobs_end_elsewhere(
    taken_back: list[World],
) -> None:
    announced = [
        one
        for world in taken_back
        for one in world.ec2.instances.values()
        if one.taken_back is not None
    ]
    assert announced
    for one in announced:
        assert one.ended is not None
        assert one.taken_back is not None
        assert one.ended < one.taken_back, f"{one.id} ended by {one.why}"


def test_where_a_machine_was_taken_back_no_other_is_rented_but_elsewhere(
    taken_back: list[World],
) -> None:
    replaced = 0
    for world in taken_back:
        leases = world.store.all_leases()
        for taken in leases:
            if taken.failure is None or taken.failure.kind is not FailureClass.INTERRUPTED:
                continue
            assert taken.failed is not None
            until = taken.failed + POLICY.pause
            later = {other.type for other in leases if taken.failed < other.wanted < until}
            assert taken.type not in later
            replaced += bool(later)
    assert replaced, "control: the queue still wanted machines, and got them elsewhere"


def test_a_bootstrap_that_never_works_is_tried_k_times_then_the_pool_pauses() -> None:
    world = _lived(0, no_join=1.0)
    started = {one.tags["dvn:tenant"]: 0 for one in world.ec2.instances.values()}
    first = min(one.launched for one in world.ec2.instances.values())
    for one in world.ec2.instances.values():
        if one.launched < first + POLICY.pause:
            started[one.tags["dvn:tenant"]] += 1
    assert all(count <= POLICY.failures_to_pause for count in started.values())
    assert all(job.on in ("", "wn1") for job in world.farm.jobs.values())


def test_a_machine_cut_off_is_gone_in_time_and_no_job_is_lost() -> None:
    world = _lived(3, cut_off=1.0)
    cut = [g for g in world.guests() if g.flaws.cut_off and g.instance.ended]
    late = [
        guest.instance.id
        for guest in cut
        if guest.flaws.cut_off is not None
        and guest.instance.ended is not None
        and guest.instance.ended > guest.flaws.cut_off + WATCHDOG + timedelta(minutes=1)
    ]
    assert cut
    assert late == []


def test_without_a_gateway_every_machine_ends_by_itself() -> None:
    store = Store.open("sqlite:///:memory:")
    world = World(3, faults=quiet(), store=store)
    with world.faulty_store():
        while not any(guest.step == "joined" for guest in world.guests()):
            world.pass_time(5)
            world.loop.round()
        world.silence_gateway()
        world.pass_time(2 * WATCHDOG.total_seconds() + 120)
    assert world.ec2.living() == []
    assert {one.why for one in world.ec2.instances.values()} == {"Client.InstanceInitiatedShutdown"}

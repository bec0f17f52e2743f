"""Whole bursts in a simulated world with seeded faults and kills; a seed that fails replays."""

from __future__ import annotations

from datetime import timedelta

import pytest

from burst import leases
from burst.leases import Cell, Effect, Observation
from burst.model import LeaseState
from tests.burst.simulated_world import EPOCH, Broken, World

SEEDS = 300
GROUP = 30


def _run_all(seeds: range) -> None:
    for seed in seeds:
        World(seed).run(timedelta(hours=2))


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_every_burst_ends_well_whatever_goes_wrong(first: int) -> None:
    """All jobs complete once, all leases end, no machine is left, no budget is exceeded, and no
    machine is returned with a job on it (each checked by the world itself)."""
    broken: list[str] = []
    for seed in range(first, first + GROUP):
        try:
            World(seed).run()
        except Broken as error:
            broken.append(f"seed {seed}: {error}")
    assert not broken, "\n".join(broken)


def test_the_world_is_as_hard_as_it_claims() -> None:
    """Faults happen, bursts happen, and kills happen between the calls."""
    worlds = [World(seed) for seed in range(GROUP)]
    for world in worlds:
        world.run()
    stored = [lease for world in worlds for lease in world.store.leases.values()]
    kinds = {lease.failure.kind.value for lease in stored if lease.failure}
    assert sum(world.kills for world in worlds) > 30
    assert kinds >= {"tunnel", "bootstrap", "no_capacity", "lost"}
    assert sum(lease.used is not None for lease in stored) > 20


def test_a_quiet_world_bursts_and_is_clean_in_minutes() -> None:
    world = World(0)
    world.calm = True
    world.run(timedelta(minutes=25))
    assert world.clock.now - EPOCH < timedelta(minutes=25)
    assert any(lease.used for lease in world.store.leases.values())


@pytest.mark.parametrize(
    ("state", "seen", "cell"),
    [
        # The machine goes back although its node may have a job.
        (LeaseState.JOINED, Observation.STOP, Cell(LeaseState.TERMINATING, Effect.TERMINATE)),
        # Nothing is returned: machines are left.
        (LeaseState.TERMINATING, Observation.MACHINE_UP, Cell(LeaseState.GONE, Effect.SETTLE)),
        # A drained node with a job counts as empty.
        (LeaseState.DRAINING, Observation.NODE_BUSY, Cell(LeaseState.TERMINATING)),
    ],
)
def test_the_world_notices_a_broken_engine(
    state: LeaseState, seen: Observation, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with one wrong cell in the table some seed must fail."""
    monkeypatch.setitem(leases.TABLE, (state, seen), cell)
    with pytest.raises(Broken):
        _run_all(range(GROUP))

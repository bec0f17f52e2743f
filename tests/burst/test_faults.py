"""The whole controller in made-up worlds with seeded faults; `./run bench faults` has 10,000."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from burst import leases
from burst.leases import Cell, Effect, Observation
from burst.model import LeaseState
from burst.round import Round
from gateway.store import Store
from lab.simulated.faults import Broken, quiet
from lab.simulated.site import EPOCH
from lab.simulated.world import World

SHORT, LONG, GROUP = 16, 500, 8
long = pytest.mark.long


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store.open("sqlite:///:memory:") as store:
        yield store


@pytest.mark.parametrize(
    "first",
    [
        *range(0, SHORT, GROUP),
        *(pytest.param(first, marks=long) for first in range(SHORT, LONG, GROUP)),
    ],
)
def test_nothing_is_lost_or_left_or_overspent(first: int, store: Store) -> None:
    """No job lost or run twice, no machine unaccounted for or returned with a job on it, no budget
    exceeded, and all leases end: lab/simulated/invariants.py checks each after every round."""
    broken = []
    for seed in range(first, min(first + GROUP, LONG)):
        try:
            World(seed, store=store).run()
        except Broken as error:
            broken.append(f"./run bench faults --seed {seed} -v: {error}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("seed", [38, 674, 941, 3545, 3870, 4776, 4981, 5510, 5887])
def test_worlds_in_which_a_node_came_back_while_its_machine_was_returned(
    seed: int, store: Store
) -> None:
    """Each of them once lost a job: the node was given it just before the machine ended."""
    World(seed, store=store).run()


def test_a_clock_set_back_while_the_gateway_was_away_makes_nothing_cheaper(store: Store) -> None:
    """It cost 0.3035 of 0.30: a machine that never booted seemed ten minutes younger, when the
    gateway, killed, stood on the clock again."""
    World(1984, store=store).run()


def test_the_worlds_are_as_hard_as_they_claim(store: Store) -> None:
    kinds: Counter[str] = Counter()
    kills = used = 0
    for seed in range(100, 100 + GROUP):
        world = World(seed, store=store).run()
        kills += world.kills
        for lease in store.all_leases():
            kinds[lease.failure.kind.value if lease.failure else "returned"] += 1
            used += lease.used is not None
    assert kills >= GROUP
    assert used >= GROUP
    assert len(kinds) >= 4, kinds


def test_a_quiet_world_bursts_and_is_clean_in_minutes(store: Store) -> None:
    world = World(0, faults=quiet(), store=store).run()
    assert world.now - EPOCH < timedelta(minutes=25)
    ended = store.all_leases()
    assert ended
    assert {lease.state for lease in ended} == {LeaseState.GONE}


def test_a_seed_tells_the_same_story_in_another_process() -> None:
    """Whatever the order of its sets: or a failing seed could not be looked into."""
    told = set()
    for hash_seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        argv = [sys.executable, "-m", "bench", "faults", "--seed", "7"]
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        told.add(done.stdout)
    assert len(told) == 1


def test_the_worlds_notice_machines_returned_with_a_job(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a lease that does not drain, and no last look at its node to save it."""
    cell = Cell(LeaseState.TERMINATING, Effect.TERMINATE)
    monkeypatch.setitem(leases.TABLE, (LeaseState.JOINED, Observation.STOP), cell)
    monkeypatch.setattr(Round, "_may_work", lambda _round, _lease: False)
    assert "with jobs" in _first_broken(lambda seed: World(seed, store=store).run())


def test_the_worlds_notice_machines_that_are_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a lease that ends while its machine runs."""
    cell = Cell(LeaseState.GONE, Effect.SETTLE)
    monkeypatch.setitem(leases.TABLE, (LeaseState.TERMINATING, Observation.MACHINE_UP), cell)
    assert _first_broken(lambda seed: World(seed, store=store).run())


def _first_broken(tell: Callable[[int], object]) -> str:
    """How the first story that ends badly does; "" if none does."""
    for seed in range(LONG):
        try:
            tell(seed)
        except Broken as error:
            return str(error)
    return ""

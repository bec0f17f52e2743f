"""The contract suite against real daemons on lab hosts. Root, debootstrap, a mirror."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.farm.gridengine import GridEngineCell
from lab.farm.ground import RealGround
from lab.farm.htcondor import HtCondorPool
from lab.farm.realslurm import SlurmBookworm, SlurmTrixie
from lab.scenarios.overflow import FARMS, play
from tests.burst.lrms.contract import LrmsContract

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def condor() -> Iterator[HtCondorPool]:
    with HtCondorPool() as pool:
        yield pool


class TestHtCondor(LrmsContract):
    @pytest.fixture
    def ground(self, condor: HtCondorPool) -> Iterator[RealGround]:
        yield condor
        condor.clear()


@pytest.fixture(scope="module")
def grid_engine() -> Iterator[GridEngineCell]:
    with GridEngineCell() as cell:
        yield cell


class TestGridEngine(LrmsContract):
    @pytest.fixture
    def ground(self, grid_engine: GridEngineCell) -> Iterator[RealGround]:
        yield grid_engine
        grid_engine.clear()


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmTrixie]:
    with SlurmTrixie() as cluster:
        yield cluster


class TestSlurm(LrmsContract):
    @pytest.fixture
    def ground(self, slurm: SlurmTrixie) -> Iterator[RealGround]:
        yield slurm
        slurm.clear()


@pytest.fixture(scope="module")
def older_slurm() -> Iterator[SlurmBookworm]:
    with SlurmBookworm() as cluster:
        yield cluster


class TestSlurm2205(LrmsContract):
    @pytest.fixture
    def ground(self, older_slurm: SlurmBookworm) -> Iterator[RealGround]:
        yield older_slurm
        older_slurm.clear()


@pytest.mark.parametrize("name", FARMS)
def test_a_queue_overflows_and_nothing_is_left(name: str) -> None:
    """Decided by the production engine: the same job ids, done elsewhere, and all given back."""
    with FARMS[name]() as ground:
        told = play(ground, jobs=5)
    assert len(told.ran) == 5
    assert all(where.startswith("cms-lab-") for where in told.ran.values())
    assert told.leftovers == ()

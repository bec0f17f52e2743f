"""The contract suite on stand-ins: all batch systems, in versions that are not here for real."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from burst.lrms.base import Lrms
from burst.lrms.gridengine import GridEngine
from burst.lrms.htcondor import HtCondor
from burst.lrms.lsf import Lsf
from burst.lrms.pbs import OpenPbs, Torque
from burst.lrms.slurm import Slurm
from burst.model import Farm
from lab.farm.standin import (
    GridEngineStandIn,
    HtCondorStandIn,
    LsfStandIn,
    OpenPbsStandIn,
    SlurmStandIn,
    StandIn,
    TorqueStandIn,
)
from lab.farm.standin.state import SimJob
from tests.burst.lrms.contract import LrmsContract


class StandInGround:
    """A stand-in as a `Ground`: time passes only when somebody waits."""

    def __init__(self, there: StandIn, lrms: Lrms, *, keeps_drain_reason: bool) -> None:
        self.there = there
        self.lrms = lrms
        self.local = there.local
        self.burst = there.burst
        self.keeps_drain_reason = keeps_drain_reason

    def submit(self, *, cores: int = 1, held: bool = False, tasks: int = 0) -> list[str]:
        made = self.there.submit(cores=cores, held=held, tasks=tasks)
        return [self.there.job_id(one) for one in made]

    def start_daemon(self, node: str, cores: int) -> None:
        self.there.register(node, cores)

    def until(self, seen: Callable[[Farm], bool], what: str) -> Farm:
        for _ in range(5):
            self.there.pass_time(timedelta(seconds=1))
            self.there.schedule()
            farm = self.lrms.snapshot()
            if seen(farm):
                return farm
        pytest.fail(f"waited in vain: {what}; {farm}")

    def end(self, job_id: str) -> None:
        self.there.end(self._one(job_id))

    def power_off(self, node: str) -> None:
        self.there.power_off(node)

    def give_up_lost(self) -> None:
        self.there.pass_time(timedelta(minutes=6))

    def server(self, *, up: bool) -> None:
        self.there.away = not up
        self.there.pass_time(timedelta(minutes=1))  # what was read before is old

    def operator_drain(self, node: str) -> None:
        self.there.nodes[node].closed = "disk is full"

    def _one(self, job_id: str) -> SimJob:
        (found,) = self.there.find(job_id)
        return found


def slurm(version: tuple[int, int]) -> StandInGround:
    there = SlurmStandIn(version)
    lrms = Slurm(runner=there, clock=lambda: there.now, wait=lambda _: None)
    return StandInGround(there, lrms, keeps_drain_reason=True)


def htcondor(version: tuple[int, int]) -> StandInGround:
    there = HtCondorStandIn(version)
    lrms = HtCondor(runner=there, clock=lambda: there.now)
    return StandInGround(there, lrms, keeps_drain_reason=True)


def gridengine() -> StandInGround:
    there = GridEngineStandIn()
    lrms = GridEngine(["burst.q"], runner=there, clock=lambda: there.now)
    return StandInGround(there, lrms, keeps_drain_reason=False)


def openpbs() -> StandInGround:
    there = OpenPbsStandIn()
    lrms = OpenPbs(["burst"], local=["workq"], runner=there, clock=lambda: there.now)
    return StandInGround(there, lrms, keeps_drain_reason=True)


def torque() -> StandInGround:
    there = TorqueStandIn()
    lrms = Torque(["burst"], local=["batch"], runner=there, clock=lambda: there.now)
    return StandInGround(there, lrms, keeps_drain_reason=True)


def lsf() -> StandInGround:
    there = LsfStandIn()
    lrms = Lsf({"burst": "normal"}, runner=there, clock=lambda: there.now)
    return StandInGround(there, lrms, keeps_drain_reason=False)


ALL: dict[str, Callable[[], StandInGround]] = {
    "slurm-22.05": lambda: slurm((22, 5)),
    "slurm-24.11": lambda: slurm((24, 11)),
    "slurm-26.05": lambda: slurm((26, 5)),
    "htcondor-23.9": lambda: htcondor((23, 9)),
    "htcondor-25.14": lambda: htcondor((25, 14)),
    "gridengine-8.1.9": gridengine,
    "openpbs-23.06": openpbs,
    "torque-6.1": torque,
    "lsf-10.1": lsf,
}


class TestStandIns(LrmsContract):
    @pytest.fixture(params=list(ALL))
    def ground(self, request: pytest.FixtureRequest) -> StandInGround:
        return ALL[request.param]()

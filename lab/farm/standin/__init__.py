"""Batch systems that are not here: commands with a memory, which answer as the real ones were
recorded or are documented to, rules, exit statuses and messages included."""

from lab.farm.standin.gridengine import GridEngineStandIn
from lab.farm.standin.htcondor import HtCondorStandIn
from lab.farm.standin.lsf import LsfStandIn
from lab.farm.standin.openpbs import OpenPbsStandIn
from lab.farm.standin.slurm import SlurmStandIn
from lab.farm.standin.state import StandIn
from lab.farm.standin.torque import TorqueStandIn

__all__ = [
    "GridEngineStandIn",
    "HtCondorStandIn",
    "LsfStandIn",
    "OpenPbsStandIn",
    "SlurmStandIn",
    "StandIn",
    "TorqueStandIn",
]

"""Real batch systems on lab hosts."""

from lab.farm.config import Timing, User
from lab.farm.jobcomp import FinishedJob
from lab.farm.slurm import SlurmFarm, leave

__all__ = ["FinishedJob", "SlurmFarm", "Timing", "User", "leave"]

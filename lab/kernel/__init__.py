"""Runs a command on a full kernel: here when this kernel has all that the lab needs, else in a
small VM.
"""

from lab.kernel.errors import KernelError
from lab.kernel.features import FEATURES, missing_features
from lab.kernel.image import Kernel, find_kernel
from lab.kernel.runner import run
from lab.kernel.vm import Vm

__all__ = ["FEATURES", "Kernel", "KernelError", "Vm", "find_kernel", "missing_features", "run"]

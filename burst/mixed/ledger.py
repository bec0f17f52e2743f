"""Whose the cores of a host are: the batch system's, or held for virtual machines. Pure.

The rule that keeps them from adding up to more than there are: a machine is made only under a
hold, which the batch system grants out of cores that no job has, and a hold is given back only
when nothing of its machine is left. What a kill leaves in between is a hold without a machine:
too little is used for a moment, never too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cores:
    """A host's cores (CPUs of the batch system's node) as the batch system tells them."""

    total: int
    jobs: int  # allocated to jobs
    held: int  # kept from jobs for machines
    closed: int = 0  # idle, but the node takes no job: drained or down

    @property
    def free(self) -> int:
        """What could be held now."""
        return max(self.total - self.jobs - self.held - self.closed, 0)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What brings the holds in line with the machines: first give, then take."""

    give: tuple[str, ...]  # holds of leases that have nothing here any more
    take: tuple[tuple[str, int], ...]  # machines that run without a hold, with their cores

    @property
    def needed(self) -> bool:
        return bool(self.give or self.take)


def settle(machines: Mapping[str, int], held: Mapping[str, int]) -> Settlement:
    """machines: cores by lease id of all that is defined on the host, running or not; held: the
    cores the batch system keeps from jobs, by lease id.

    A machine without its hold is not stopped: somebody has removed the hold, and a job may lose
    less by sharing a core than by being killed. It is taken again as soon as there is room.
    """
    return Settlement(
        give=tuple(sorted(lease for lease in held if lease not in machines)),
        take=tuple(
            (lease, machines[lease]) for lease in sorted(machines) if held.get(lease, 0) == 0
        ),
    )


def oversubscribed(cores: Cores, machines: Mapping[str, int]) -> int:
    """How many cores are promised twice now; 0 unless somebody has removed a hold of ours."""
    return max(cores.jobs + sum(machines.values()) - cores.total, 0)

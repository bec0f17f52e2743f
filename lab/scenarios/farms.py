"""The batch systems that the story can be told with, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lab.farm import FinishedJob, SlurmFarm, Timing, condorsite, gridengine
from lab.farm.condorsite import HtCondorSite
from lab.farm.config import CGROUP_CONF_24, User
from lab.farm.gridsite import GridEngineSite
from lab.farm.htcondor import TREE as TRIXIE
from lab.farm.slurm import FIRST_UID
from lab.farm.trees import Tree
from lab.host import Host
from lab.scenarios import site, work

USERS = ("alice", "bob")
_ACCOUNTS = tuple(User(name, FIRST_UID + n) for n, name in enumerate(USERS))
ADDRESSES = {"head": site.HEAD, **site.WORKERS, "gw1": "10.9.0.1"}


class Farm(Protocol):
    """The batch system, up on the hosts head, wn1, wn2 and (its commands) gw1."""

    def finished(self) -> tuple[FinishedJob, ...]:
        """Every job that has ended, as the batch system recorded it."""

    def known_nodes(self) -> set[str]:
        """Every node that the batch system knows, whatever its state."""


@dataclass(frozen=True)
class Scale:
    """jobs: how many. size: numbers that each looks at. machines: at most so many borrowed.
    compare: whether the same jobs run once more without bursting."""

    jobs: int = 24
    size: int = 40_000
    machines: int = 4
    compare: bool = True


# On an emulated processor these take minutes to borrow a machine: only longer jobs wait for that.
_SLOW = Scale(jobs=12, size=300_000, machines=2, compare=False)


@dataclass(frozen=True)
class Kind:
    """One batch system, and how the story is told with it.

    tree: the files of the farm's hosts and of the cloud's image; None: the machine's own. submit: a
    shell command that submits the script "$job", to run in the directory "$2", and prints the id.
    scale: the story's jobs.
    """

    name: str
    batch: site.Batch
    dialect: work.Dialect
    submit: str
    farm: Callable[[Mapping[str, Host]], AbstractContextManager[Any]]
    tree: Tree | None = None
    scale: Scale = Scale()


def _slurm(
    hosts: Mapping[str, Host], clients: Tree | None = None, **settings: Any
) -> AbstractContextManager[Any]:
    return SlurmFarm(
        hosts["head"],
        [hosts[name] for name in site.WORKERS],
        submit_hosts=[hosts["gw1"]],
        users=USERS,
        addresses=ADDRESSES,
        timing=Timing(),
        clients=clients,
        **settings,
    )


def _slurm_trixie(hosts: Mapping[str, Host]) -> AbstractContextManager[Any]:
    return _slurm(hosts, TRIXIE, cgroup_conf=CGROUP_CONF_24)


def _htcondor(hosts: Mapping[str, Host]) -> AbstractContextManager[Any]:
    workers = [hosts[name] for name in site.WORKERS]
    return HtCondorSite(hosts["head"], workers, hosts["gw1"], users=_ACCOUNTS, addresses=ADDRESSES)


def _gridengine(hosts: Mapping[str, Host]) -> AbstractContextManager[Any]:
    workers = [hosts[name] for name in site.WORKERS]
    return GridEngineSite(
        hosts["head"], workers, hosts["gw1"], users=_ACCOUNTS, addresses=ADDRESSES
    )


_CONDOR_SUBMIT = f'condor_submit -terse -append "script=$PWD/$job" {condorsite.SUBMIT_FILE}'
_GRID_ENGINE_JOB = work.Dialect(
    "#$ -N {name}\n#$ -S /bin/sh\n#$ -l h_rt=0:{minutes}:0\n#$ -o /dev/null -j y -r y\n", "$JOB_ID"
)
_SBATCH = 'sbatch --parsable --chdir="$2" "$job"'
SLURM = Kind("slurm", site.SLURM, work.SLURM, _SBATCH, _slurm)
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        SLURM,
        Kind("slurm-24.11", site.SLURM, work.SLURM, _SBATCH, _slurm_trixie, TRIXIE, _SLOW),
        Kind(
            "htcondor",
            site.HTCONDOR,
            work.Dialect("", "$1"),
            _CONDOR_SUBMIT,
            _htcondor,
            TRIXIE,
            _SLOW,
        ),
        Kind(
            "gridengine",
            site.GRID_ENGINE,
            _GRID_ENGINE_JOB,
            'qsub -terse -wd "$2" "$job"',
            _gridengine,
            gridengine.TREE,
            replace(_SLOW, size=800_000),  # its nodes take longest to join
        ),
    )
}


def ids_of(said: str) -> list[str]:
    """The job ids that the submit commands printed, one a line."""
    return [line.split()[0] for line in said.splitlines() if line.strip()]

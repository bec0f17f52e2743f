"""The adapter and the join recipe of the batch system that a site file names.

Imported by the daemon when it is put together; nothing here talks to a batch system by itself.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, assert_never

from burst.join.bundle import Bundle, BundleError, Mount
from burst.lrms.base import Announces, Lrms, LrmsError
from burst.model import Lease
from gateway.batch import (
    GridEngineConfig,
    HtCondorConfig,
    LsfConfig,
    NamedConfig,
    OpenPbsConfig,
    SlurmConfig,
    TorqueConfig,
)
from gateway.sections import BurstConfig

_NAME_LIMIT_S = 30
_TOKEN_LIMIT_S = 30


class Recipe(Protocol):
    """How a borrowed machine joins; `features` begins with its pool's partition."""

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle: ...


def make_lrms(burst: BurstConfig) -> Lrms:
    """A new adapter; not for several threads at once."""
    borrowed = tuple(dict.fromkeys(pool.partition for pool in burst.pools.values()))
    local = tuple(dict.fromkeys(q for pool in burst.pools.values() for q in pool.from_partitions))
    match burst.lrms:
        case SlurmConfig():
            from burst.lrms.slurm import Slurm

            return Slurm()
        case HtCondorConfig():
            from burst.lrms.htcondor import HtCondor

            return HtCondor()
        case GridEngineConfig():
            from burst.lrms.gridengine import GridEngine

            return GridEngine(borrowed)
        case OpenPbsConfig():
            from burst.lrms.pbs import OpenPbs

            return OpenPbs(borrowed, local=local)
        case TorqueConfig():
            from burst.lrms.pbs import Torque

            return Torque(borrowed, local=local)
        case LsfConfig():
            from burst.lrms.lsf import Lsf

            pools = burst.pools.values()
            return Lsf({pool.partition: pool.from_partitions[0] for pool in pools})
        case other:
            assert_never(other)


def make_recipe(burst: BurstConfig, mtu: int) -> Recipe:
    """The join recipe; a batch system that must know a node beforehand is told with its bundle."""
    config = burst.lrms
    mounts = tuple(Mount.parse(text) for text in config.mounts)
    match config:
        case SlurmConfig():
            from burst.join.slurm import SlurmJoin
            from burst.lrms.slurm_version import ControllerVersion

            return SlurmJoin(
                munge_key=Path(config.munge_key),
                slurm_conf=Path(config.slurm_conf),
                job_users=config.job_users,
                mounts=mounts,
                hosts=config.hosts,
                install=config.install,
                mtu=mtu,
                version=ControllerVersion(),
            )
        case HtCondorConfig():
            from burst.join.htcondor import HtCondorJoin

            return HtCondorJoin(
                central_manager=config.central_manager,
                domain=config.domain,
                token=condor_token(config),
                job_users=config.job_users,
                mounts=mounts,
                hosts=config.hosts,
                install=config.install,
                config=config.config,
            )
        case GridEngineConfig():
            from burst.join.gridengine import GridEngineJoin

            recipe: Recipe = GridEngineJoin(
                qmaster=config.qmaster,
                qmaster_address=config.qmaster_address,
                cell=config.cell,
                qmaster_port=config.qmaster_port,
                execd_port=config.execd_port,
                job_users=config.job_users,
                mounts=mounts,
                hosts=config.hosts,
                install=config.install,
            )
        case OpenPbsConfig() | TorqueConfig():
            from burst.join.pbs import PbsJoin

            recipe = PbsJoin(
                kind=config.type,
                server=config.server,
                server_address=config.server_address,
                home=config.home,
                exec=config.exec if isinstance(config, OpenPbsConfig) else "",
                job_users=config.job_users,
                mounts=mounts,
                hosts=config.hosts,
                install=config.install,
            )
        case LsfConfig():
            from burst.join.lsf import LsfJoin

            return LsfJoin(
                conf=Path(config.lsf_conf).read_text(),
                mounts=mounts,
                job_users=config.job_users,
                hosts=config.hosts,
                install=config.install,
            )
        case other:
            assert_never(other)
    return Announced(recipe, lambda: make_lrms(burst), name_teller(config))


class Announced:
    """A recipe that declares the node to the batch system before the machine gets its bundle."""

    def __init__(
        self,
        recipe: Recipe,
        lrms: Callable[[], Lrms],
        tell: Callable[[str, str, str], None],
    ) -> None:
        self._recipe = recipe
        self._lrms = lrms
        self._tell = tell

    def bundle(self, lease: Lease, features: Sequence[str]) -> Bundle:
        made = self._recipe.bundle(lease, features)
        self._tell("add", lease.node, lease.address)
        lrms = self._lrms()  # of its own: the daemon's adapter is another thread's
        if isinstance(lrms, Announces):
            try:
                lrms.announce(
                    lease.node, address=lease.address, cores=lease.cores, partition=features[0]
                )
            except LrmsError as error:
                raise BundleError(f"node {lease.node} cannot be declared: {error}") from error
        return made


def name_teller(config: NamedConfig) -> Callable[[str, str, str], None]:
    """Runs `name_command ACTION NAME ADDRESS`; raises `BundleError` if that fails."""
    words = shlex.split(config.name_command)

    def tell(action: str, name: str, address: str) -> None:
        if words:
            _run([*words, action, name, address], _NAME_LIMIT_S, "burst.lrms.name_command")

    return tell


def condor_token(config: HtCondorConfig) -> Callable[[], str]:
    """Signs a token that may advertise a machine and nothing else (condor_token_create(1))."""
    argv = ["condor_token_create", "-identity", f"{config.identity}@{config.domain}"]
    argv += ["-lifetime", str(int(config.token_lifetime.total_seconds()))]
    for right in ("ADVERTISE_STARTD", "ADVERTISE_MASTER", "READ"):
        argv += ["-authz", right]
    return lambda: _run(argv, _TOKEN_LIMIT_S, "HTCondor's token")


def _run(argv: Sequence[str], limit_s: float, what: str) -> str:
    try:
        done = subprocess.run(
            list(argv), capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{what}: {argv[0]} gave no answer in {limit_s:g} s") from error
    except OSError as error:
        raise BundleError(f"{what}: {argv[0]}: {error.strerror or error}") from error
    if done.returncode != 0:
        raise BundleError(f"{what}: {argv[0]}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout

"""`burst.lrms` of a site file: which batch system, and what its borrowed machines need."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from burst.join.bundle import BundleError, Mount
from dvn.forms import Model, fault
from dvn.values import in_range, one_or_more
from gateway.units import AbsolutePath, Duration


def _mounts(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        try:
            Mount.parse(text)
        except BundleError as error:
            raise fault(str(error)) from None
    return value


def _word(value: Any) -> str:
    text = str(value)
    if not text or any(sign.isspace() for sign in text):
        raise fault(f"{text!r} is not one word", "write a name or an address")
    return text


Names = Annotated[tuple[str, ...], BeforeValidator(one_or_more)]
Word = Annotated[str, BeforeValidator(_word)]
Port = Annotated[int, AfterValidator(in_range("port", 1, 65535))]


class BatchConfig(Model):
    """What is the same for every batch system."""

    job_users: Names = ()
    """Accounts that machines get, with the numbers they have on this host."""
    mounts: Annotated[Names, AfterValidator(_mounts)] = ()
    """What machines mount, each as a line of fstab(5): `SERVER:/path /path nfs4 [OPTIONS]`."""
    hosts: dict[str, str] = Field(default_factory=dict)
    """More names for the machines' /etc/hosts, each with its address."""
    install: str = ""
    """A shell line that machines run when the batch system's daemon is not in the image."""


class SlurmConfig(BatchConfig):
    """Slurm 22.05 or later."""

    type: Literal["slurm"]
    """Which batch system."""
    munge_key: AbsolutePath
    """The site's munge key, or a copy that `gateway.user` may read."""
    slurm_conf: AbsolutePath
    """The site's slurm.conf; cgroup.conf and the like beside it are sent along."""


class HtCondorConfig(BatchConfig):
    """HTCondor 23.9 or later. `partition` of a pool is what its jobs' BurstTarget names; `from`
    are universes, usually `[vanilla]`."""

    type: Literal["htcondor"]
    """Which batch system."""
    central_manager: Word
    """Address of the collector in the tenant network."""
    domain: Word
    """The pool's UID_DOMAIN, which is its FILESYSTEM_DOMAIN as well."""
    identity: Word = "burst"
    """Whom machines are by their token: IDENTITY@DOMAIN must be in ALLOW_ADVERTISE_STARTD and
    ALLOW_ADVERTISE_MASTER of the central manager, and in nothing else."""
    token_lifetime: Duration = timedelta(days=7)
    """How long a machine's token is good for; longer than any machine lives."""
    config: str = ""
    """More lines for the machines' HTCondor configuration."""


class NamedConfig(BatchConfig):
    """A batch system that finds nodes by name only."""

    name_command: str = ""
    """Run with `add NAME ADDRESS` before a machine joins, where the server's resolver does not know
    its name by itself. A later machine may have the same address under another name."""


class GridEngineConfig(NamedConfig):
    """Grid Engine 8.1. `partition` of a pool is a cluster queue with one host group of its own."""

    type: Literal["gridengine"]
    """Which batch system."""
    qmaster: Word
    """The qmaster's name, as in act_qmaster."""
    qmaster_address: Word
    """Its address in the tenant network."""
    cell: Word = "default"
    """SGE_CELL."""
    qmaster_port: Port = 6444
    """TCP port of the qmaster."""
    execd_port: Port = 6445
    """TCP port of the machines' sge_execd."""


class OpenPbsConfig(NamedConfig):
    """OpenPBS 23. `partition` of a pool is a queue whose default_chunk.Qlist is its own name."""

    type: Literal["openpbs"]
    """Which batch system."""
    server: Word
    """The server's name."""
    server_address: Word
    """Its address in the tenant network."""
    home: AbsolutePath = "/var/spool/pbs"
    """PBS_HOME on the machines."""
    exec: AbsolutePath = "/opt/pbs"
    """PBS_EXEC on the machines."""


class TorqueConfig(NamedConfig):
    """Torque 6. `partition` of a pool is a queue whose resources_default.neednodes is its name."""

    type: Literal["torque"]
    """Which batch system."""
    server: Word
    """The server's name."""
    server_address: Word
    """Its address in the tenant network."""
    home: AbsolutePath = "/var/spool/torque"
    """TORQUE_HOME on the machines."""


class LsfConfig(BatchConfig):
    """LSF 10.1, Fix Pack 14 or later. `partition` of a pool is a queue with RES_REQ select[NAME];
    `from` has exactly one queue, to which jobs return. Machines count for a licence by cores."""

    type: Literal["lsf"]
    """Which batch system."""
    lsf_conf: AbsolutePath
    """The site's lsf.conf; LSF itself comes with `mounts`."""


LrmsConfig = Annotated[
    SlurmConfig | HtCondorConfig | GridEngineConfig | OpenPbsConfig | TorqueConfig | LsfConfig,
    Field(discriminator="type"),
]

"""The files of the lab's Slurm cluster, as text: slurm.conf(5), cgroup.conf(5), exports(5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLURMCTLD_PORT = 6817
SLURMD_PORT = 6818
JOB_COMPLETIONS = "/var/log/slurm/jobcomp.log"

# Slurm 22.05 on a machine with cgroup v2 and no systemd ends at start without this (and without a
# /sys/fs/cgroup/system.slice). CgroupPlugin=disabled exists from 24.11 on only.
CGROUP_CONF = "CgroupAutomount=no\nIgnoreSystemd=yes\n"
CGROUP_CONF_24 = "CgroupPlugin=disabled\n"


@dataclass(frozen=True)
class User:
    """An ordinary user of the farm; the home directory is on the shared file system. gid 0: its uid
    is its group's number too."""

    name: str
    uid: int
    gid: int = 0

    @property
    def passwd(self) -> str:
        return (
            f"{self.name}:x:{self.uid}:{self.gid or self.uid}:lab user:/home/{self.name}:/bin/bash"
        )

    @property
    def group(self) -> str:
        return f"{self.name}:x:{self.gid or self.uid}:"


@dataclass(frozen=True)
class Worker:
    """A worker of the site's own, named in slurm.conf; memory in MiB."""

    name: str
    address: str
    cores: int = 1
    memory_mb: int = 512


@dataclass(frozen=True)
class Timing:
    """Slurm's own clocks, in seconds: short, because the lab's stories are."""

    slurmd_timeout: int = 20  # no answer for so long: the node is DOWN, its jobs are queued again
    min_job_age: int = 3600  # ended jobs stay visible in squeue
    batch_start_timeout: int = 60  # the lab's machines may be slow to start a job
    kill_wait: int = 5
    schedule_every: int = 2


def slurm_conf(
    *,
    cluster: str,
    head: str,
    head_address: str,
    workers: Sequence[Worker],
    burst_partitions: Sequence[str],
    timing: Timing,
    max_nodes: int = 256,
    memory_per_core_mb: int = 64,
) -> str:
    """slurm.conf for the head, the workers, the submit hosts and every borrowed machine alike."""
    settings = {
        "ClusterName": cluster,
        "SlurmctldHost": f"{head}({head_address})",
        "SlurmctldPort": SLURMCTLD_PORT,
        "SlurmdPort": SLURMD_PORT,
        "SlurmUser": "slurm",
        "AuthType": "auth/munge",
        "CryptoType": "crypto/munge",
        # Dynamic nodes (slurmd -Z) need these two.
        "SelectType": "select/cons_tres",
        "MaxNodeCount": max_nodes,
        "SelectTypeParameters": "CR_Core_Memory",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "JobCompType": "jobcomp/filetxt",
        "JobCompLoc": JOB_COMPLETIONS,
        "PropagateResourceLimits": "NONE",  # a borrowed machine has limits of its own
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "ReturnToService": 2,
        "SlurmdTimeout": timing.slurmd_timeout,
        "SlurmctldTimeout": timing.slurmd_timeout,
        "MinJobAge": timing.min_job_age,
        "BatchStartTimeout": timing.batch_start_timeout,
        "KillWait": timing.kill_wait,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": (
            f"batch_sched_delay=0,sched_interval={timing.schedule_every},"
            f"bf_interval={timing.schedule_every},bf_resolution=1"
        ),
        "StateSaveLocation": "/var/spool/slurmctld",
        "SlurmdSpoolDir": "/var/spool/slurmd",
        "SlurmctldPidFile": "/run/slurmctld.pid",
        "SlurmdPidFile": "/run/slurmd.pid",
        "SlurmctldLogFile": "/var/log/slurm/slurmctld.log",
        "SlurmdLogFile": "/var/log/slurm/slurmd.log",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [
        f"NodeName={w.name} NodeAddr={w.address} CPUs={w.cores} RealMemory={w.memory_mb}"
        for w in workers
    ]
    lines.append(
        f"PartitionName=batch Nodes={','.join(w.name for w in workers)} Default=YES State=UP "
        f"DefMemPerCPU={memory_per_core_mb}"
    )
    for name in burst_partitions:
        # Whatever node registers itself with the feature is in the partition; empty is fine.
        lines.append(f"NodeSet={name} Feature={name}")
        lines.append(
            f"PartitionName={name} Nodes={name} State=UP DefMemPerCPU={memory_per_core_mb}"
        )
    return "\n".join(lines) + "\n"


def hosts_file(addresses: Mapping[str, str]) -> str:
    """/etc/hosts: loopback, then every host of the farm by name."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    return "\n".join([*lines, *(f"{address} {name}" for name, address in addresses.items())]) + "\n"

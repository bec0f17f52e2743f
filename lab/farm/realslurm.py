"""Real Slurm clusters on lab hosts, 24.11 (Debian trixie) and 22.05 (bookworm), for the contract
suite."""

from __future__ import annotations

import os

from burst.lrms.slurm import Slurm
from lab.farm.config import CGROUP_CONF_24, Timing, Worker
from lab.farm.config import slurm_conf as make_conf
from lab.farm.ground import ADDRESSES, USER, WAIT, RealGround
from lab.farm.htcondor import TREE
from lab.farm.trees import Tree, TreeHost

_MUNGED = """\
mkdir -p /run/munge /var/log/munge /var/lib/munge /etc/munge
chown munge:munge /etc/munge/munge.key /etc/munge /run/munge /var/log/munge /var/lib/munge
chmod 755 /run/munge; chmod 400 /etc/munge/munge.key
setpriv --reuid=munge --regid=munge --clear-groups munged
"""
_DIRECTORIES = """\
mkdir -p /var/log/slurm /var/spool/slurmctld /var/spool/slurmd
chown slurm:slurm /var/log/slurm /var/spool/slurmctld
"""
_STOP = """\
kill $(cat /run/slurmctld.pid) || true
for n in $(seq 100); do pgrep -x slurmctld >/dev/null || exit 0; sleep 0.1; done
pkill -9 slurmctld || true
"""


class RealSlurm(RealGround):
    cgroup_conf: str
    local = "batch"
    burst = "burst-cms"
    patience_s = 90.0

    def __init__(self) -> None:
        super().__init__()
        self._key = os.urandom(128)
        self._conf = make_conf(
            cluster="lab",
            head="head",
            head_address=ADDRESSES["head"],
            workers=[Worker("node1", ADDRESSES["node1"], cores=2, memory_mb=2000)],
            burst_partitions=[self.burst],
            timing=Timing(slurmd_timeout=10),
        )

    def adapter(self) -> Slurm:
        return Slurm(runner=self.runner(user="slurm", env={"SLURM_BITSTR_LEN": "0"}))

    def _prepare(self, host: TreeHost) -> None:
        if host.run("test", "-e", "/root/.prepared", check=False).returncode == 0:
            return
        host.write("/etc/munge/munge.key", self._key, 0o400)
        host.write("/etc/slurm/slurm.conf", self._conf)
        host.write("/etc/slurm/cgroup.conf", self.cgroup_conf)
        host.script(_MUNGED + _DIRECTORIES + "touch /root/.prepared")

    def start_head(self) -> None:
        self._prepare(self.head)
        self.head.run("slurmctld")
        self.head.host.wait_for(
            lambda: self.head.run("scontrol", "ping", check=False).returncode == 0,
            60,
            what="slurmctld",
        )

    def stop_head(self) -> None:
        self.head.script(_STOP)

    def start_site_node(self) -> None:
        node = self.hosts["node1"]
        self._prepare(node)
        node.run("slurmd", "-N", "node1")

    def start_machine(self, host: TreeHost, node: str, cores: int) -> None:
        self._prepare(host)
        conf = f"NodeAddr={self.addresses[node]} CPUs={cores} RealMemory=2000 Feature={self.burst}"
        host.run("slurmd", "-Z", "-N", node, "--conf", conf)

    def submit(self, *, cores: int = 1, held: bool = False, tasks: int = 0) -> list[str]:
        name = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        options = ["--parsable", "-n", str(cores), "-N", "1", "-t", "20", "--mem=100", "-J", "hn"]
        options += ["-o", "/dev/null"]
        options += ["--hold"] if held else []
        options += [f"--array=1-{tasks}"] if tasks else []
        made = self.head.run("sbatch", *options, user=USER, cwd="/", input=WAIT.replace("$1", name))
        number = made.stdout.strip().partition(";")[0]
        return [f"{number}_{task}" for task in range(1, tasks + 1)] if tasks else [number]

    def cancel_all(self) -> None:
        self.head.run("scancel", "--full", "-u", USER, user="slurm", check=False)

    def operator_drain(self, node: str) -> None:
        self.head.run(
            "scontrol", "update", f"nodename={node}", "state=drain", "reason=disk is full",
            user="slurm",
        )  # fmt: skip

    def forget(self, node: str) -> None:
        self.head.run("scontrol", "delete", f"nodename={node}", user="slurm", check=False)

    def logs(self) -> str:
        return self.head.run(
            "sh", "-c", "sinfo -N -l; squeue; tail -n 25 /var/log/slurm/slurmctld.log"
        ).stdout


class SlurmTrixie(RealSlurm):
    tree = TREE
    cgroup_conf = CGROUP_CONF_24


class SlurmBookworm(RealSlurm):
    tree = Tree("bookworm", ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "procps"))
    # Of the two kinds of cgroups, the one that does nothing until a plugin asks for it: the machine
    # may have both, which 22.05 takes for an error.
    cgroup_conf = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"

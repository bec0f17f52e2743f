"""A real HTCondor 23.9 pool (Debian trixie) on lab hosts: a head with collector, negotiator and
schedd, one execution node of the site's own, and borrowed machines that join by token."""

from __future__ import annotations

from datetime import timedelta

from burst.join.htcondor import machine_config
from burst.lrms.htcondor import HtCondor
from lab.farm.ground import ADDRESSES, USER, WAIT_PATH, RealGround
from lab.farm.trees import WHOLE, Tree, TreeHost

TREE = Tree(
    "trixie",
    ("condor", "slurmctld", "slurmd", "slurm-client", "munge", *WHOLE),
)
DOMAIN = "lab"


def common_config(central_manager: str) -> str:
    """condor_config of every host of the site's own. central_manager: its address."""
    return f"""\
CONDOR_HOST = {central_manager}
UID_DOMAIN = {DOMAIN}
FILESYSTEM_DOMAIN = {DOMAIN}
DEFAULT_DOMAIN_NAME = {DOMAIN}
TRUST_UID_DOMAIN = True
NO_DNS = False
UPDATE_INTERVAL = 5
MAX_JOB_QUEUE_LOG_ROTATIONS = 1
"""


def head_config(address: str) -> str:
    """Collector, negotiator and schedd; an impatient pool, because the lab's stories are short."""
    return f"""{common_config(address)}
DAEMON_LIST = MASTER, COLLECTOR, NEGOTIATOR, SCHEDD
ALLOW_ADVERTISE_STARTD = condor@{DOMAIN}, burst@{DOMAIN}
ALLOW_ADVERTISE_MASTER = condor@{DOMAIN}, burst@{DOMAIN}
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
JOB_DEFAULT_LEASE_DURATION = 20
ALIVE_INTERVAL = 5
MAX_CLAIM_ALIVES_MISSED = 3
"""


def site_node_config(central_manager: str, cores: int, memory_mb: int) -> str:
    """A node of the site's own: one partitionable slot for any job."""
    return f"""{common_config(central_manager)}
DAEMON_LIST = MASTER, STARTD
NUM_CPUS = {cores}
MEMORY = {memory_mb}
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
NUM_SLOTS_TYPE_1 = 1
START = True
SUSPEND = False
PREEMPT = False
KILL = False
RUNBENCHMARKS = False
"""


_QUICK = "RUNBENCHMARKS = False\nALIVE_INTERVAL = 5\n"
_JOB = f"""\
executable = {WAIT_PATH}
arguments = $(Cluster).$(Process)
transfer_executable = false
should_transfer_files = YES
request_memory = 100
request_disk = 1
+MaxRuntime = 1200
"""


class HtCondorPool(RealGround):
    tree = TREE
    local = "vanilla"
    burst = "burst-cms"
    patience_s = 90.0
    domain = f".{DOMAIN}"

    def adapter(self) -> HtCondor:
        return HtCondor(runner=self.runner())

    def start_head(self) -> None:
        self.head.write("/etc/condor/config.d/90-lab", head_config(ADDRESSES["head"]))
        self.head.script(
            "mkdir -p -m 700 /etc/condor/passwords.d /etc/condor/tokens.d\n"
            "[ -e /etc/condor/passwords.d/POOL ] || "
            "head -c 32 /dev/urandom | base64 > /etc/condor/passwords.d/POOL\n"
            "chmod 600 /etc/condor/passwords.d/POOL\n"
            "condor_master"
        )
        self.head.host.wait_for(
            lambda: self.head.run("condor_q", "-allusers", "-json", check=False).returncode == 0,
            60,
            what="the schedd",
        )

    def stop_head(self) -> None:
        self.head.script(
            "condor_off -master -fast >/dev/null 2>&1 || true\n"
            "for n in $(seq 100); do pgrep -x condor_master >/dev/null || exit 0; sleep 0.1; done\n"
            "pkill -9 condor_ || true"
        )

    def start_site_node(self) -> None:
        node = self.hosts["node1"]
        self._token(node, "condor")
        node.write("/etc/condor/config.d/90-lab", site_node_config(ADDRESSES["head"], 2, 2000))
        node.run("condor_master")

    def start_machine(self, host: TreeHost, node: str, cores: int) -> None:
        self._token(host, "burst")
        text = machine_config(
            central_manager=ADDRESSES["head"],
            domain=DOMAIN,
            node=node,
            partition=self.burst,
            cores=cores,
            memory_mb=2000,
            heartbeat=timedelta(seconds=5),
        )
        host.write("/etc/condor/config.d/90-dvn", text + _QUICK)
        host.run("condor_master")

    def _token(self, host: TreeHost, who: str) -> None:
        limits = ["-authz", "ADVERTISE_STARTD", "-authz", "ADVERTISE_MASTER", "-authz", "READ"]
        made = self.head.run(
            "condor_token_create", "-identity", f"{who}@{DOMAIN}", "-lifetime", "3600", *limits
        )
        host.script("mkdir -p -m 700 /etc/condor/tokens.d")
        host.write("/etc/condor/tokens.d/dvn", made.stdout, 0o600)

    def submit(self, *, cores: int = 1, held: bool = False, tasks: int = 0) -> list[str]:
        text = f"{_JOB}request_cpus = {cores}\n{'hold = True' if held else ''}\n"
        made = self.head.run(
            "condor_submit", "-terse", "-",
            user=USER, cwd=f"/home/{USER}", input=f"{text}queue {tasks or 1}\n",
        )  # fmt: skip
        first, last = made.stdout.split(" - ")
        cluster, _, start = first.partition(".")
        return [f"{cluster}.{n}" for n in range(int(start), int(last.partition(".")[2]) + 1)]

    def cancel_all(self) -> None:
        self.head.run("condor_rm", "-all", check=False)

    def operator_drain(self, node: str) -> None:
        self.head.run("condor_drain", "-graceful", "-reason", "disk is full", f"{node}.lab")

    def forget(self, node: str) -> None:
        self.head.run(
            "condor_advertise", "INVALIDATE_STARTD_ADS", "-", check=False,
            input=f'MyType="Query"\nTargetType="Machine"\nRequirements=Machine=="{node}.lab"\n',
        )  # fmt: skip

    def logs(self) -> str:
        parts = []
        for host, names in (("head", ("SchedLog", "NegotiatorLog")), ("cloud1", ("StartLog",))):
            if host in self.hosts:
                for name in names:
                    done = self.hosts[host].run(
                        "tail", "-n", "25", f"/var/log/condor/{name}", check=False
                    )
                    parts.append(f"-- {host} {name}\n{done.stdout}")
        return "\n".join(parts)

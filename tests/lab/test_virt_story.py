"""Acceptance: a queued Slurm job runs in a virtual machine that was started for it, while a job
runs on the bare metal of the same host; the cores add up at every look; all of it is gone after.

Real: Slurm, its adapter, decide and execute, libvirt and its provider, mixed mode, QEMU, cloud-init
in the guest, slurmd in the guest. By hand: the network is one bridge (this kernel need not have
what the network engine needs), and user data brings the keys along instead of fetching them.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from burst.decide import decide
from burst.execute import apply
from burst.lrms.command import Result
from burst.lrms.slurm import Slurm
from burst.mixed.provider import MixedProvider
from burst.mixed.slurm import SlurmShare
from burst.model import (
    Facts,
    Farm,
    JobState,
    Lease,
    LeaseState,
    LinkHealth,
    Policy,
    Pool,
    ProviderFacts,
)
from burst.providers.libvirt import LibvirtProvider
from burst.providers.libvirt_domain import Flavour, Image, LibvirtConfig, tap_name
from lab.farm import config as farm_config
from lab.farm import jobcomp, machine
from lab.hosts import Host, Lab, LabError, wait_for
from lab.virt.disk import debian_disk
from lab.virt.guest import CMDLINE, kernel_files
from lab.virt.hypervisor import IMAGES, HypervisorHost, available

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes lab hosts: needs root"),
    pytest.mark.skipif(bool(available()), reason=f"needs a hypervisor: {available()}"),
]

HOST, ADDRESS, PARTITION, CORES = "hv1", "10.9.0.11", "vms", 4
POOL = Pool(
    name="cms-hv",
    tenant="cms",
    network="farm",
    provider="hv",
    partition=PARTITION,
    from_partitions=("nothing",),
    types=("small",),
    max_machines=2,
    addresses=("10.9.0.101",),
)
POLICY = Policy(
    min_job_age=timedelta(seconds=1),
    idle_release=timedelta(seconds=5),
    boot_timeout=timedelta(minutes=20),
    join_timeout=timedelta(minutes=10),
    request_timeout=timedelta(minutes=2),
)
JOB = """#!/bin/bash
grep -q QEMU /sys/class/dmi/id/sys_vendor || exit 3
sleep 2
"""
BARE = """#!/bin/bash
[ "$(hostname)" = hv1 ] || exit 3
while [ ! -e /tmp/enough ]; do sleep 0.5; done
"""


def cgroup_conf() -> str:
    """Slurm 22.05 refuses a kernel with both kinds of control groups unless it is told one."""
    mixed = len(Path("/proc/self/cgroup").read_text().splitlines()) > 1
    return "CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n" if mixed else farm_config.CGROUP_CONF


@dataclass
class Site:
    """One host that is everything: Slurm's head, a worker, and a hypervisor."""

    host: Host
    hypervisor: HypervisorHost
    key: bytes
    conf: str
    leases: dict[str, Lease] = field(default_factory=dict)
    enrolled: dict[str, datetime] = field(default_factory=dict)
    since: dict[str, datetime] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    farm: Farm | None = None
    most: int = 0  # cores used at once, by jobs on the metal and machines

    def __post_init__(self) -> None:
        kernel, initrd = kernel_files(disk=True)
        cmdline = f"{CMDLINE} root=/dev/vda"
        image = Image("deb12.img", "raw", str(kernel), str(initrd), cmdline)
        libvirt = LibvirtConfig(
            self.hypervisor.uri,
            "cnaf",
            {"deb12": image},
            {"small": Flavour(2, 640, 2, "deb12")},
            virtualization="qemu",
            reserve_memory_mb=0,
        )
        share = SlurmShare(HOST, runner=self.run)
        self.provider = MixedProvider(LibvirtProvider("hv", libvirt), share, lambda: True)
        self.share = share
        self.slurm = Slurm(runner=self.run)

    def run(self, argv: object, given: str, timeout: timedelta) -> Result:
        words = [str(word) for word in argv]  # type: ignore[attr-defined]
        env = {"SLURM_BITSTR_LEN": "0"}
        done = self.host.run(
            *words, env=env, input=given, timeout=timeout.total_seconds(), check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def submit(self, script: str, *options: str) -> str:
        done = self.host.run("sbatch", "--parsable", "-D", "/tmp", "-o", "/dev/null", *options,
                             user="alice", input=script)  # fmt: skip
        return done.stdout.strip()

    # The store, for `execute`

    def lease(self, lease_id: str) -> Lease | None:
        return self.leases.get(lease_id)

    def want(self, lease: Lease) -> bool:
        self.leases[lease.id] = lease
        return True

    def update(self, lease: Lease) -> None:
        self.leases[lease.id] = lease

    # One look of the controller

    def round(self) -> None:
        machines = tuple(self.provider.machines())
        offers = tuple(self.provider.offers())
        self.farm = self.slurm.snapshot()
        now = datetime.now(UTC)
        facts = Facts(
            now=now,
            farm=self.farm,
            leases=tuple(self.leases.values()),
            providers={"hv": ProviderFacts("hv", offers, machines)},
            links=self.links(now),
            enrolled=self.enrolled,
            watching_since=self.started,
        )
        decision = decide(facts, [POOL], POLICY, lambda: secrets.token_hex(16))
        apply(
            decision.actions,
            store=self,
            lrms=self.slurm,
            providers={"hv": self.provider},
            user_data=self.user_data,
            policy=POLICY,
            clock=lambda: datetime.now(UTC),
        )
        self.count()

    def links(self, now: datetime) -> Mapping[str, LinkHealth]:
        """A machine answers a ping: it is in the network, and has come."""
        found = {}
        for lease in self.leases.values():
            if not lease.living or not lease.machine:
                continue
            tap = tap_name(lease.id)
            plugged = self.host.run("ip", "link", "set", tap, "master", "br0", "up", check=False)
            ping = self.host.run("ping", "-c1", "-W1", lease.address, check=False)
            if plugged.returncode == 0 and ping.returncode == 0:
                self.enrolled.setdefault(lease.id, now)
                since = self.since.setdefault(lease.id, now)
                found[lease.id] = LinkHealth(up=True, since=since)
        return found

    def count(self) -> None:
        """The promise: jobs on the metal and machines never want more cores than there are."""
        running = self.hypervisor.virsh("list", "--name").split()
        cores = self.share.cores()
        used = cores.jobs + 2 * len(running)
        self.most = max(self.most, used)
        assert used <= CORES, f"{cores.jobs} cores of jobs beside {running}"
        assert cores.held >= 2 * len(running), "a machine without its hold"

    def until(self, condition: Callable[[], bool], what: str, timeout: float = 900) -> None:
        def look() -> bool:
            self.round()
            return condition()

        try:
            wait_for(look, timeout, what=what, interval=0.5)
        except LabError as error:
            raise LabError(f"{error}\n{self.leases}\n{self.console()}") from error

    def console(self) -> str:
        done = self.host.run("sh", "-c", "tail -n 40 /run/console; tail -n 20 /var/log/slurm/*.log",
                             check=False)  # fmt: skip
        return done.stdout

    def user_data(self, lease: Lease) -> str:
        def put(path: str, content: bytes, mode: str = "644") -> str:
            text = base64.b64encode(content).decode()
            return f"echo {text} | base64 -d > {path}; chmod {mode} {path}\n"

        hosts = farm_config.hosts_file({HOST: ADDRESS, lease.node: lease.address}).encode()
        settings = f"NodeAddr={lease.address} CPUs={lease.cores} RealMemory=400 Feature={PARTITION}"
        return "".join(
            (
                "#!/bin/bash\n",
                f"ip link set eth0 up; ip address add {lease.address}/24 dev eth0\n",
                f"hostname {lease.node}\n",
                "echo alice:x:2001:2001::/tmp:/bin/bash >> /etc/passwd\n",
                "echo alice:x:2001: >> /etc/group\n",
                put("/etc/munge/munge.key", self.key, "400"),
                "chown munge:munge /etc/munge/munge.key\n",
                "mkdir -p /run/munge /etc/slurm /var/log/slurm /var/spool/slurmd\n",
                "chown munge:munge /run/munge\n",
                put("/etc/slurm/slurm.conf", self.conf.encode()),
                put("/etc/slurm/cgroup.conf", farm_config.CGROUP_CONF.encode()),
                put("/etc/hosts", hosts),
                "grep -q slurm: /etc/passwd || useradd -r slurm\n",
                "setpriv --reuid=munge --regid=munge --clear-groups munged\n",
                f"slurmd -Z -N {lease.node} --conf '{settings}'\n",
                "echo dvn-guest: slurmd ended with $? > /dev/console\n",
            )
        )

    def running(self, job: str) -> bool:
        jobs = self.farm.jobs if self.farm else ()
        return any(each.id == job and each.state is JobState.RUNNING for each in jobs)

    def ended(self, job: str) -> jobcomp.FinishedJob | None:
        try:
            text = self.host.read(farm_config.JOB_COMPLETIONS)
        except LabError:
            return None
        return next((done for done in jobcomp.parse(text) if done.id == job), None)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    disk = debian_disk()
    with Lab() as lab:
        host, switch = lab.host(HOST), lab.host("switch")
        lab.link(host, "eth0", switch, "port1")
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "link", "set", "eth0", "master", "br0")
        host.run("ip", "address", "add", f"{ADDRESS}/24", "dev", "br0")
        host.run("ip", "link", "set", "br0", "up")
        key = os.urandom(128)
        conf = farm_config.slurm_conf(
            cluster="lab",
            head=HOST,
            head_address=ADDRESS,
            workers=[farm_config.Worker(HOST, ADDRESS, CORES, 1000)],
            burst_partitions=[PARTITION],
            timing=farm_config.Timing(slurmd_timeout=120),
        )
        # Its cores are what it says, not what this machine has.
        conf += "SlurmdParameters=config_overrides\n"
        users = (farm_config.User("alice", 2001),)
        hosts = farm_config.hosts_file({HOST: ADDRESS})
        machine.prepare(host, machine.Files(key, conf, hosts, users))
        host.write("/etc/slurm/cgroup.conf", cgroup_conf())
        host.script(machine.MUNGED + "TZ=UTC slurmctld; slurmd -N " + HOST)
        with HypervisorHost(host, tmp_path / "libvirtd.log") as hypervisor:
            host.run("ln", "-s", str(disk), f"{IMAGES}/deb12.img")
            yield Site(host, hypervisor, key, conf)


def test_a_queued_job_runs_in_a_machine_of_its_own_beside_one_on_the_metal(site: Site) -> None:
    host = site.host
    site.until(lambda: bool(site.farm and site.farm.nodes), "the farm's own node", 60)
    bare = site.submit(BARE, "-n2", "-t60", "-p", "batch")
    site.until(lambda: site.running(bare), "the job on the metal", 60)
    virtual = site.submit(JOB, "-n2", "-t60", "-p", PARTITION)
    site.until(lambda: any(lease.machine for lease in site.leases.values()), "a machine")
    (lease,) = site.leases.values()
    too_much = site.submit(JOB, "-n2", "-t60", "-p", "batch")
    console = f"script -qfc 'virsh console --force {lease.machine}' /run/console"
    host.spawn("sh", "-c", console)
    assert site.share.held() == {lease.id: 2}

    def states() -> dict[str, JobState]:
        return {job.id: job.state for job in site.farm.jobs} if site.farm else {}

    site.until(lambda: site.leases[lease.id].state is LeaseState.JOINED, "the node in Slurm")
    site.until(lambda: site.ended(virtual) is not None, "the job's end in the machine")
    done = site.ended(virtual)
    assert done is not None
    assert (done.state, done.nodes) == ("COMPLETED", lease.node)
    assert states()[bare] is JobState.RUNNING, "the metal's job ran all the time"
    assert site.most == CORES, "both used the host at once, all of it and no more"
    assert states()[too_much] is JobState.PENDING, "a third would have taken the machine's cores"
    # The queue of machines is empty: the machine leaves, and the cores are the jobs' again.
    site.until(lambda: site.leases[lease.id].state is LeaseState.GONE, "the machine's return")
    assert site.share.held() == {}
    assert site.hypervisor.files() == ["deb12.img"]
    assert site.hypervisor.virsh("list", "--all", "--name").split() == []
    nodes = host.run("sinfo", "-h", "-N", "-o", "%N").stdout.split()
    assert set(nodes) == {HOST}, "a node entry was left behind"
    site.until(lambda: states()[too_much] is not JobState.PENDING, "the third job's turn", 120)
    host.run("touch", "/tmp/enough")
    site.until(lambda: site.ended(bare) is not None, "the end on the metal", 120)

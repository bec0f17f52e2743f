"""A site with one hypervisor that is a node of its farm, too, and all programs real: `dvn gateway
run` with its agent, `dvn agent run`, libvirtd reached by ssh, Slurm, QEMU.

    head .20 ──┐                       cms:   head 10.9.0.10 at the gateway host, and the machines
    gw   .1  ──┼── 198.51.100.0/24     atlas: b2 10.9.0.31 at the gateway host, b1 10.9.0.30 at hv1
    hv1  .11 ──┘                       the same prefix twice; GRE between gw and hv1

Slurm's head has a leg in both: bare metal meets it in the site's network, machines in their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from burst.providers.libvirt_host import LibvirtHost
from gateway.cli.client import ApiFailure, Client
from lab.farm import config as farm_config
from lab.farm import jobcomp, machine
from lab.host import Host, LabError, wait_for
from lab.hosts import Lab
from lab.net import build
from lab.topology import Access, Link, Machine, Switch, Topology
from lab.virt.disk import debian_disk
from lab.virt.guest import CMDLINE, PLAIN, SPOOF, kernel_files
from lab.virt.hypervisor import IMAGES, HypervisorHost
from lab.virt.sshd import SshHost

CHECKOUT = Path(__file__).resolve().parents[2]
DVN = (sys.executable, "-m", "gateway.cli.main")
SITE_FILE, AGENT_FILE, KEY_FILE = "/etc/dvn/site.yaml", "/etc/dvn/agent.yaml", "/etc/dvn/hv1.key"
USER = "slurm"  # the daemon's
GATEWAY, HYPERVISOR, HEAD_OUTSIDE = "198.51.100.1", "198.51.100.11", "198.51.100.20"
HEAD, B1, B2, MACHINE, NOT_ITS_OWN = (
    f"10.9.0.{n}" for n in (10, 30, 31, 101, 66)
)  # fmt: skip
CORES = 2
MACS = {name: f"02:00:00:00:02:{n:02x}" for n, name in enumerate(("head", "b1", "b2"))}
LIMIT_S = 1500.0

_USERS = (farm_config.User("alice", 2001), farm_config.User("bob", 2002))


def topology() -> Topology:
    lan = {"gw": GATEWAY, "hv1": HYPERVISOR}
    return Topology(
        nodes=(
            *(Machine(name, {"wan0": f"{address}/24"}) for name, address in lan.items()),
            Machine("head", {"eth0": f"{HEAD}/24", "eth1": f"{HEAD_OUTSIDE}/24"}),
            Machine("b1", {"eth0": f"{B1}/24"}),
            Machine("b2", {"eth0": f"{B2}/24"}),
            Switch("lan", {name: Access(1) for name in ("gw", "hv1", "head")}),
        ),
        links=(
            Link("gw:wan0", "lan:gw"),
            Link("hv1:wan0", "lan:hv1"),
            Link("head:eth1", "lan:head"),
            Link("head:eth0", "gw:tap0"),
            Link("b2:eth0", "gw:tap1"),
            Link("b1:eth0", "hv1:tap1"),
        ),
    )


def site_file() -> dict[str, Any]:
    """As its administrator would have written it, but for the emulation."""
    kernel, initrd = kernel_files(disk=True)
    cmdline = f"{CMDLINE} root=/dev/vda {PLAIN} {SPOOF}{NOT_ITS_OWN},{HEAD}"

    def port(name: str, interface: str, address: str, **more: str) -> dict[str, str]:
        return {"interface": interface, "mac": MACS[name], "address": address, **more}

    return {
        "site": "cnaf",
        "host": "gw",
        "underlay": {"interface": "wan0", "address": GATEWAY},
        "fabric": {"transport": "plain"},
        "hosts": {"hv1": {"underlay": {"interface": "wan0", "address": HYPERVISOR}}},
        "tenants": {
            "cms": {
                "networks": {
                    "farm": {
                        "prefix": "10.9.0.0/24",
                        "access": "open",
                        "services": ["tcp/8443"],
                        "ports": [port("head", "tap0", HEAD)],
                    }
                }
            },
            "atlas": {
                "networks": {
                    "farm": {
                        "prefix": "10.9.0.0/24",
                        "ports": [
                            port("b2", "tap1", B2),
                            port("b1", "tap1", B1, host="hv1"),
                        ],
                    }
                }
            },
        },
        "gateway": {"interval": "5s", "user": USER, "answer_timeout": "45s"},
        "burst": {
            "lrms": {
                "type": "slurm",
                "munge_key": "/etc/dvn/munge.key",
                "slurm_conf": "/etc/slurm/slurm.conf",
                "job_users": [user.name for user in _USERS],
            },
            "providers": {
                "hv1": {
                    "type": "libvirt",
                    "uri": f"qemu+ssh://root@{HYPERVISOR}/system?keyfile={KEY_FILE}",
                    "virtualization": "qemu",
                    "cores": CORES,
                    "reserve_memory": 0,
                    "images": {
                        "deb12": {
                            "volume": "deb12.img",
                            "format": "raw",
                            "kernel": str(kernel),
                            "initrd": str(initrd),
                            "cmdline": cmdline,
                        }
                    },
                    "types": {"small": {"cores": 1, "memory": 320, "disk": 2, "image": "deb12"}},
                    "mixed": {"node": "hv1"},
                }
            },
            "pools": {
                "cms-hv": {
                    "tenant": "cms",
                    "network": "farm",
                    "provider": "hv1",
                    "partition": "burst-cms",
                    "from": ["batch"],
                    "users": ["bob"],
                    "types": ["small"],
                    "max_machines": 1,
                    "addresses": MACHINE,
                }
            },
            "direct": [{"to": "machines", "users": ["bob"]}],
            "policy": {
                "min_job_age": "1s",
                "idle_release": "5s",
                "boot_timeout": "20m",
                "join_timeout": "20m",
                "request_timeout": "3m",
                "expected_start_cost": "20s",
            },
        },
    }


class VirtSite:
    """The lab, with nothing of the product running yet."""

    def __init__(self, lab: Lab, directory: Path, stack: ExitStack) -> None:
        # Nothing loads it by itself: libvirt only looks whether /dev/net/tun is there.
        subprocess.run(["modprobe", "-q", "tun"], check=False, timeout=60)
        self.directory = directory
        self.hosts = build(lab, topology())
        for name, mac in MACS.items():
            self[name].run("ip", "link", "set", "eth0", "address", mac)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.hypervisor = stack.enter_context(
            HypervisorHost(self["hv1"], directory / "libvirtd.log")
        )
        self["hv1"].run("ln", "-s", str(debian_disk()), f"{IMAGES}/deb12.img")
        self._libvirt = LibvirtHost(self.hypervisor.uri)
        self.ssh = stack.enter_context(SshHost(self["hv1"], directory / "sshd.log"))
        self.ssh.admit(self["gw"], HYPERVISOR, KEY_FILE, USER)
        self._farm()
        gw = self["gw"]
        gw.script(f"install -d -o {USER} -m 0700 /var/lib/dvn")
        gw.write(SITE_FILE, yaml.safe_dump(site_file(), sort_keys=False).encode())

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    # Slurm

    def _farm(self) -> None:
        key = os.urandom(128)
        conf = farm_config.slurm_conf(
            cluster="lab",
            head="head",
            head_address="",
            workers=[farm_config.Worker("hv1", HYPERVISOR, CORES, 600)],
            burst_partitions=["burst-cms"],
            timing=farm_config.Timing(slurmd_timeout=300, batch_start_timeout=300),
        ).replace("SlurmctldHost=head()", "SlurmctldHost=head")
        # Its cores are what it says; an emulated node may take long for an answer.
        conf += "SlurmdParameters=config_overrides\nMessageTimeout=100\n"
        for name, head in (("head", HEAD), ("gw", HEAD), ("hv1", HEAD_OUTSIDE)):
            hosts = farm_config.hosts_file({"head": head, "hv1": HYPERVISOR, "gw": GATEWAY})
            machine.prepare(self[name], machine.Files(key, conf, hosts, _USERS))
            self[name].script(machine.MUNGED)
        self["gw"].write("/etc/dvn/munge.key", key, mode=0o400, owner=USER)
        self["head"].script("TZ=UTC exec slurmctld")
        self["hv1"].script("exec slurmd -N hv1")
        wait_for(lambda: "idle" in self.sinfo("%T"), 120, what="the bare metal in sinfo")

    def sinfo(self, form: str, *options: str) -> str:
        done = self["head"].run("sinfo", "-h", *options, "-o", form, check=False, timeout=120)
        return done.stdout

    def submit(self, user: str, script: str) -> str:
        done = self["head"].run(
            "sbatch", "--parsable", "-n1", "-t60", "-p", "batch", "-D", "/tmp", "-o", "/dev/null",
            user=user, input=script, timeout=120,
        )  # fmt: skip
        return done.stdout.strip()

    def jobs(self) -> dict[str, tuple[str, str]]:
        """State and partition of each job that has not been forgotten."""
        done = self["head"].run("squeue", "-h", "-t", "all", "-o", "%i %T %P", timeout=120)
        rows = [line.split() for line in done.stdout.splitlines()]
        return {job: (state, partition) for job, state, partition in rows}

    def ended(self, job: str) -> jobcomp.FinishedJob | None:
        try:
            text = self["head"].read(farm_config.JOB_COMPLETIONS)
        except LabError:
            return None  # made when the first job ends
        return next((done for done in jobcomp.parse(text) if done.id == job), None)

    # The product

    @property
    def api(self) -> Client:
        return Client(f"/proc/{self['gw'].pid}/root/run/dvn/gateway.sock")

    def ask(self, path: str, **query: object) -> Any:
        """None while the daemon does not answer."""
        try:
            return self.api.get(path, **query)
        except ApiFailure:
            return None

    def machines(self, *, running: bool = True) -> list[str]:
        """The hypervisor's; with running=False those that are only defined, too."""
        domains = self._libvirt.domains()
        return [domain.name for domain in domains if domain.active or not running]

    def leases(self) -> list[dict[str, Any]]:
        return list(self.ask("leases", ended=True) or ())

    def start(self, host: str) -> None:
        command = ("gateway", "run", SITE_FILE) if host == "gw" else ("agent", "run", AGENT_FILE)
        env = {"PYTHONPATH": str(CHECKOUT), "TZ": "UTC"}
        log = self.directory / f"{host}.log"
        self._running[host] = self[host].spawn(*DVN, *command, env=env, log=log)

    def invite(self, host: str) -> None:
        text = self.api.post("hosts", host, "invite")["text"]
        self[host].write(AGENT_FILE, f"{text}interval: 5\n".encode(), mode=0o600)

    def status(self, host: str) -> dict[str, Any]:
        """What the agent says of itself."""
        file = f"/proc/{self[host].pid}/root/var/lib/dvn/agent/status.json"
        try:
            found: dict[str, Any] = yaml.safe_load(Path(file).read_text())
        except (OSError, ValueError):
            return {}
        return found or {}

    def log(self, name: str) -> str:
        file = self.directory / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def watch_console(self, domain: str) -> None:
        self["hv1"].spawn(
            "script", "-qfc", f"virsh console --force {domain}", "/run/console",
            log=self.directory / "console.log",
        )  # fmt: skip

    def words(self) -> str:
        """The end of everybody's words, for a failure."""
        names = ("gw", "hv1", "libvirtd", "sshd", "console")
        parts = [f"--- {name}\n{self.log(name)[-5000:]}" for name in names]
        for host in ("head", "hv1"):
            done = self[host].run("sh", "-c", "tail -n 15 /var/log/slurm/*.log", check=False)
            parts.append(f"--- {host}\n{done.stdout}")
        return "\n".join(parts)

    def until(self, condition: Callable[[], object], what: str, timeout: float = LIMIT_S) -> None:
        try:
            wait_for(lambda: bool(condition()), timeout, what=what, interval=3.0)
        except LabError as error:
            raise LabError(f"{error}\n{self.leases()}\n{self.jobs()}\n{self.words()}") from error


@contextmanager
def virt_site(directory: Path) -> Iterator[VirtSite]:
    with Lab() as lab, ExitStack() as stack:
        yield VirtSite(lab, directory, stack)

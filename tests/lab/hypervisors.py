"""A gateway host and two hypervisors with the real programs: `dvn gateway run`, `dvn agent run`,
libvirtd and a virtual machine in QEMU, emulated.

The network is tests/dvn/spread.py's. The virtual machine asks for its address by DHCP, and then
sends from that address and from one that is not its own, again and again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from burst.providers.libvirt_seed import seed_files, seed_image
from dvn.hosts.domains import NAMESPACE
from gateway.cli.client import ApiFailure, Client
from lab.hosts import Lab
from lab.virt.guest import kernel_files
from lab.virt.hypervisor import IMAGES, HypervisorHost
from tests.dvn.spread import SITE, Spread, with_macs

CHECKOUT = Path(__file__).resolve().parents[2]
DVN = (sys.executable, "-m", "gateway.cli.main")
SITE_FILE, AGENT_FILE = "/etc/dvn/site.yaml", "/etc/dvn/agent.yaml"
HYPERVISORS = ("hv1", "hv2")
GUEST_MAC, GUEST, NOT_ITS_OWN = "52:54:00:00:00:20", "10.9.0.20", "10.9.0.66"
LIMIT_S = 600.0  # an emulated machine inside an emulated machine, which others may share

_USER_DATA = f"""#!/bin/sh
cat > /tmp/bound << 'END'
#!/bin/sh
[ -n "$ip" ] || exit 0
ip address replace "$ip/24" dev eth0
echo "dvn-guest: has $ip mtu $mtu"
END
chmod 755 /tmp/bound
ip link set eth0 up
udhcpc -i eth0 -s /tmp/bound -q -t 60 -T 2
ip address add {NOT_ITS_OWN}/32 dev eth0
while :; do
  ping -c 1 -W 1 10.9.0.12 > /dev/null
  ping -c 1 -W 1 -I {NOT_ITS_OWN} 10.9.0.12 > /dev/null
done
"""
_DOMAIN = """
<domain type='qemu'><name>NAME</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <metadata><dvn:port xmlns:dvn='NAMESPACE' network='NETWORK' ADDRESS/></metadata>
  <os><type arch='x86_64' machine='q35'>hvm</type>
    <kernel>KERNEL</kernel><initrd>INITRD</initrd><cmdline>console=ttyS0 quiet</cmdline></os>
  <features><acpi/><apic/></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='SEED'/>
      <target dev='vda' bus='virtio'/><readonly/></disk>
    <interface type='ethernet'><mac address='MAC'/><model type='virtio'/></interface>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <serial type='file'><source path='/var/log/NAME.log'/></serial>
  </devices>
</domain>
"""


class Hypervisors:
    """The lab with nothing of the product running yet."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        # Nothing loads it by itself: libvirt only looks whether /dev/net/tun is there.
        subprocess.run(["modprobe", "-q", "tun"], check=False, timeout=60)
        self.place = Spread(lab)
        self.directory = directory
        self.kernel, self.initrd = kernel_files()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.virtual = HypervisorHost(self.place["hv1"], directory / "libvirtd.log")
        site = yaml.safe_load(with_macs(SITE.replace("SHAPE", "star")))
        site["tenants"]["cms"]["networks"]["farm"]["dhcp"] = True
        site["gateway"] = {"interval": "1s"}
        self.place["gw"].write(SITE_FILE, yaml.safe_dump(site).encode())

    def log(self, name: str) -> str:
        file = self.directory / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def dvn(self, host: str, *arguments: str) -> str:
        """What a command says."""
        done = self.place[host].run(*DVN, *arguments, env=self._env, timeout=120)
        return done.stdout

    @property
    def api(self) -> Client:
        """The daemon's, without a process for each question: a start takes long here."""
        return Client(f"/proc/{self.place['gw'].pid}/root/run/dvn/gateway.sock")

    def hosts(self) -> dict[str, Any]:
        """As the gateway sees them, by name; {} while it does not answer."""
        try:
            return {host["name"]: host for host in self.api.get("hosts")}
        except ApiFailure:
            return {}

    def start(self, host: str) -> None:
        command = ("gateway", "run", SITE_FILE) if host == "gw" else ("agent", "run", AGENT_FILE)
        log = self.directory / f"{host}.log"
        self._running[host] = self.place[host].spawn(*DVN, *command, env=self._env, log=log)

    def kill(self, host: str) -> None:
        self._running[host].kill()
        self._running[host].wait(30)

    def invite(self, host: str) -> None:
        text = self.api.post("hosts", host, "invite")["text"]
        if host not in ("hv1",):
            text += "libvirt: null\n"
        self.place[host].write(AGENT_FILE, f"{text}interval: 1\n".encode(), mode=0o600)

    def status(self, host: str) -> dict[str, Any]:
        """What the agent says of itself."""
        file = f"/proc/{self.place[host].pid}/root/var/lib/dvn/agent/status.json"
        try:
            found: dict[str, Any] = json.loads(Path(file).read_text())
        except (OSError, ValueError):
            return {}
        return found

    def domain(
        self, name: str, network: str, *, mac: str, address: str = "", paused: bool = False
    ) -> None:
        """Start a machine that asks for `network`."""
        seed = f"{IMAGES}/{name}-seed.iso"
        content = seed_image(seed_files("0" * 32, name, _USER_DATA, mac))
        self.place["hv1"].write(seed, content)
        text = _DOMAIN
        for word, value in {
            "NAMESPACE": NAMESPACE,
            "NAME": name,
            "NETWORK": network,
            "ADDRESS": f"address='{address}'" if address else "",
            "KERNEL": str(self.kernel),
            "INITRD": str(self.initrd),
            "SEED": seed,
            "MAC": mac,
        }.items():
            text = text.replace(word, value)
        more = ("--paused",) if paused else ()
        self.place["hv1"].run("virsh", "create", "/dev/stdin", *more, input=text, timeout=120)

    def said(self, name: str) -> str:
        """What the machine has written to its console."""
        file = Path(f"/proc/{self.place['hv1'].pid}/root/var/log/{name}.log")
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def _env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(CHECKOUT)}

"""Real virtual machines: libvirtd and QEMU (TCG) on a lab host, by the provider of production."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from burst.model import MachineState
from burst.providers.base import LaunchRequest, Misconfigured, NoCapacity, Unreachable
from burst.providers.libvirt import LibvirtProvider
from burst.providers.libvirt_domain import Flavour, Image, LibvirtConfig, tap_name, uuid_of
from lab.hosts import Lab, wait_for
from lab.virt.guest import CMDLINE, kernel_files
from lab.virt.hypervisor import IMAGES, HypervisorHost, available

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes lab hosts: needs root"),
    pytest.mark.skipif(bool(available()), reason=f"needs a hypervisor: {available()}"),
]

LEASE = "0123456789abcdef0123456789abcdef"
# What a machine's user data does of the join script: its interface, and here a web page.
USER_DATA = """#!/bin/sh
for each in /sys/class/net/*; do
  [ "$(cat $each/address)" = 02:00:0a:09:00:65 ] && nic=${each##*/}
done
ip link set "$nic" up && ip addr add 10.9.0.101/24 dev "$nic"
echo "$(hostname) in $(cat /sys/class/dmi/id/sys_vendor)" > /tmp/index.html
httpd -p 80 -h /tmp
while [ ! -e /tmp/end ]; do sleep 1; [ -e /tmp/index.html ] || poweroff -f; done
"""
REQUEST = LaunchRequest(
    lease_id=LEASE,
    tenant="cms",
    pool="cms-hv",
    type="small",
    zone="hv1",
    name="cms-hv-01234567",
    user_data=USER_DATA,
    network="farm",
    address="10.9.0.101",
)


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervisorHost]:
    with Lab() as lab:
        host = lab.host("hv1")
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "address", "add", "10.9.0.1/24", "dev", "br0")
        host.run("ip", "link", "set", "br0", "up")
        log = tmp_path_factory.mktemp("libvirt") / "libvirtd.log"
        with HypervisorHost(host, log) as hypervisor:
            host.run("qemu-img", "create", "-f", "qcow2", f"{IMAGES}/tiny.qcow2", "16M")
            yield hypervisor


@pytest.fixture
def config(hypervisor: HypervisorHost) -> Iterator[LibvirtConfig]:
    kernel, initrd = kernel_files()
    image = Image("tiny.qcow2", kernel=str(kernel), initrd=str(initrd), cmdline=CMDLINE)
    types = {"small": Flavour(1, 256, 1, "tiny"), "vast": Flavour(999, 256, 1, "tiny")}
    config = LibvirtConfig(
        hypervisor.uri, "cnaf", {"tiny": image}, types, virtualization="qemu", reserve_memory_mb=0
    )
    yield config
    provider = LibvirtProvider("hv", config)
    provider.terminate([machine.id for machine in provider.machines()])
    assert hypervisor.files() == ["tiny.qcow2"], "a disk or a seed was left behind"
    assert hypervisor.virsh("list", "--all", "--name").split() == []


def plug(hypervisor: HypervisorHost) -> None:
    """What the hypervisor's network agent does for a port, without the filter."""
    hypervisor.host.run("ip", "link", "set", tap_name(LEASE), "master", "br0", "up")


def page(hypervisor: HypervisorHost) -> str:
    """What the machine says on its port 80; empty when it does not answer."""
    ask = r"printf 'GET /index.html HTTP/1.0\r\n\r\n' >&3"
    fetch = f"exec 3<>/dev/tcp/10.9.0.101/80 && {ask} && cat <&3"
    done = hypervisor.host.run("timeout", "3", "bash", "-c", fetch, check=False)
    return done.stdout


def test_a_machine_boots_from_its_overlay_and_does_what_its_seed_says(
    hypervisor: HypervisorHost, config: LibvirtConfig
) -> None:
    provider = LibvirtProvider("hv", config)
    machine = provider.launch(REQUEST)
    assert (machine.id, machine.state) == (uuid_of(LEASE), MachineState.RUNNING)
    tap = hypervisor.host.run("ip", "-o", "link", "show", tap_name(LEASE)).stdout
    assert " master " not in tap, "connected to something before anybody filtered it"
    plug(hypervisor)
    assert "cms-hv-01234567 in QEMU" in wait_for(lambda: page(hypervisor), 120, what="the page")
    backing = hypervisor.host.run(
        "qemu-img", "info", "-U", "--backing-chain", f"{IMAGES}/dvn-cnaf-{LEASE}.qcow2"
    ).stdout
    assert f"{IMAGES}/tiny.qcow2" in backing
    (seed,) = [name for name in hypervisor.files() if name.endswith(".iso")]
    assert hypervisor.host.run("stat", "-c", "%a", f"{IMAGES}/{seed}").stdout == "600\n"
    assert provider.launch(REQUEST) == machine, "a repeat is the same machine"
    hypervisor.stop()
    hypervisor.start()
    assert [m.state for m in provider.machines()] == [MachineState.RUNNING], "libvirtd's restart"


KILLED = """
import os, signal, sys
from tests.lab.test_virt import REQUEST
from burst.providers.libvirt import LibvirtProvider
from burst.providers.libvirt_host import LibvirtHost
from tests.lab.virt_config import read

class Mortal:
    def __init__(self, host, step):
        self.host, self.step, self.calls = host, step, 0
    def __getattr__(self, name):
        act = getattr(self.host, name)
        def call(*arguments):
            result = act(*arguments)
            if name not in ("domains", "size", "volumes"):
                self.calls += 1
                if self.calls == self.step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call

config = read(sys.argv[1])
host = Mortal(LibvirtHost(config.uri), int(sys.argv[2]))
LibvirtProvider("hv", config, hypervisor=host).launch(REQUEST)
"""


@pytest.mark.parametrize("step", range(1, 7))
def test_a_launch_killed_with_sigkill_is_finished_by_the_next_process(
    hypervisor: HypervisorHost, config: LibvirtConfig, step: int, tmp_path: Path
) -> None:
    from tests.lab.virt_config import write

    file = tmp_path / "config"
    write(config, file)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), str(step)], check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    machine = LibvirtProvider("hv", config).launch(REQUEST)
    assert machine.id == uuid_of(LEASE)
    assert hypervisor.virsh("list", "--uuid").split() == [machine.id]


def test_two_processes_that_launch_the_same_lease_make_one_machine(
    hypervisor: HypervisorHost, config: LibvirtConfig
) -> None:
    """An old daemon that does not know yet that it is dead, and the new one."""
    found: list[str] = []

    def launch() -> None:
        try:
            found.append(LibvirtProvider("hv", config).launch(REQUEST).id)
        except Misconfigured as error:  # libvirt refuses the second of two at the same instant
            found.append(str(error))

    both = [threading.Thread(target=launch) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    LibvirtProvider("hv", config).launch(REQUEST)
    assert hypervisor.virsh("list", "--uuid").split() == [uuid_of(LEASE)]
    assert len(found) == 2


def test_a_machine_that_powers_itself_off_leaves_nothing(
    hypervisor: HypervisorHost, config: LibvirtConfig
) -> None:
    provider = LibvirtProvider("hv", config)
    provider.launch(replace(REQUEST, user_data="#!/bin/sh\npoweroff -f\n"))
    (ended,) = wait_for(
        lambda: [m for m in provider.machines() if m.state is MachineState.TERMINATED],
        120,
        what="the machine's end",
    )
    assert ended.lease_id == LEASE
    assert hypervisor.files() == ["tiny.qcow2"]


def test_failures_are_of_a_class_and_leave_nothing(config: LibvirtConfig) -> None:
    gone = replace(config, images={"tiny": replace(config.images["tiny"], volume="no.qcow2")})
    with pytest.raises(Misconfigured, match=r"has no volume no\.qcow2"):
        LibvirtProvider("hv", gone).launch(REQUEST)
    with pytest.raises(Misconfigured, match=r"Storage pool not found.*`storage`"):
        LibvirtProvider("hv", replace(config, storage="no")).launch(REQUEST)
    bare = replace(config, images={"tiny": replace(config.images["tiny"], kernel="/no/kernel")})
    with pytest.raises(Misconfigured, match="/no/kernel"):
        LibvirtProvider("hv", bare).launch(REQUEST)
    with pytest.raises(NoCapacity, match="hv1 has"):
        LibvirtProvider("hv", config).launch(replace(REQUEST, type="vast"))
    silent = replace(config, uri="qemu+unix:///system?socket=/run/no-socket")
    with pytest.raises(Unreachable, match="no-socket"):
        LibvirtProvider("hv", silent).machines()
    stranger = replace(config, uri="qemu+ssh://no-such-host.invalid/system")
    with pytest.raises((Misconfigured, Unreachable)):
        LibvirtProvider("hv", stranger).machines()
    free = replace(config, types={"small": Flavour(1, 256, 1, "tiny", Decimal("0.5"))})
    (offer,) = LibvirtProvider("hv", free).offers()
    assert offer.price_per_hour == Decimal("0.5")

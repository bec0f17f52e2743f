"""A hypervisor that is reached by ssh: a real sshd, a key, and libvirt's own transport."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from burst.mixed.weights import Weights, commands
from burst.providers.libvirt_domain import Flavour, Image, LibvirtConfig, tap_name, uuid_of
from lab.hosts import Host, Lab, wait_for
from lab.virt import hypervisor, sshd
from lab.virt.guest import CMDLINE, kernel_files
from lab.virt.hypervisor import IMAGES, HypervisorHost
from lab.virt.sshd import SshHost
from tests.lab import virt_config
from tests.lab.test_virt import LEASE

LACKING = hypervisor.available() or sshd.available()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes lab hosts: needs root"),
    pytest.mark.skipif(bool(LACKING), reason=f"needs a hypervisor and sshd: {LACKING}"),
]

CHECKOUT = Path(__file__).resolve().parents[2]
ADDRESS, KEY = "192.0.2.11", "/etc/dvn/hv1.key"
URI = f"qemu+ssh://root@{ADDRESS}/system"
# Run on the gateway host, one process for each question, as a daemon that was restarted would.
ASK = """
import sys
from burst.providers.base import ProviderError
from burst.providers.libvirt import LibvirtProvider
from tests.lab import virt_config
from tests.lab.test_virt import REQUEST
provider = LibvirtProvider("hv", virt_config.read(sys.argv[1]))
try:
    match sys.argv[2]:
        case "offers": print([(offer.type, offer.zone) for offer in provider.offers()])
        case "launch": print(provider.launch(REQUEST).id)
        case "machines": print([(m.id, m.state.value) for m in provider.machines()])
        case "terminate": print(provider.terminate([m.id for m in provider.machines()]))
except ProviderError as error:
    print(type(error).__name__, error)
"""


@dataclass
class Place:
    gateway: Host
    hypervisor: HypervisorHost
    ssh: SshHost
    config: LibvirtConfig

    def ask(self, what: str, uri: str = f"{URI}?keyfile={KEY}") -> str:
        file = Path(f"/proc/{self.gateway.pid}/root/tmp/config.json")
        virt_config.write(
            LibvirtConfig(uri, "cnaf", self.config.images, self.config.types,
                          virtualization="qemu", reserve_memory_mb=0), file,
        )  # fmt: skip
        env = {"PYTHONPATH": str(CHECKOUT)}
        argv = (sys.executable, "-c", ASK, "/tmp/config.json", what)
        return self.gateway.run(*argv, env=env, timeout=120).stdout.strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    subprocess.run(["modprobe", "-q", "tun"], check=False, timeout=60)
    logs = tmp_path_factory.mktemp("logs")
    with Lab() as lab:
        gateway, host = lab.host("gw"), lab.host("hv1")
        lab.link(gateway, "wan0", host, "wan0")
        for each, address in ((gateway, "192.0.2.1"), (host, ADDRESS)):
            each.run("ip", "address", "add", f"{address}/24", "dev", "wan0")
            each.run("ip", "link", "set", "wan0", "up")
        with (
            HypervisorHost(host, logs / "libvirtd.log") as virtual,
            SshHost(host, logs / "sshd.log") as ssh,
        ):
            ssh.admit(gateway, ADDRESS, KEY)
            host.run("qemu-img", "create", "-f", "qcow2", f"{IMAGES}/tiny.qcow2", "16M")
            kernel, initrd = kernel_files()
            image = Image("tiny.qcow2", kernel=str(kernel), initrd=str(initrd), cmdline=CMDLINE)
            types = {"small": Flavour(1, 256, 1, "tiny")}
            yield Place(gateway, virtual, ssh, LibvirtConfig("", "cnaf", {"tiny": image}, types))


def test_a_machine_is_made_and_returned_by_ssh(place: Place) -> None:
    assert place.ask("offers") == "[('small', 'hv1')]"
    assert place.ask("launch") == uuid_of(LEASE)
    assert place.ask("launch") == uuid_of(LEASE), "a repeat is the same machine"
    assert place.ask("machines") == f"[('{uuid_of(LEASE)}', 'running')]"
    assert len(place.hypervisor.virsh("list", "--name").split()) == 1
    files = place.hypervisor.files()
    assert len(files) == 3, "the image, an overlay, and the seed that went over the wire"
    place.hypervisor.host.run("ip", "link", "show", tap_name(LEASE))
    place.ask("terminate")
    assert place.hypervisor.virsh("list", "--all", "--name").split() == []
    assert place.hypervisor.files() == ["tiny.qcow2"]


def test_who_may_not_log_in_is_told_so_and_nothing_asks_a_question(place: Place) -> None:
    place.gateway.script("ssh-keygen -q -t ed25519 -N '' -f /etc/dvn/other.key")
    said = place.ask("offers", f"{URI}?keyfile=/etc/dvn/other.key")
    assert said.startswith("Misconfigured"), said
    assert "ermission denied" in said


def test_a_host_whose_key_is_not_known_is_not_believed(place: Place) -> None:
    known = "/etc/ssh/ssh_known_hosts"
    text = place.gateway.read(known)
    place.gateway.write(known, b"")
    try:
        said = place.ask("offers")
    finally:
        place.gateway.write(known, text.encode())
    assert said.startswith("Misconfigured"), said
    assert "ost key verification failed" in said
    assert place.ask("offers").startswith("[("), "it was the key alone"


def test_a_hypervisor_that_does_not_answer_is_asked_again(place: Place) -> None:
    place.gateway.run("ip", "link", "set", "wan0", "down")
    try:
        said = place.ask("offers")
    finally:
        place.gateway.run("ip", "link", "set", "wan0", "up")
    assert said.startswith("Unreachable"), said
    wait_for(lambda: place.ask("offers").startswith("[("), 60, what="the offers")


def test_weights_are_set_by_the_same_key(place: Place) -> None:
    argv = commands(Weights(), f"{URI}?keyfile={KEY}")[0]
    # There is no systemd in the lab: that the far side's shell says so shows who was asked.
    done = place.gateway.run(*argv[: argv.index("systemctl")], "hostname", timeout=60)
    assert done.stdout.strip() == "hv1"

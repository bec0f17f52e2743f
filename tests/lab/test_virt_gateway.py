"""Acceptance: a queued Slurm job of tenant A runs in a virtual machine that was started for it, in
A's network, while a job runs on the bare metal of the same host and the cores add up.

Nothing is done by hand: the daemon's burst loop decides and makes the machine by ssh, the agent on
the hypervisor makes its NIC a port of the network, GRE takes it to the gateway, the join script of
production makes it a node. The machine's image is a hostile one: it also sends what is not its own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burst.providers.libvirt_domain import tap_name
from dvn import addresses
from lab.kernel.vm import MARK
from lab.virt import hypervisor, sshd
from tests.dvn.wire import Frame, Sniffer
from tests.lab.virt_site import (
    B1,
    CORES,
    HEAD,
    MACHINE,
    NOT_ITS_OWN,
    VirtSite,
    virt_site,
)

LACKING = hypervisor.available() or sshd.available()
pytestmark = [
    pytest.mark.native,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        os.environ.get(MARK) == "vm",
        reason="a machine emulated by an emulated one takes hours: python -m lab.kernel --uml -- "
        "python -m pytest --long tests/lab/test_virt_gateway.py",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes lab hosts: needs root"),
    pytest.mark.skipif(bool(LACKING), reason=f"needs a hypervisor and sshd: {LACKING}"),
]

BARE = """#!/bin/bash
[ "$(hostname)" = hv1 ] || exit 3
while [ ! -e /tmp/{name} ]; do sleep 0.5; done
"""
# Its own exit status tells what it met: bash alone, a process more is seconds where it runs.
IN_MACHINE = f"""#!/bin/bash
[[ $(< /sys/class/dmi/id/sys_vendor) == QEMU ]] || exit 3
(exec 3<> /dev/tcp/{HEAD}/6817) || exit 5
timeout 10 bash -c 'exec 3<> /dev/tcp/{B1}/9000' && exit 6
exit 0
"""


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[VirtSite]:
    failed = request.session.testsfailed
    with virt_site(tmp_path) as made:
        yield made
        if request.session.testsfailed > failed:
            sys.stderr.write(made.words())


class Cores:
    """The promise, looked at again and again while the story runs."""

    def __init__(self, site: VirtSite) -> None:
        self._site = site
        self.most = 0
        self.looks = 0
        self.broken: list[str] = []

    def look(self) -> None:
        """Machines first, then the batch system: a machine may end between, and none begins
        without a hold."""
        machines = self._site.machines()
        used = self._site.sinfo("%C", "-n", "hv1").split("/")
        held = self._site["head"].run("scontrol", "-o", "show", "reservations", check=False).stdout
        holds = sum("ReservationName=dvn-" in line for line in held.splitlines())
        jobs = int(used[0]) if used[0].isdigit() else 0
        self.looks += 1
        self.most = max(self.most, jobs + len(machines))
        if jobs + len(machines) > CORES:
            self.broken.append(f"{jobs} cores of jobs beside {machines}")
        if holds < len(machines):
            self.broken.append(f"{machines} with {holds} holds")


def ipv4(frames: tuple[Frame, ...], source: str, protocol: int = 1) -> list[Frame]:
    return [f for f in frames if f.protocol == protocol and f.addresses()[0] == source]


def asked_for(frames: tuple[Frame, ...], target: str) -> set[str]:
    """Who asked by ARP where `target` is: its address, as it said (RFC 826)."""
    found = set()
    for frame in frames:
        if frame.ethertype == 0x0806 and frame.data[38:42] == bytes(map(int, target.split("."))):
            found.add(".".join(map(str, frame.data[28:32])))
    return found


def pinned(site: VirtSite) -> int:
    """Packets with a source that is not the port's own, dropped at the hypervisor."""
    text = site["hv1"].run("nft", "-j", "list", "table", "bridge", "dvn-cnaf").stdout
    rules = [each["rule"] for each in json.loads(text)["nftables"] if "rule" in each]
    return sum(
        expression["counter"]["packets"]
        for rule in rules
        if rule["chain"] == "ipv4_source" and "pinned to other" in rule.get("comment", "")
        for expression in rule["expr"]
        if "counter" in expression
    )


def test_a_queued_job_of_a_tenant_runs_in_a_machine_in_its_network(site: VirtSite) -> None:
    cores = Cores(site)

    def until(condition: Callable[[], object], what: str) -> None:
        def looked() -> bool:
            cores.look()
            return bool(condition())

        site.until(looked, what)

    def state(job: str) -> str:
        return site.jobs().get(job, ("", ""))[0]

    site.start("gw")
    site.until(lambda: site.ask("status"), "the gateway's API")
    site.invite("hv1")
    site.start("hv1")
    # The other tenant's machine on the same hypervisor is well: its own network reaches it.
    site.until(
        lambda: site["b2"].run("ping", "-c1", "-W1", B1, check=False).returncode == 0,
        "the other tenant's two machines to be joined",
    )
    listener = site["b1"].listen(B1, 9000)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    site["b2"].connect(B1, 9000).close()

    # Both cores have jobs when bob's comes: it waits. One frees; his is bound to machines.
    bare = site.submit("alice", BARE.format(name="enough"))
    filler = site.submit("alice", BARE.format(name="filled"))
    until(lambda: state(bare) == state(filler) == "RUNNING", "the metal to be full")
    virtual = site.submit("bob", IN_MACHINE)
    until(lambda: site.jobs()[virtual] == ("PENDING", "burst-cms"), "bob's job to be bound")
    assert site.ask("leases", ended=True) == [], "nothing was rented while no core was free"
    with (
        Sniffer(site["head"], "eth0") as own,
        Sniffer(site["b1"], "eth0") as others,
        Sniffer(site["hv1"], "wan0") as wire,
    ):
        site["hv1"].run("touch", "/tmp/filled")
        until(lambda: any(lease["machine"] for lease in site.leases()), "a machine")
        (lease,) = site.leases()
        site.watch_console(lease["machine"])
        too_much = site.submit("alice", BARE.format(name="enough"))
        tap, bridge = tap_name(lease["id"]), addresses.bridge_name("cms", "farm")
        until(
            lambda: f"master {bridge}" in site["hv1"].run("ip", "-o", "link", "show", tap).stdout,
            "the agent to make its NIC a port",
        )
        until(lambda: site.ended(virtual), "the job's end in the machine")
        done = site.ended(virtual)
        assert done is not None
        assert (done.state, done.nodes) == ("COMPLETED", lease["node"]), site.words()
        assert state(bare) == "RUNNING", "the metal's job ran all the time"
        assert cores.most == CORES, "both used the host at once, all of it and no more"
        assert state(too_much) == "PENDING", "a third would have taken the machine's core"
        # What it sent arrives from its own address, through the tunnel, and from no other; the
        # other tenant, on the same hypervisor, heard nothing of it.
        seen = own.frames()
        assert len(ipv4(seen, MACHINE)) >= 2, "its echo requests"
        assert asked_for(seen, B1) == {MACHINE}, "it did look for the other's machine"
        assert any(f.protocol == 47 for f in wire.frames()), "by GRE"
        assert not ipv4(seen, NOT_ITS_OWN)
        assert not any(NOT_ITS_OWN in asked_for(seen, target) for target in (HEAD, B1))
        assert pinned(site) > 0, "it did send them"
        site["b2"].run("ping", "-c1", "-W2", B1)
        heard = others.frames()
        assert len(ipv4(heard, "10.9.0.31")) >= 1, "its own neighbour is heard there"
        assert not ipv4(heard, MACHINE)
        assert not ipv4(heard, NOT_ITS_OWN)
        assert MACHINE not in asked_for(heard, B1)

    # No job wants it any more: it leaves, and all that it took is given back.
    until(lambda: {each["state"] for each in site.leases()} == {"gone"}, "the machine's return")
    until(lambda: state(too_much) == "RUNNING", "the third job's turn on the core")
    assert site.machines(running=False) == []
    assert site.hypervisor.files() == ["deb12.img"]
    assert set(site.sinfo("%N", "-N").split()) == {"hv1"}, "a node entry was left behind"
    holds = site["head"].run("scontrol", "-o", "show", "reservations").stdout
    assert "dvn-" not in holds
    until(lambda: site.status("hv1").get("ports") == 1, "the port's end: b1's alone is left")
    links = site["hv1"].run("ip", "-br", "link").stdout
    assert tap not in links
    assert bridge not in links, "no machine of the tenant is left on this host"
    site["hv1"].run("touch", "/tmp/enough")
    until(lambda: site.ended(bare) and site.ended(too_much), "the end on the metal")
    ended = [site.ended(job) for job in (bare, filler, too_much)]
    assert [(job.state, job.nodes) for job in ended if job] == [("COMPLETED", "hv1")] * 3
    assert cores.broken == [], f"in {cores.looks} looks"


def _accept(listener: object) -> None:
    while True:
        try:
            listener.accept()[0].close()  # type: ignore[attr-defined]
        except OSError:
            return

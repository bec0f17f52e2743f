"""A virtual machine of libvirt's gets its port, its address and its isolation on a hypervisor, and
loses nothing when the gateway's programs are killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvn import addresses
from lab.hosts import Lab, wait_for
from lab.virt.hypervisor import available
from tests.dvn.wire import Frame, Sniffer
from tests.lab.hypervisors import (
    GUEST,
    GUEST_MAC,
    HYPERVISORS,
    LIMIT_S,
    NOT_ITS_OWN,
    Hypervisors,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(available()), reason=available()),
]


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hypervisors]:
    failed = request.session.testsfailed
    with Lab() as lab:
        made = Hypervisors(lab, tmp_path)
        with made.virtual:
            yield made
            if request.session.testsfailed > failed:
                for name in ("gw", *HYPERVISORS, "libvirtd"):
                    sys.stderr.write(f"--- {name}\n{made.log(name)[-6000:]}\n")
                sys.stderr.write(made.said("vm1")[-3000:])


def source(frame: Frame) -> str:
    return frame.addresses()[0] if frame.protocol == 1 else ""


def dropped(place: Hypervisors) -> int:
    """Packets with a source that is not the port's own, at the hypervisor."""
    listing = place.place["hv1"].run("nft", "-j", "list", "table", "bridge", "dvn-cnaf").stdout
    rules = [each["rule"] for each in json.loads(listing)["nftables"] if "rule" in each]
    return sum(
        expression["counter"]["packets"]
        for rule in rules
        if rule["chain"] == "ipv4_source" and "pinned to other" in rule.get("comment", "")
        for expression in rule["expr"]
        if "counter" in expression
    )


def test_a_virtual_machine_on_a_hypervisor(place: Hypervisors) -> None:
    spread = place.place
    place.start("gw")
    wait_for(place.hosts, LIMIT_S, what="the gateway's API")
    for host in HYPERVISORS:
        place.invite(host)
        place.start(host)
    wait_for(
        lambda: all(place.status(host).get("ports") for host in HYPERVISORS), LIMIT_S,
        what="the hypervisors' networks",
    )  # fmt: skip
    wait_for(lambda: spread.pings("a1", "10.9.0.12"), 60, what="a1 and a2 to be joined")

    # Its port, by the network that its metadata names; what asks for no network of ours is closed.
    place.domain("vm1", "cms/farm", mac=GUEST_MAC, address=GUEST)
    place.domain("vm2", "cms/nothing", mac="52:54:00:00:00:21", paused=True)
    wait_for(lambda: place.status("hv1").get("ports") == 4, LIMIT_S, what="the port")
    wait_for(lambda: bool(place.status("hv1").get("refused")), 60, what="the refusal")
    masters = spread["hv1"].run("ip", "-br", "link", "show", "type", "tun").stdout
    bridge = addresses.bridge_name("cms", "farm")
    ports = spread["hv1"].run("ip", "-br", "link", "show", "master", bridge).stdout
    assert "vnet0" in ports
    assert "vnet1" in masters
    assert "vnet1" not in ports
    assert "no network nothing" in place.status("hv1")["refused"][0]
    assert place.hosts()["hv1"]["machines"] == 2
    assert "vnet1 of vm2 on hv1" in place.dvn("gw", "hosts", "list")

    # Its address, from the gateway's DHCP on another host; and its isolation: of what it sends from
    # its own address and from another in turn, the one arrives and the other does not.
    wait_for(lambda: f"has {GUEST}" in place.said("vm1"), LIMIT_S, what="its address by DHCP")
    with Sniffer(spread["a2"], "eth0") as sniffer:
        # Three of its own: between two of them it has sent one that was not.
        wait_for(
            lambda: sum(source(frame) == GUEST for frame in sniffer.frames()) >= 3,
            90,
            what="the machine's echo requests",
        )
        wait_for(lambda: spread.pings("a2", GUEST), 30, what="its answer")
        assert not [f for f in sniffer.frames() if source(f) == NOT_ITS_OWN]
    assert dropped(place) > 0, "it did send them"
    assert not spread.pings("b2", GUEST), "the other tenant, with the same prefix"

    # The gateway's programs are killed: traffic goes on; a machine that starts gets its network.
    place.kill("gw")
    wait_for(lambda: place.status("hv1").get("gateway") != "answers", 60, what="the loss")
    assert spread.pings("a2", GUEST)
    assert spread.pings("a1", "10.9.0.12")
    place.domain("vm3", "cms/farm", mac="52:54:00:00:00:22", address="10.9.0.22", paused=True)
    wait_for(lambda: place.status("hv1").get("ports") == 5, LIMIT_S, what="the third's port")
    place.kill("hv1")
    assert spread.pings("a2", GUEST), "without the agent, too"
    place.start("hv1")
    place.start("gw")
    # The gateway remembers the machines, and hears of the one that started meanwhile.
    wait_for(lambda: place.hosts().get("hv1", {}).get("machines") == 3, LIMIT_S, what="the reports")
    wait_for(lambda: place.status("hv1").get("gateway") == "answers", LIMIT_S, what="the agent")
    assert spread.pings("a2", GUEST)

    # Its end is the port's end.
    place.virtual.virsh("destroy", "vm3")
    wait_for(lambda: place.status("hv1").get("ports") == 4, 60, what="the third's end")

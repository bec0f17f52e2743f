"""One site on three hosts, on a real kernel: machines of two tenants spread over them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dvn import addresses
from lab.hosts import Lab
from tests.dvn.frames import arp, eth, icmp, ipv4, mac
from tests.dvn.spread import OUTSIDE, UNDERLAY, Spread, a_site, mac_of
from tests.dvn.wire import Sniffer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

A1, A2, B2 = "10.9.0.11", "10.9.0.12", "10.9.0.12"


@pytest.fixture(scope="module")
def place() -> Iterator[Spread]:
    with Lab() as lab:
        yield Spread(lab)


@pytest.fixture
def star(place: Spread) -> Spread:
    place.apply(a_site())
    return place


@pytest.fixture
def mesh(place: Spread) -> Spread:
    place.apply(a_site("mesh"))
    return place


def answers(place: Spread, source: str, target: str, *options: str) -> str:
    """The MAC address of who answers for `target` to `source`; "" for nobody."""
    if not place.pings(source, target, *options):
        return ""
    return place[source].run("ip", "neighbour", "show", "to", target).stdout.split()[4]


def test_a_tenants_machines_reach_each_other_wherever_they_are(star: Spread) -> None:
    """And none of the other tenant, though it has the same addresses: who answers is the own."""
    assert answers(star, "a1", A2) == mac_of("a2")
    assert answers(star, "b1", B2) == mac_of("b2")
    assert answers(star, "head", A2) == mac_of("a2")
    assert answers(star, "any1", A2) == mac_of("a2")
    assert star.pings("a1", "fd00:9::12")
    for name in ("a1", "b2"):
        assert star.pings(name, "10.9.0.1"), "the gateway"
        assert star.pings(name, OUTSIDE), "the internet, by NAT"
    assert star.pings("a2", "fd00:9::1")


def test_what_is_there_is_not_written_again(star: Spread) -> None:
    assert {name: applied.steps for name, applied in star.apply(a_site()).items()} == {
        "gw": (),
        "hv1": (),
        "hv2": (),
    }


def send(place: Spread, source: str, frame: bytes) -> None:
    code = f"import socket; s = socket.socket(17, 3); s.bind(('eth0', 0)); s.send({frame!r})"
    place[source].run("python3", "-ISc", code)


@pytest.mark.parametrize(
    ("claimed", "passes"), [("10.9.0.13", True), ("10.9.0.1", False), ("10.9.0.12", False)]
)
def test_nobody_takes_the_address_of_the_gateway_or_of_one_on_another_host(
    star: Spread, claimed: str, passes: bool
) -> None:
    """`any1` may have any address that is nobody's; its neighbour on the same host sees no other.
    On the same host: no other host is there to filter it."""
    own = mac_of("any1")
    number = 0x4100 + int(claimed.rpartition(".")[2])
    spoofed = eth(own, ipv4(number, claimed, A1, 1, icmp(8)), 0x0800, mac_of("a1"))
    control = eth(own, ipv4(0x41FF, "10.9.0.13", A1, 1, icmp(8)), 0x0800, mac_of("a1"))
    with Sniffer(star["a1"], "eth0") as sniffer:
        send(star, "any1", spoofed)
        send(star, "any1", control)
        sniffer.wait(lambda frame: frame.data[18:20] == b"\x41\xff" or None)
        seen = any(frame.data[18:20] == number.to_bytes(2, "big") for frame in sniffer.frames())
    assert seen is passes


def test_the_hypervisor_itself_is_in_no_network(star: Spread) -> None:
    """Its bridge answers nothing, by whatever way it is asked."""
    bridge = addresses.bridge_name("cms", "farm")
    told = json.loads(star["hv1"].run("ip", "-j", "link", "show", bridge).stdout)[0]["address"]
    star["any1"].script(
        f"ip neighbour replace 10.9.0.77 lladdr {told} dev eth0; "
        f"ip route replace {UNDERLAY['hv1']} via 10.9.0.77"
    )
    assert not star.pings("any1", UNDERLAY["hv1"])
    assert star.pings("any1", A1), "the control"
    own = mac_of("a1")
    question = eth(own, arp(1, own, A1, UNDERLAY["hv1"], 1), 0x0806, "ff:ff:ff:ff:ff:ff")
    with Sniffer(star["a1"], "eth0") as sniffer:
        send(star, "a1", question)
        assert star.pings("a1", A2)
        assert not [f for f in sniffer.frames() if f.data[6:12] == mac(told)]


def test_in_a_mesh_traffic_goes_its_own_way_and_never_round(mesh: Spread) -> None:
    """Between hypervisors directly: it goes on without the gateway host. A broadcast arrives once
    on every host."""
    own = mac_of("any1")
    broadcast = eth(own, ipv4(0x4242, "10.9.0.13", "10.9.0.255", 17, b"\0" * 8), 0x0800,
                    "ff:ff:ff:ff:ff:ff")  # fmt: skip
    with Sniffer(mesh["a2"], "eth0") as there, Sniffer(mesh["head"], "eth0") as at_gateway:
        send(mesh, "any1", broadcast)
        for sniffer in (there, at_gateway):
            sniffer.wait(lambda frame: frame.data[18:20] == b"\x42\x42" or None)
        assert mesh.pings("a1", A2), "whatever goes round has had its time"
        for sniffer in (there, at_gateway):
            same = [f for f in sniffer.frames() if f.data[18:20] == b"\x42\x42"]
            assert len(same) == 1
    mesh["gw"].script("ip link set wan0 down")
    try:
        assert answers(mesh, "a1", A2) == mac_of("a2")
        assert answers(mesh, "b1", B2) == mac_of("b2")
        assert not mesh.pings("a1", "10.9.0.1")
    finally:
        mesh["gw"].script("ip link set wan0 up && ip route replace default via 198.51.100.254")
    assert mesh.pings("a1", OUTSIDE)


@pytest.mark.long
def test_a_flow_survives_the_change_from_star_to_mesh_and_back(star: Spread) -> None:
    with star["a2"].listen(A2, 5001) as listener, star["a1"].connect(A2, 5001, timeout=10) as flow:
        served, _peer = listener.accept()
        with served:
            for shape in ("mesh", "star"):
                star.apply(a_site(shape))
                flow.sendall(shape.encode())
                served.settimeout(10)
                assert served.recv(10) == shape.encode()

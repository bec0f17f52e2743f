"""Policy rules lead a packet to its table as the kernel's would (net/core/fib_rules.c)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from dvn.diagnose.routing import Flow, Routing
from dvn.diagnose.scene import MAIN, Device, Path, Scene, Selector

DEVICES = {
    "wan0": Device("wan0"),
    "b1": Device("b1", "bridge", master="r1"),
    "r1": Device("r1", "vrf", table=1001),
    "b2": Device("b2", "bridge"),
}
ROUTES = (
    Path(ip_network("0.0.0.0/0"), "wan0"),
    Path(ip_network("10.1.0.0/24"), "b1", table=1001),
    Path(ip_network("10.1.0.0/24"), "b2", table=1002),
    Path(ip_network("10.7.0.0/16"), "", kind="blackhole"),
)
RULES = (
    Selector(0, 255, 4),
    Selector(1000, 0, 4, l3mdev=True),
    Selector(2000, 0, 4, mark=0x10, mask=0xF0, inverted=True, kind="goto", target=2900),
    Selector(2001, 1001, 4, mark=0x11),
    Selector(2002, 1002, 4, mark=0x12),
    Selector(2800, 0, 4, mark=0x10, mask=0xF0, kind="blackhole"),
    Selector(2900, 0, 4, kind="nop"),
    Selector(32766, MAIN, 4),
)


@pytest.mark.parametrize(
    ("to", "iif", "mark", "kind", "device"),
    [
        ("10.1.0.5", "wan0", 0, "unicast", "wan0"),
        ("10.1.0.5", "b1", 0, "unicast", "b1"),  # of the VRF the packet came by
        ("8.8.8.8", "b1", 0, "unicast", "wan0"),  # which has no such route: the host's tables
        ("10.1.0.5", "wan0", 0x11, "unicast", "b1"),
        ("10.1.0.5", "wan0", 0x12, "unicast", "b2"),
        ("10.1.0.5", "wan0", 0x13, "blackhole", ""),  # a mark of ours that leads nowhere
        ("8.8.8.8", "wan0", 0x23, "unicast", "wan0"),  # somebody else's mark goes past
        ("10.7.1.1", "wan0", 0, "blackhole", ""),
    ],
)
def test_the_way_of_a_packet(to: str, iif: str, mark: int, kind: str, device: str) -> None:
    found = Routing(Scene(DEVICES, ROUTES, RULES)).lookup(Flow(ip_address(to), None, iif, "", mark))
    assert found is not None
    assert (found.kind, found.device) == (kind, device)


def test_where_there_is_no_route_there_is_none() -> None:
    empty = Scene(DEVICES, ROUTES[1:2], RULES)
    assert Routing(empty).lookup(Flow(ip_address("8.8.8.8"))) is None

"""A described packet on its way through a compiled plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dvn.compile import compile_site
from dvn.diagnose.build import BROADCAST, Described, build
from dvn.diagnose.walk import Walk, walk
from dvn.kernel.state import KernelState
from tests.dvn.sites import a_kernel, full_site

VM, BARI = "02:00:00:00:00:03", "203.0.113.7"


@pytest.fixture(scope="module")
def plan() -> KernelState:
    kernel, site = a_kernel(), full_site()
    host = replace(kernel.look(site.site).host, sysctls=dict(kernel.values))
    return compile_site(site, host).state


def gateway(plan: KernelState, bridge: str = "b-cms-farm") -> str:
    return plan.by_name[bridge].mac or ""


def from_vm(plan: KernelState, destination: str, **more: object) -> Walk:
    what = Described("10.9.0.3", destination, mac=VM, to_mac=gateway(plan))
    return walk(plan, build(replace(what, **more)), "tap3")  # type: ignore[arg-type]


def test_a_packet_to_the_internet_leaves_with_the_networks_outside_address(
    plan: KernelState,
) -> None:
    way = from_vm(plan, "8.8.8.8", dport=443)
    assert way.devices == {"wan0"}
    ip = way.exits[0].packet.ip
    assert ip is not None
    assert (str(ip.source), str(ip.destination), ip.hops) == ("198.51.100.10", "8.8.8.8", 63)


@pytest.mark.parametrize(
    ("destination", "more", "why"),
    [
        ("8.8.8.8", {"source": "10.9.0.4"}, "pinned to other IPv4 addresses than this"),
        ("8.8.8.8", {"mac": "02:00:00:00:00:99"}, "pinned to another MAC address than this"),
        ("8.8.8.8", {"ttl": 1}, "time to live"),
        ("8.8.8.8", {"flags": "SA"}, "no part of any connection"),
        ("10.9.0.1", {"dport": 25}, "the gateway's own services are closed by default"),
        ("127.0.0.1", {}, "martian destination 127.0.0.1"),
        ("8.8.8.8", {"offset": 1480}, "a fragment waits"),
        ("8.8.8.8", {"tags": (7,)}, "neither ARP, IPv4 nor IPv6"),
    ],
)
def test_a_packet_is_dropped_and_the_walk_says_why(
    plan: KernelState, destination: str, more: dict[str, object], why: str
) -> None:
    way = from_vm(plan, destination, **more)
    assert way.verdict == "dropped"
    assert why in way.why


def test_another_tenants_addresses_are_not_known_here(plan: KernelState) -> None:
    """Its network is closed, so it stands in no table that this one is routed by."""
    assert from_vm(plan, "10.8.0.7").devices == {"wan0"}


def test_a_service_that_is_offered_is_reached(plan: KernelState) -> None:
    assert from_vm(plan, "10.9.0.1", dport=22).devices == {"host"}


def test_a_broadcast_reaches_the_gateway_and_every_other_port(plan: KernelState) -> None:
    asked = Described("10.9.0.3", "10.9.0.9", "arp", mac=VM, to_mac=BROADCAST)
    way = walk(plan, build(asked), "tap3")
    assert way.devices == {"host", "lan0", "t-cms-bari", "t-cms-pisa"}
    tagged = next(each.packet for each in way.exits if each.device == "lan0")
    assert tagged.tag is not None
    assert tagged.tag.id == 101


def test_a_frame_comes_out_of_its_tunnel_only_with_the_right_ends_and_key(
    plan: KernelState,
) -> None:
    inner = build(Described("10.9.0.101", "10.9.0.3", mac="02:00:00:00:01:01", to_mac=VM))
    for remote, key, reaches in [(BARI, 42, True), (BARI, 43, False), ("203.0.113.8", 42, False)]:
        outer = build(
            Described(
                remote,
                "198.51.100.1",
                "47",
                payload=b"\x20\x00\x65\x58" + key.to_bytes(4, "big") + inner.frame,
            )
        )
        assert walk(plan, outer, "wan0").reaches("tap3") is reaches, (remote, key)


def test_a_tagged_frame_comes_into_the_network_of_its_vlan_only(plan: KernelState) -> None:
    for tag, bridge in [(101, "b-cms-farm"), (102, "b-atlas-farm")]:
        frame = build(Described("10.9.0.10", "8.8.8.8", to_mac=gateway(plan, bridge), tags=(tag,)))
        assert walk(plan, frame, "lan0").reaches("wan0") is (tag == 101)


def test_a_reply_comes_back_and_a_stranger_does_not(plan: KernelState) -> None:
    for state, reaches in [("established", True), ("new", False)]:
        packet = build(Described("8.8.8.8", "10.9.0.3", sport=443, flags="A", state=state))
        assert walk(plan, packet, "wan0").reaches("tap3") is reaches


@pytest.mark.parametrize("group", ["01:80:c2:00:00:03", "01:80:c2:00:00:0e"])
def test_a_link_local_frame_is_no_way_past_the_bridges_filters(
    plan: KernelState, group: str
) -> None:
    """The bridge hands it to the port itself, past its own prerouting hook."""
    asks = {"protocol": "udp", "dport": 25}
    assert "past the bridge" in from_vm(plan, "198.51.100.1", to_mac=group, **asks).why
    # The control: without that rule it reaches any service of the host.
    tables = tuple(
        replace(t, chains=tuple(c for c in t.chains if c.name != "link_local")) for t in plan.tables
    )
    open_ = replace(plan, tables=tables)
    assert from_vm(open_, "198.51.100.1", to_mac=group, **asks).devices == {"host"}

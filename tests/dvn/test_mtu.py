"""The MTU of each transport: exact, for every family and type; and what a network's is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvn.kernel.state import Host, HostLink
from dvn.passes import networks_of
from dvn.spec import Site, site_from_json
from dvn.spec.tunnel import Carried, TunnelType
from dvn.tunnels import mtu

# (transport, outer IP, type) -> the largest inner packet on a path of 1500.
ON_1500: dict[tuple[Carried, int, TunnelType], int] = {
    ("plain", 4, "gretap"): 1458,
    ("plain", 4, "gre"): 1472,
    ("plain", 6, "gretap"): 1438,
    ("plain", 6, "gre"): 1452,
    ("fou", 4, "gretap"): 1450,
    ("fou", 4, "gre"): 1464,
    ("fou", 6, "gretap"): 1430,
    ("fou", 6, "gre"): 1444,
    ("wireguard", 4, "gretap"): 1398,
    ("wireguard", 4, "gre"): 1412,
    ("wireguard", 6, "gretap"): 1378,
    ("wireguard", 6, "gre"): 1392,
    ("ipsec", 4, "gretap"): 1416,
    ("ipsec", 4, "gre"): 1430,
    ("ipsec", 6, "gretap"): 1396,
    ("ipsec", 6, "gre"): 1410,
}
KEY = "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="


@pytest.mark.parametrize(("case", "expected"), ON_1500.items(), ids=str)
def test_inner_mtu(case: tuple[Carried, int, TunnelType], expected: int) -> None:
    transport, version, kind = case
    assert mtu.inner_mtu(1500, transport, version, kind) == expected


@given(st.sampled_from(sorted(ON_1500)), st.integers(600, 9001))
def test_the_whole_packet_fits_and_one_more_byte_would_not(
    case: tuple[Carried, int, TunnelType], path: int
) -> None:
    transport, version, kind = case
    inner = mtu.inner_mtu(path, transport, version, kind)
    assert _on_the_wire(inner, transport, version, kind) <= path
    assert _on_the_wire(inner + 1, transport, version, kind) > path


def _on_the_wire(inner: int, transport: Carried, version: int, kind: TunnelType) -> int:
    """The size of the outer packet, put together from inside out."""
    outer = 20 if version == 4 else 40
    gre = inner + (14 if kind == "gretap" else 0) + 8
    match transport:
        case "plain":
            return outer + gre
        case "fou":
            return outer + 8 + gre
        case "wireguard":
            return outer + 8 + 16 + (20 + gre) + 16
        case "ipsec":
            padded = gre + 2 + -(gre + 2) % 4
            return outer + 8 + 8 + 8 + padded + 16


def a_site(tunnels: dict[str, dict[str, Any]], **underlay: Any) -> Site:
    rows = {
        name: {"network": "farm", "remote": f"203.0.113.{key}", "key": key, **tunnel}
        for key, (name, tunnel) in enumerate(tunnels.items(), 1)
    }
    own = {"interface": "wan0", "address": "198.51.100.1", **underlay}
    own.setdefault("wireguard", {"private_key_file": "/k"})
    networks = {"farm": {"prefix": ["10.9.0.0/24"]}}
    tenants = {"cms": {"networks": networks, "tunnels": rows}}
    return site_from_json({"site": "cnaf", "underlay": own, "tenants": tenants})


def a_host(link_mtu: int = 1500, **paths: int) -> Host:
    link = HostLink("wan0", "", link_mtu, True, False)
    return Host({"wan0": link}, paths={f"cms/{name}": path for name, path in paths.items()})


def network_mtu(site: Site, host: Host) -> int:
    (network,) = networks_of(site)
    return mtu.network_mtu(site, host, network.tunnels)


PLAIN = {"transport": "plain"}
WIREGUARD = {"transport": "wireguard", "peer_key": KEY}


def test_the_narrowest_tunnel_is_the_networks() -> None:
    assert network_mtu(a_site({}), a_host()) == 1458
    assert network_mtu(a_site({"a": PLAIN}), a_host()) == 1458
    assert network_mtu(a_site({"a": PLAIN, "b": WIREGUARD}), a_host()) == 1398


def test_a_jumbo_interface_says_nothing_about_the_path() -> None:
    assert network_mtu(a_site({}), a_host(9001)) == 1458
    assert network_mtu(a_site({}, mtu=9001), a_host(9001)) == 8959
    assert network_mtu(a_site({}), a_host(1400)) == 1358


def test_a_measured_path_narrows_and_never_widens() -> None:
    site = a_site({"a": PLAIN})
    assert network_mtu(site, a_host(a=1400)) == 1358
    assert network_mtu(site, a_host(a=9001)) == 1458
    assert network_mtu(site, a_host(other=1400)) == 1458


def test_auto_counts_as_the_costliest_so_that_a_choice_changes_nothing() -> None:
    auto = {"transport": "auto", "allow": ["plain", "fou", "wireguard"], "peer_key": KEY}
    site = a_site({"a": auto})
    for chosen in ("plain", "fou", "wireguard"):
        host = Host(a_host().links, chosen={"cms/a": chosen})
        assert network_mtu(site, host) == 1398


def test_a_peer_that_may_roam_between_families_fits_the_narrower() -> None:
    site = a_site({"a": WIREGUARD}, address=["198.51.100.1", "2001:db8::1"])
    assert network_mtu(site, a_host()) == 1378


def test_never_below_what_ipv6_needs() -> None:
    site = a_site({"a": WIREGUARD}, mtu=1300)
    assert network_mtu(site, a_host()) == 1280
    (tunnel,) = site.tunnels()
    assert mtu.whole_mtu(site, a_host(), tunnel) == 1198  # sent in fragments, inside WireGuard


@pytest.mark.parametrize(("version", "mss"), [(4, 1418), (6, 1398)])
def test_mss(version: int, mss: int) -> None:
    assert mtu.tcp_mss(1458, version) == mss
